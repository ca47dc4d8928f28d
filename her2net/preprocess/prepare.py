"""One case, from its files to the array a network reads.

The cache and `her2net_predict` both call `prepare_arrays`, so a training image and a
new image go through the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2net.plan.schema import DerivedChannel, PreprocessingPlan
from her2net.preprocess.crop import crop_window, lesion_box, widen
from her2net.preprocess.resample import resample
from her2net.raw.burned_in import inpaint_marks
from her2net.raw.images import Volume, read_image, read_mask

MIN_STD = 1e-6
NEXT_TO_NOTHING = 1e-3
"""Share of the mean of a crop below which its spread is compared with that of the image, which takes a look at all of it."""
SHOWS_NOTHING = 0.01
"""Share of the image's spread below which that of a crop is no unit: what lies beside it would be thousands of them away."""
MAX_RATIO = 4.0
MIN_SIGNAL = 0.05
"""Share of the 99.5th percentile of the crop below which signal counts as this much."""


@dataclass(frozen=True)
class PreparedCase:
    """What the cache stores.

    Attributes:
        image: (C, *stored_vox) float16, z-scored; derived channels last.
        mask: (*stored_vox) uint8, 1 inside the lesion; all 0 where the case has no mask.
        has_mask: whether a lesion box was found.
    """

    image: np.ndarray
    mask: np.ndarray
    has_mask: bool


def prepare_case(image_files: Sequence[Path], mask_file: Path | None, plan: PreprocessingPlan) -> PreparedCase:
    """Read one case and crop, resample and normalise it.

    Raises:
        RawDataError: a file cannot be read, or the mask does not fit the image.
    """
    image, mask = read_case(image_files, mask_file)
    return prepare_arrays(image, mask, plan)


def read_case(image_files: Sequence[Path], mask_file: Path | None) -> tuple[Volume, np.ndarray | None]:
    """Read the image of one case and its mask ([D,] H, W) bool, if it has one.

    Raises:
        RawDataError: as `prepare_case`.
    """
    image = read_image(image_files)
    return image, None if mask_file is None else read_mask(mask_file, like=image).array


def prepare_arrays(image: Volume, mask: np.ndarray | None, plan: PreprocessingPlan) -> PreparedCase:
    """Crop, resample and normalise arrays in memory; see `prepare_case`.

    Args:
        image: array (C, [D,] H, W).
        mask: ([D,] H, W) bool, or `None`.
    """
    box = None if mask is None else lesion_box(mask)
    window = crop_window(box, image.array.shape[1:], image.spacing_mm, plan)
    array = image.array
    if plan.burned_in == "inpaint" and array.dtype == np.uint8 and array.ndim == 3:
        array = np.stack([inpaint_marks(channel) for channel in array])
    mean, std = _statistics(array, window, plan)
    start, stop = widen(window, plan)
    raw = resample(array, start, stop, plan.stored_vox)
    stored_mask = np.zeros(plan.stored_vox, np.uint8)
    if mask is not None and box is not None:
        stored_mask = (resample(mask[None], start, stop, plan.stored_vox, linear=True, box=box)[0] >= 0.5).astype(np.uint8)
    x = raw - mean
    x /= std
    if plan.derived_channels:
        x = np.concatenate([x, derive_channels(raw, std, stored_mask, plan.derived_channels)])
    limit = np.finfo(np.float16).max
    return PreparedCase(np.clip(x, -limit, limit, out=x).astype(np.float16), stored_mask, box is not None)


def derive_channels(raw: np.ndarray, std: np.ndarray, mask: np.ndarray, names: Sequence[DerivedChannel]) -> np.ndarray:
    """Make maps of contrast uptake from the phases of a dynamic series, or show the lesion mask.

    - subtraction: early - pre, in standard deviations of the crop;
    - wash-in: (early - pre) / pre;
    - wash-out: (late - early) / early, negative where contrast leaves;
    - mask: 1 inside the lesion, -1 outside; 0 all over where there is none.

    The ratios have no unit, and the scanner's gain cancels; they are cut at `MAX_RATIO`, and where there is next to no
    signal (air) the denominator is held at a share of the brightest.

    Args:
        raw: (C, *spatial), unnormalised; channels 0, 1 and 2 are pre, early and late.
        std: (C or 1, 1, ...) of the z-score.
        mask: (*spatial), 1 inside the lesion.

    Returns:
        (len(names), *spatial).

    Source:
        Kuhl et al. 1999, doi:10.1148/radiology.211.1.r99ap38101 (uptake and wash-out of breast lesions).
    """
    floor = MIN_SIGNAL * max(float(np.percentile(raw, 99.5)), MIN_STD)
    relative = lambda a, b: np.clip((a - b) / np.maximum(b, floor), -MAX_RATIO, MAX_RATIO)
    made = {
        "subtraction": lambda: (raw[1] - raw[0]) / std.reshape(-1)[0],
        "wash-in": lambda: relative(raw[1], raw[0]),
        "wash-out": lambda: relative(raw[2], raw[1]),
        "mask": lambda: (2.0 * mask - 1 if mask.any() else mask).astype(np.float32),
    }
    return np.stack([made[name]() for name in names])


def _statistics(
    array: np.ndarray, window: tuple[np.ndarray, np.ndarray], plan: PreprocessingPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and SD, each (C, 1, ...), of the voxels that the plan names."""
    part = array
    if plan.statistics == "crop":
        inside = [
            slice(max(int(np.floor(a)), 0), max(int(np.ceil(b)), 1)) for a, b in zip(*window, strict=True)
        ]
        part = array[(slice(None), *inside)]
    rows = lambda a: a.reshape(1 if plan.joint_channels else len(a), -1).astype(np.float32)
    flat, shape = rows(part), (-1, *(1,) * (array.ndim - 1))
    mean, std = flat.mean(axis=1), flat.std(axis=1)
    if (std < np.maximum(NEXT_TO_NOTHING * np.abs(mean), MIN_STD)).any():
        spread = rows(array).std(axis=1)
        std = np.where(std < SHOWS_NOTHING * spread, spread, std)
    return mean.reshape(shape), np.maximum(std, MIN_STD).reshape(shape)
