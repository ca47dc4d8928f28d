"""A synthetic cohort of ultrasound and MRI with a planted effect of known strength, as a raw dataset on disk.

Each lesion has one latent number per modality, drawn given the patient's label and rendered inside it (see
`her2net.raw.phantoms`). The latents are Gaussian, so the AUC that no classifier can beat in expectation, the Bayes
AUC, is known in closed form; what a model reaches of it says how well the whole pipeline works. With `effect=0` the
cohort holds nothing, and any AUC but 0.5 is a leak.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import SimpleITK
from scipy.stats import norm, rankdata

from her2net.artefact import Artefact, Strict, digest_file, write_csv, write_json
from her2net.errors import Her2netError, RawDataError, describe
from her2net.raw.phantoms import make_mri, make_us

SEPARATION = {"US": 1.47, "MRI": 1.19}
"""Distance of the class means of each latent in standard deviations at `effect=1`: Bayes AUC 0.85 and 0.80."""

MISSING = {"US": 0.04, "MRI": 0.08}
"""Share of cases without a modality; no case lacks both."""

TWO_LESIONS = 0.1
"""Share of patients with two cases."""

COVARIATES = {"age": "continuous", "menopausal": "binary", "grade": "ordinal", "site": "categorical"}

COHORTS = {"oof": "Tr", "test": "Ts"}
"""Cohort, as prediction tables name it -> ending of its image and mask folders."""


class SyntheticCase(Strict):
    """What was planted in one case: `latents` has an entry for each modality the case has."""

    case_id: str
    patient_id: str
    cohort: str
    label: int
    latents: dict[str, float]


class SyntheticTruth(Artefact):
    """What a synthetic cohort holds and how well it can be classified.

    Attributes:
        effect: factor on the separation of the classes; 0 is none.
        seed: what the cohort was drawn from.
        bayes_auc: model (`US`, `MRI`, `fusion`) -> AUC of the ideal classifier; fusion among cases with both.
        fusion_bayes_auc_with_missing: as `fusion`, but in a cohort where cases lack a modality as often as here.
        latent_auc: cohort (`oof`, `test`) -> model -> AUC that the latents reach in this very sample, fusion over all
            its cases: the ceiling of a model that reads them without error, chance of the sample included.
        cases: every case, sorted by `case_id`.
    """

    MADE_BY: ClassVar[str] = "her2net_demo"

    effect: float
    seed: int
    bayes_auc: dict[str, float]
    fusion_bayes_auc_with_missing: float
    latent_auc: dict[str, dict[str, float]]
    cases: list[SyntheticCase]


@dataclass(frozen=True)
class _Case:
    """One case before its images are made; `key` names its own random streams."""

    planted: SyntheticCase
    covariates: dict[str, object]
    key: tuple[int, ...]


def truth_path(folder: Path) -> Path:
    """Return where the truth about the dataset in `folder` lies: beside it, where no stage reads."""
    return folder.parent / f"{folder.name}_truth.json"


def make_synthetic_dataset(
    folder: Path,
    *,
    n_train: int = 80,
    n_test: int = 40,
    effect: float = 1.0,
    seed: int = 0,
    positive_fraction: float = 0.4,
    us_size: tuple[int, int] = (160, 200),
    mri_size: tuple[int, int, int] = (16, 64, 64),
) -> SyntheticTruth:
    """Write a synthetic cohort in the raw format, and the truth about it to `truth_path(folder)`.

    The folder appears whole or not at all. Each image has its own random stream, so the same arguments give the same
    pixels, whatever else was drawn before.

    Args:
        folder: the dataset's folder, such as `her2net_raw/Dataset999_Synthetic`; must be absent or empty.
        n_train: number of cases in imagesTr, at least 4.
        n_test: number of cases in imagesTs, 0 (no imagesTs) or at least 4.
        effect: factor on the separation of the classes, >= 0.
        seed: any integer >= 0.
        positive_fraction: share of patients with label 1, in (0, 1); exact up to rounding.
        us_size: (H, W) in pixels around which ultrasound images vary, each at least 48.
        mri_size: (D, H, W) in voxels, at least (8, 24, 24).

    Raises:
        Her2netError: an argument is out of its range.
        RawDataError: the folder holds something already.
    """
    _check_arguments((n_train, n_test), effect, seed, positive_fraction, (us_size, mri_size))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RawDataError(describe("is not empty", where=folder, remedy="Delete it, or name another folder."))
    cases: list[_Case] = []
    for part, count in enumerate((n_train, n_test)):
        if count:
            cases += _draw_cohort(part, count, len(cases), effect, seed, positive_fraction)

    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for case in cases:
        _write_images(partial, case, us_size, mri_size)
    columns = ["case_id", "label", "patient_id", *COVARIATES]
    write_csv(partial / "cases.csv", columns, [_row(case) for case in cases])
    write_json(partial / "dataset.json", _describe_dataset(folder.name, effect, seed))

    planted = [case.planted for case in cases]
    truth = SyntheticTruth(
        made_from={name: digest_file(partial / name) for name in ("dataset.json", "cases.csv")},
        effect=float(effect),
        seed=seed,
        bayes_auc=_bayes_auc(effect),
        fusion_bayes_auc_with_missing=_fusion_bayes_auc_with_missing(effect),
        latent_auc={cohort: _latent_auc([c for c in planted if c.cohort == cohort]) for cohort in _cohorts(planted)},
        cases=planted,
    )
    truth.save(truth_path(folder))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return truth


def _check_arguments(
    n: tuple[int, int], effect: float, seed: int, positive_fraction: float, sizes: tuple[Sequence[int], Sequence[int]]
) -> None:
    checks = (
        ("n_train", n[0], n[0] >= 4, "at least 4"),
        ("n_test", n[1], n[1] == 0 or n[1] >= 4, "0 or at least 4"),
        ("effect", effect, np.isfinite(effect) and effect >= 0, "a number >= 0"),
        ("seed", seed, seed >= 0, "an integer >= 0"),
        ("positive_fraction", positive_fraction, 0 < positive_fraction < 1, "a number between 0 and 1"),
        ("us_size", sizes[0], _at_least(sizes[0], (48, 48)), "(H, W), each at least 48"),
        ("mri_size", sizes[1], _at_least(sizes[1], (8, 24, 24)), "(D, H, W), at least (8, 24, 24)"),
    )
    for name, value, right, expected in checks:
        if not right:
            raise Her2netError(describe("out of range", where=name, found=value, expected=expected))


def _at_least(size: Sequence[int], least: Sequence[int]) -> bool:
    return len(size) == len(least) and all(n >= m for n, m in zip(size, least, strict=True))


def _draw_cohort(part: int, n: int, first: int, effect: float, seed: int, positive_fraction: float) -> list[_Case]:
    """Draw patients, labels, latents and covariates of one cohort; covariates know nothing of the label."""
    rng = np.random.default_rng((seed, part))
    n_two = round(n * TWO_LESIONS / (1 + TWO_LESIONS))
    n_patients = n - n_two
    n_positive = min(max(1, round(positive_fraction * n_patients)), n_patients - 1)
    label_of = rng.permutation(np.arange(n_patients) < n_positive).astype(int)
    lesions_of = 1 + rng.permutation(np.arange(n_patients) < n_two)
    patient_of = np.repeat(np.arange(n_patients), lesions_of)
    lacking = _draw_missing(n, rng)

    cases = []
    for patient in range(n_patients):
        own = np.random.default_rng((seed, part, 0, patient))
        age = float(np.clip(np.round(own.normal(54, 11), 1), 25, 90))
        shared = {"age": age, "menopausal": int(own.normal(51, 4) < age), "site": str(own.choice(["A", "B"]))}
        for index in np.flatnonzero(patient_of == patient):
            number = first + int(index) + 1
            latents = {
                modality: float((label_of[patient] - 0.5) * effect * separation + own.standard_normal())
                for modality, separation in SEPARATION.items()
            }
            planted = SyntheticCase(
                case_id=f"SYN{number:04d}",
                patient_id=f"P{part}{patient + 1:04d}",
                cohort=list(COHORTS)[part],
                label=int(label_of[patient]),
                latents={m: z for m, z in latents.items() if lacking[index] != m},
            )
            covariates = {**shared, "grade": int(own.integers(1, 4))}
            cases.append(_Case(planted, covariates, key=(seed, part, 1, int(index))))
    return cases


def _draw_missing(n: int, rng: np.random.Generator) -> list[str | None]:
    """Return, for each case, the modality it lacks."""
    lacking: list[str | None] = []
    for modality, share in MISSING.items():
        lacking += [modality] * round(share * n)
    lacking += [None] * (n - len(lacking))
    return [lacking[i] for i in rng.permutation(n)]


def _write_images(root: Path, case: _Case, us_size: tuple[int, int], mri_size: tuple[int, int, int]) -> None:
    planted = case.planted
    ending = COHORTS[planted.cohort]
    for modality, latent in planted.latents.items():
        images, masks = (root / f"{kind}{ending}" / modality for kind in ("images", "masks"))
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng((*case.key, list(SEPARATION).index(modality)))
        if modality == "US":
            us = make_us(latent, us_size, rng)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(us.image), str(images / f"{planted.case_id}.png"))
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(us.mask * 255), str(masks / f"{planted.case_id}.png"))
        else:
            mri = make_mri(latent, mri_size, rng)
            _write_nifti(images / f"{planted.case_id}_0000.nii.gz", mri.pre, mri.spacing_mm)
            _write_nifti(images / f"{planted.case_id}_0001.nii.gz", mri.early, mri.spacing_mm)
            _write_nifti(masks / f"{planted.case_id}.nii.gz", mri.mask, mri.spacing_mm)


def _write_nifti(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])  # SimpleITK counts axes from the fastest
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _row(case: _Case) -> dict[str, object]:
    planted = case.planted
    ids = {"case_id": planted.case_id, "label": planted.label, "patient_id": planted.patient_id}
    return {**ids, **case.covariates}


def _describe_dataset(folder_name: str, effect: float, seed: int) -> dict[str, object]:
    return {
        "name": folder_name.split("_", 1)[-1],
        "description": "Simulated ultrasound and MRI with a planted effect, for testing software. "
        f"Effect {effect:g}, seed {seed}. No patient is behind it.",
        "labels": {"negative": 0, "positive": 1},
        "modalities": {
            "US": {"channels": {"0": "B-mode"}, "file_ending": ".png"},
            "MRI": {"channels": {"0": "DCE-pre", "1": "DCE-early"}, "file_ending": ".nii.gz"},
        },
        "covariates": COVARIATES,
        "patient": "patient_id",
        "site": "site",
    }


def _bayes_auc(effect: float) -> dict[str, float]:
    """Return the AUC of the likelihood ratio: of two unit Gaussians d apart it is Phi(d / sqrt 2).

    The latents are independent given the label, so both together are d = sqrt(d_us^2 + d_mri^2) apart.

    Source: Bamber, The area above the ordinal dominance graph, 1975, doi:10.1016/0022-2496(75)90001-2.
    """
    distances = {**SEPARATION, "fusion": float(np.linalg.norm(list(SEPARATION.values())))}
    return {model: float(norm.cdf(effect * d / np.sqrt(2))) for model, d in distances.items()}


def _fusion_bayes_auc_with_missing(effect: float) -> float:
    """Return the AUC of the likelihood ratio of what each case has, over cases that may lack a modality.

    A case whose modalities are d apart has a log ratio distributed N(+-d^2 / 2, d^2). A positive of distance a then
    exceeds a negative of distance b with probability Phi(sqrt(a^2 + b^2) / 2); cases lack a modality by chance.
    """
    total = float(np.linalg.norm(list(SEPARATION.values())))
    share_at = [(1 - sum(MISSING.values()), total)]
    for modality, share in MISSING.items():
        share_at.append((share, float(np.sqrt(total**2 - SEPARATION[modality] ** 2))))
    pairs = product(share_at, share_at)
    return float(sum(p * q * norm.cdf(effect * np.hypot(a, b) / 2) for (p, a), (q, b) in pairs))


def _cohorts(cases: Sequence[SyntheticCase]) -> list[str]:
    return [cohort for cohort in COHORTS if any(case.cohort == cohort for case in cases)]


def _latent_auc(cases: Sequence[SyntheticCase]) -> dict[str, float]:
    """Return model -> AUC of the latents themselves; of fusion, the log likelihood ratio up to its scale."""
    scores = {m: {c.case_id: c.latents[m] for c in cases if m in c.latents} for m in SEPARATION}
    scores["fusion"] = {c.case_id: sum(SEPARATION[m] * z for m, z in c.latents.items()) for c in cases}
    labels = {case.case_id: case.label for case in cases}
    return {model: _auc(labels, of_case) for model, of_case in scores.items()}


def _auc(labels: Mapping[str, int], scores: Mapping[str, float]) -> float:
    """Return the share of (positive, negative) pairs in order; 0.5 where a class is absent."""
    label = np.array([labels[case_id] for case_id in scores])
    n_positive, n_negative = int(label.sum()), int((1 - label).sum())
    if not n_positive or not n_negative:
        return 0.5
    ranks = rankdata(list(scores.values()))[label == 1]
    return float((ranks.sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
