"""Intensity statistics and lesion geometry of one image: what the fingerprint is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from her2net.artefact import Strict

MAX_SAMPLES = 2_000_000
"""Above this many voxels, percentiles are taken from a regular grid of them."""
CROP_GROWTH = 0.5
"""The crop is the lesion box grown by this share of its size on each side."""


class ChannelStatistics(Strict):
    """Intensities of one channel in one region, in the units of the file; 0.5th, 50th and 99.5th percentile."""

    mean: float
    std: float
    p00_5: float
    median: float
    p99_5: float
    minimum: float
    maximum: float


class Lesion(Strict):
    """Where the lesion lies.

    Attributes:
        start: first voxel of its box, in (H, W) or (D, H, W) order.
        stop: one behind the last voxel.
        volume_vox: number of lesion voxels.
        n_lesions: connected components; voxels that touch at a corner are connected.
    """

    start: list[int]
    stop: list[int]
    volume_vox: int
    n_lesions: int


def measure_channel(values: np.ndarray) -> ChannelStatistics | None:
    """Describe the intensities of an array of any shape; `None` if none of them is finite."""
    sample = thin(values).ravel()
    low, high = float(values.min()), float(values.max()) if values.size else 0.0
    if not (math.isfinite(low) and math.isfinite(high)):
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return None
        low, high = float(sample.min()), float(sample.max())
    p00_5, median, p99_5 = np.percentile(sample, (0.5, 50, 99.5))
    mean = float(sample.mean(dtype=np.float64))
    std = float(sample.std(dtype=np.float64))
    return ChannelStatistics(
        mean=mean, std=std, p00_5=float(p00_5), median=float(median), p99_5=float(p99_5), minimum=low, maximum=high
    )


def thin(values: np.ndarray) -> np.ndarray:
    """Return the values, or every n-th along each axis where there are more than `MAX_SAMPLES`."""
    if values.size <= MAX_SAMPLES:
        return values
    step = math.ceil((values.size / MAX_SAMPLES) ** (1 / values.ndim))
    return values[(slice(None, None, step),) * values.ndim]


def find_lesion(mask: np.ndarray) -> Lesion | None:
    """Find the lesion box and count the lesions.

    Args:
        mask: (H, W) or (D, H, W) bool.

    Returns:
        `None` for an empty mask.
    """
    from scipy import ndimage  # here, as it takes a third of a second and most processes only read what was found

    box = _bounding_box(mask)
    if box is None:
        return None
    inside = mask[box]
    _, n_lesions = ndimage.label(inside, structure=np.ones((3,) * mask.ndim, dtype=bool))
    return Lesion(
        start=[s.start for s in box],
        stop=[s.stop for s in box],
        volume_vox=int(np.count_nonzero(inside)),
        n_lesions=int(n_lesions),
    )


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Shrink one axis at a time, so that later axes search only what is left."""
    box: list[slice] = []
    rest = mask
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        hits = np.flatnonzero(rest.any(axis=others))
        if not hits.size:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
        rest = rest[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


def grow_box(lesion: Lesion, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the crop: the lesion box grown on each side, within the image."""
    slices = []
    for start, stop, size in zip(lesion.start, lesion.stop, shape, strict=True):
        margin = math.ceil(CROP_GROWTH * (stop - start))
        slices.append(slice(max(0, start - margin), min(size, stop + margin)))
    return tuple(slices)
