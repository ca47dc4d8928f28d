"""What is known of a case without looking at its lesion: site, size and intensities of its files; and the lesion's size.

Random forests, patient-grouped in the plan's folds, say how well such columns alone tell the classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from her2net.evaluate.discrimination import auc
from her2net.predictions import Predictions, make_predictions
from her2net.raw.dataset import Case
from her2net.raw.scan import ImageScan

N_TREES = 300
MIN_CASES_PER_LEAF = 3
Columns = dict[str, list[float]]


def metadata_columns(cases: Sequence[Case], images: Sequence[ImageScan], modality: str) -> Columns:
    """Return site, size, spacing, file type, other modalities, and mean and SD outside the lesion; NaN where unknown."""
    columns: Columns = {f"site {site}": [float(c.site == site) for c in cases]
                        for site in sorted({c.site for c in cases if c.site})}  # fmt: skip
    ndim = len(images[0].shape)
    for axis, name in enumerate(("depth", "height", "width")[-ndim:]):
        columns[f"image {name} in voxels"] = [float(image.shape[axis]) for image in images]
        columns[f"spacing along {name} in mm"] = [
            math.nan if image.spacing_mm is None else image.spacing_mm[axis] for image in images
        ]
    columns["width over height"] = [image.shape[-1] / image.shape[-2] for image in images]
    for dtype in sorted({image.dtype for image in images}):
        columns[f"pixels are {dtype}"] = [float(image.dtype == dtype) for image in images]
    for other in sorted({name for case in cases for name in case.images} - {modality}):
        columns[f"has {other}"] = [float(other in case.images) for case in cases]
    for channel in range(len(images[0].image)):
        mean, std = zip(*(_outside(image, channel) for image in images), strict=True)
        suffix = f" of channel {channel}" if len(images[0].image) > 1 else ""
        columns[f"mean intensity{suffix} outside the lesion"] = list(mean)
        columns[f"SD of intensity{suffix} outside the lesion"] = list(std)
    return _informative(columns)


def size_columns(images: Sequence[ImageScan]) -> Columns:
    """Return the lesion's volume, edges and place in the image; every image has a lesion."""
    lesions = [image.lesion for image in images if image.lesion is not None]
    columns: Columns = {"lesion volume in voxels": [float(lesion.volume_vox) for lesion in lesions]}
    columns["lesion volume in mm³ (mm²)"] = [
        math.nan if image.spacing_mm is None else lesion.volume_vox * math.prod(image.spacing_mm)
        for image, lesion in zip(images, lesions, strict=True)
    ]
    columns["share of the image"] = [
        lesion.volume_vox / math.prod(image.shape) for image, lesion in zip(images, lesions, strict=True)
    ]
    ndim = len(images[0].shape)
    for axis, name in enumerate(("depth", "height", "width")[-ndim:]):
        columns[f"lesion {name} in voxels"] = [float(lesion.stop[axis] - lesion.start[axis]) for lesion in lesions]
        columns[f"place along {name}"] = [
            (lesion.start[axis] + lesion.stop[axis]) / 2 / image.shape[axis]
            for image, lesion in zip(images, lesions, strict=True)
        ]
    return _informative(columns)


def _outside(image: ImageScan, channel: int) -> tuple[float, float]:
    """Return mean and SD of the voxels outside the lesion, from those of the image and of the lesion."""
    whole = image.image[channel]
    if image.lesion is None or not image.mask:
        return whole.mean, whole.std
    n, inside = math.prod(image.shape), image.lesion.volume_vox
    if inside >= n:
        return math.nan, math.nan
    lesion = image.mask[channel]
    mean = (n * whole.mean - inside * lesion.mean) / (n - inside)
    square = n * (whole.std**2 + whole.mean**2) - inside * (lesion.std**2 + lesion.mean**2)
    return mean, math.sqrt(max(square / (n - inside) - mean**2, 0.0))


def _informative(columns: Columns) -> Columns:
    """Drop columns that have one value, or none, in all cases."""
    return {name: values for name, values in columns.items() if len({v for v in values if not math.isnan(v)}) > 1}


def can_be_judged(cases: Sequence[Case], folds: Sequence[Sequence[str]], n_classes: int) -> bool:
    """Whether every class has a case, and somebody is left to learn from whichever fold is held out."""
    owners = {case.patient_id for case in cases}
    return len({case.label for case in cases}) == n_classes and all(owners - set(fold) for fold in folds)


def predict_from_columns(
    cases: Sequence[Case], columns: Mapping[str, Sequence[float]], folds: Sequence[Sequence[str]], n_classes: int,
    *, seed: int,
) -> Predictions:  # fmt: skip
    """Predict each fold's patients by a random forest that saw the other folds' alone.

    Source:
        Breiman 2001, doi:10.1023/A:1010933404324.
    """
    from sklearn.ensemble import RandomForestClassifier

    x = np.column_stack([np.array(values, dtype=np.float64) for values in columns.values()])
    y = np.array([case.label for case in cases], dtype=np.int64)
    owners = np.array([case.patient_id for case in cases])
    probs, fold_of = np.zeros((len(cases), n_classes)), [""] * len(cases)
    for k, held in enumerate(folds):
        out = np.isin(owners, list(held))
        if not out.any():
            continue
        forest = RandomForestClassifier(N_TREES, min_samples_leaf=MIN_CASES_PER_LEAF, random_state=seed, n_jobs=1)
        forest.fit(x[~out], y[~out])
        probs[np.ix_(out, forest.classes_)] = forest.predict_proba(x[out])
        for i in np.flatnonzero(out):
            fold_of[i] = str(k)
    return make_predictions([c.case_id for c in cases], [c.patient_id for c in cases], probs, labels=y.tolist(),
                            folds=fold_of)


def strongest_column(columns: Mapping[str, Sequence[float]], labels: np.ndarray) -> tuple[str, float]:
    """Return the column that by itself separates a class from the others best, and that AUC, its direction chosen here.

    A hint of where to look, not an estimate: it is the best of many on the very cases.
    """
    found = []
    for name, values in columns.items():
        known = ~np.isnan(values)
        y, v = labels[known], np.array(values, dtype=np.float64)[known]
        areas = [auc((y == c).astype(int), v) for c in np.unique(labels)[1:]]
        found += [(max(a, 1 - a), name) for a in areas if not math.isnan(a)]
    area, name = max(found)
    return name, area
