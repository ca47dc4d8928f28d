"""From the grid of a map back to the voxels of the original image: the exact inverse of crop and resample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from her2net.preprocess.resample import resample

Window = tuple[np.ndarray, np.ndarray]


def window_slices(window: Window, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the voxels whose centre the window holds.

    Args:
        window: (start, stop) in edge coordinates, as `crop_window` gives it; may reach over the border.
        shape: ([D,] H, W) of the original image.
    """
    slices = []
    for start, stop, n in zip(*window, shape, strict=True):
        first = min(max(math.ceil(start - 0.5), 0), n - 1)
        slices.append(slice(first, max(min(math.ceil(stop - 0.5), n), first + 1)))
    return tuple(slices)


def to_original(grid_map: np.ndarray, window: Window, shape: Sequence[int]) -> np.ndarray:
    """Lay a map over the original image, linearly between the centres of its cells; 0 outside the window.

    Args:
        grid_map: ([D,] H, W) of any size; its cells part the window evenly.
        window: (start, stop) in edge coordinates of the image.
        shape: ([D,] H, W) of the original image.

    Returns:
        (*shape) float32.
    """
    out = np.zeros(shape, np.float32)
    inside = window_slices(window, shape)
    cells_per_voxel = [g / (b - a) for g, a, b in zip(grid_map.shape, *window, strict=True)]
    first = [(s.start - a) * c for s, a, c in zip(inside, window[0], cells_per_voxel, strict=True)]
    last = [(s.stop - a) * c for s, a, c in zip(inside, window[0], cells_per_voxel, strict=True)]
    size = [s.stop - s.start for s in inside]
    out[inside] = resample(grid_map[None], first, last, size, linear=True)[0]
    return out


def rectify(signed: np.ndarray) -> np.ndarray:
    """Keep what speaks for the class, scaled to a maximum of 1; all 0 where nothing does."""
    positive = np.maximum(signed, 0)
    peak = positive.max()
    return positive / peak if peak > 0 else positive
