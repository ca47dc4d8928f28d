"""The fingerprint: what a cohort is like, measured on its training cases alone.

`Scan` -> `fingerprint.json`. The plan is derived from this and from nothing else, so nothing of
a test case, not even its size, may enter; only how many there are is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from her2net.artefact import Artefact, Strict, digest_json
from her2net.errors import RawDataError, join_problems
from her2net.raw.dataset import Case, RawDataset
from her2net.raw.intensity import ChannelStatistics
from her2net.raw.scan import CaseScan, ImageScan, Scan


class Spread(Strict):
    """How one quantity is spread over the cases."""

    median: float
    p10: float
    p90: float
    minimum: float
    maximum: float


class CohortIntensity(Strict):
    """Intensities of one channel in one region: the median over cases of each case's statistic."""

    mean: float
    std: float
    p00_5: float
    median: float
    p99_5: float


class IntensitySpread(Strict):
    """How the intensities of one channel of the whole image are spread over the cases."""

    mean: Spread
    std: Spread
    p99_5: Spread


class ModalityFingerprint(Strict):
    """One modality of the training cases.

    Attributes:
        ndim: 2 or 3.
        n_cases: training cases that have it, `cases_per_class` of them of each class (empty in files of before it was counted);
            `n_missing` lack it; `n_without_mask` have no usable mask.
        size_vox: per axis, (H, W) or (D, H, W).
        spacing_mm: per axis; `None` where no file says.
        n_spacing_unknown: cases whose files do not say.
        orientations: where the axes of the volumes run to, as in `ImageScan`; empty for pictures, and in files of before it was kept.
        lesion_size_vox: edge lengths of the lesion box, per axis; `None` without masks.
        lesion_size_mm: likewise; `None` where the spacing is unknown.
        lesion_volume_vox: voxels (pixels in 2D).
        lesion_volume_mm3: mm³ (mm² in 2D).
        lesion_fraction: lesion voxels / image voxels.
        n_lesions_median: connected components per mask.
        image_statistics: per channel; likewise within the crop and the mask (empty without masks).
        intensity_spread: per channel; what new images are compared with. Empty in files of before it was measured.
        fixed_range: whether all images are 8-bit, so that intensities lie within 0..255.
    """

    ndim: Literal[2, 3]
    n_channels: int
    channel_names: list[str]
    n_cases: int
    cases_per_class: dict[str, int] = Field(default_factory=dict)
    n_missing: int
    n_without_mask: int
    dtypes: list[str]
    size_vox: list[Spread]
    spacing_mm: list[Spread] | None
    n_spacing_unknown: int
    orientations: list[Annotated[str, Field(pattern="^[LRAPIS]{3}$")]] = Field(default_factory=list)
    lesion_size_vox: list[Spread] | None
    lesion_size_mm: list[Spread] | None
    lesion_volume_vox: Spread | None
    lesion_volume_mm3: Spread | None
    lesion_fraction: Spread | None
    n_lesions_median: float | None
    n_lesions_max: int | None
    image_statistics: list[CohortIntensity]
    crop_statistics: list[CohortIntensity]
    mask_statistics: list[CohortIntensity]
    intensity_spread: list[IntensitySpread] = Field(default_factory=list)
    fixed_range: bool


class Fingerprint(Artefact):
    """What a cohort is like.

    Attributes:
        dataset: name of its folder.
        n_cases: training cases, of `n_patients` patients.
        class_names: in the order of their numbers.
        patients_per_class: a patient counts for the class of each of its cases.
        n_sites: 0 where no site is declared.
        test_cases: how many; nothing else is known of them.
        dataset_digest: of all training rows and the content of their files.
    """

    MADE_BY: ClassVar[str] = "her2net_plan"

    dataset: str
    n_cases: int
    n_patients: int
    class_names: list[str]
    cases_per_class: dict[str, int]
    patients_per_class: dict[str, int]
    n_sites: int
    patients_per_site: dict[str, int] = Field(default_factory=dict)
    test_cases: int
    modalities: dict[str, ModalityFingerprint]
    dataset_digest: str


def extract_fingerprint(dataset: RawDataset, scan: Scan) -> Fingerprint:
    """Summarise the training cases of a dataset.

    Args:
        dataset: verified; a hold-out, if any, already sealed (`seal_holdout`).
        scan: of the same dataset.

    Raises:
        RawDataError: a training case is unreadable or not in the scan.
    """
    scans = scan.find()
    train = dataset.train
    _check_complete(dataset, scans)
    names = list(dataset.class_names)
    sites = _patients_by(train, lambda case: case.site)
    return Fingerprint(
        made_from={"scan": digest_json([_relevant(scans[case.case_id]) for case in train])},
        dataset=dataset.folder.name,
        n_cases=len(train),
        n_patients=len({case.patient_id for case in train}),
        class_names=names,
        cases_per_class=_count_classes(dataset, train),
        patients_per_class=_fill(
            names, _patients_by(train, lambda case: None if case.label is None else names[case.label])
        ),
        n_sites=len(sites),
        patients_per_site=sites,
        test_cases=len(dataset.test),
        modalities={name: _summarise(dataset, name, scans) for name in dataset.spec.modalities},
        dataset_digest=dataset_digest(dataset, scans),
    )


def _count_classes(dataset: RawDataset, cases: Sequence[Case]) -> dict[str, int]:
    return {name: sum(case.label == i for case in cases) for i, name in enumerate(dataset.class_names)}


def _check_complete(dataset: RawDataset, scans: dict[str, CaseScan]) -> None:
    problems = []
    for case in dataset.train:
        images = scans[case.case_id].images if case.case_id in scans else {}
        problems += [f"{case.case_id} {m}" for m in case.images if m not in images or not images[m].image]
    problems += [f"class {name}: no training case" for i, name in enumerate(dataset.class_names)
                 if not any(case.label == i for case in dataset.train)]  # fmt: skip
    if problems:
        headline = f"{dataset.folder}: no fingerprint can be made of these. Run her2net_verify for what is wrong."
        raise RawDataError(join_problems(headline, problems))


def _relevant(scan: CaseScan) -> dict:
    """Return a case's scan without where its files lie, so that renaming a folder changes nothing."""
    return {
        "case_id": scan.case_id,
        "images": {m: i.model_dump(exclude={"files", "problems"}) for m, i in scan.images.items()},
    }


def _patients_by(cases: Sequence[Case], key: Callable[[Case], str | None]) -> dict[str, int]:
    patients: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        group = key(case)
        if group is not None:
            patients[group].add(case.patient_id)
    return {group: len(patients[group]) for group in sorted(patients)}


def _fill(names: Sequence[str], counts: dict[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in names}


def dataset_digest(dataset: RawDataset, scans: dict[str, CaseScan]) -> str:
    """Digest of what a plan is made for: classes, channels, the training rows and the content of their files."""
    rows = [
        [
            c.case_id,
            c.patient_id,
            c.label,
            c.site,
            {m: scans[c.case_id].images[m].source_digest for m in sorted(c.images)},
        ]
        for c in dataset.train
    ]
    channels = {name: spec.channels for name, spec in dataset.spec.modalities.items()}
    return digest_json([list(dataset.class_names), channels, rows])


def _summarise(dataset: RawDataset, modality: str, scans: dict[str, CaseScan]) -> ModalityFingerprint:
    images = [scans[case.case_id].images[modality] for case in dataset.train if modality in case.images]
    if not images:
        raise RawDataError(
            f"{dataset.folder}: no training case has the modality {modality!r}. "
            "Add its images, or take it out of dataset.json."
        )
    spec = dataset.spec.modalities[modality]
    with_lesion = [image for image in images if image.lesion is not None and image.mask]
    in_mm = [image for image in images if image.spacing_mm is not None]
    return ModalityFingerprint(
        ndim=2 if len(images[0].shape) == 2 else 3,
        n_channels=spec.n_channels,
        channel_names=list(spec.channels.values()),
        n_cases=len(images),
        cases_per_class=_count_classes(dataset, [case for case in dataset.train if modality in case.images]),
        n_missing=len(dataset.train) - len(images),
        n_without_mask=len(images) - len(with_lesion),
        dtypes=sorted({image.dtype for image in images}),
        size_vox=_spread_axes([image.shape for image in images]),
        spacing_mm=_spread_axes([image.spacing_mm for image in in_mm if image.spacing_mm]) if in_mm else None,
        n_spacing_unknown=len(images) - len(in_mm),
        orientations=sorted({image.orientation for image in images if image.orientation}),
        image_statistics=_cohort([image.image for image in images]),
        crop_statistics=_cohort([image.crop for image in with_lesion]),
        mask_statistics=_cohort([image.mask for image in with_lesion]),
        intensity_spread=_spread_channels([image.image for image in images]),
        fixed_range=all(image.dtype == "uint8" for image in images),
        **_summarise_lesions(with_lesion),
    )


def _summarise_lesions(images: Sequence[ImageScan]) -> dict:
    keys = ("lesion_size_vox", "lesion_size_mm", "lesion_volume_vox", "lesion_volume_mm3", "lesion_fraction")
    if not images:
        return dict.fromkeys((*keys, "n_lesions_median", "n_lesions_max"))
    lesions = [image.lesion for image in images if image.lesion is not None]
    sizes = np.array([np.subtract(lesion.stop, lesion.start) for lesion in lesions], dtype=np.float64)
    volumes = np.array([lesion.volume_vox for lesion in lesions], dtype=np.float64)
    n_voxels = np.array([np.prod(image.shape) for image in images], dtype=np.float64)
    known = np.array([image.spacing_mm is not None for image in images])
    spacing = np.array([image.spacing_mm for image in images if image.spacing_mm is not None], dtype=np.float64)
    n_lesions = [lesion.n_lesions for lesion in lesions]
    return {
        "lesion_size_vox": _spread_axes(sizes),
        "lesion_size_mm": _spread_axes(sizes[known] * spacing) if known.any() else None,
        "lesion_volume_vox": _spread(volumes),
        "lesion_volume_mm3": _spread(volumes[known] * spacing.prod(axis=1)) if known.any() else None,
        "lesion_fraction": _spread(volumes / n_voxels),
        "n_lesions_median": float(np.median(n_lesions)),
        "n_lesions_max": max(n_lesions),
    }


def _spread(values: Sequence[float] | np.ndarray) -> Spread:
    p10, median, p90 = (float(v) for v in np.percentile(np.asarray(values, dtype=np.float64), (10, 50, 90)))
    return Spread(median=median, p10=p10, p90=p90, minimum=float(np.min(values)), maximum=float(np.max(values)))


def _spread_axes(values: Sequence[Sequence[float]] | np.ndarray) -> list[Spread]:
    return [_spread(column) for column in np.asarray(values, dtype=np.float64).T]


def _cohort(statistics: Sequence[Sequence[ChannelStatistics]]) -> list[CohortIntensity]:
    """Return the median over cases of each statistic, per channel."""
    if not statistics:
        return []
    fields = list(CohortIntensity.model_fields)
    table = np.array([[[getattr(channel, field) for field in fields] for channel in case] for case in statistics])
    medians = np.median(table, axis=0)
    return [CohortIntensity(**dict(zip(fields, map(float, row), strict=True))) for row in medians]


def _spread_channels(statistics: Sequence[Sequence[ChannelStatistics]]) -> list[IntensitySpread]:
    """Return the spread over cases of each statistic, per channel."""
    fields = list(IntensitySpread.model_fields)
    return [
        IntensitySpread(**{field: _spread([getattr(channel, field) for channel in cases]) for field in fields})
        for cases in zip(*statistics, strict=True)
    ]
