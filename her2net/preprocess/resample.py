"""Crop, pad and resample at once: one small matrix per axis.

Cubic convolution whose kernel widens when it shrinks an axis (so nothing aliases),
the same as torch's `interpolate(mode="bicubic", antialias=True)` on the whole axis.
Because it is separable, a volume is resampled by three matrix products, of the bands that are not 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Floats = Sequence[float] | np.ndarray

BAND_ROWS = 24
"""Rows of a matrix that are multiplied together: half the time of all at once at 96 voxels, a quarter less than 16 or 48."""
CUBIC_A = -0.5  # Keys (1981), third-order accurate; also what Pillow and antialiased torch use


def axis_matrix(n_in: int, start: float, stop: float, n_out: int, *, linear: bool = False) -> tuple[slice, np.ndarray]:
    """Return which input voxels are needed and the weights (n_out, n_needed), float32, rows summing to 1.

    Args:
        n_in: voxels on the axis.
        start, stop: window in edge coordinates; parts outside [0, n_in] repeat the border voxel.
        n_out: voxels wanted.
        linear: triangle instead of cubic kernel (for masks: never leaves 0..1).
    """
    step = (stop - start) / n_out
    stretch = max(step, 1.0)
    reach = (1.0 if linear else 2.0) * stretch
    centres = start + (np.arange(n_out) + 0.5) * step
    first = np.floor(centres - reach).astype(int)
    taps = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)[None]
    weights = _kernel((taps + 0.5 - centres[:, None]) / stretch, linear)
    weights /= weights.sum(axis=1, keepdims=True)
    inside = np.clip(taps, 0, n_in - 1)
    low, high = int(inside.min()), int(inside.max()) + 1
    matrix = np.zeros((n_out, high - low))
    np.add.at(matrix, (np.arange(n_out)[:, None], inside - low), weights)
    return slice(low, high), matrix.astype(np.float32)


def _kernel(x: np.ndarray, linear: bool) -> np.ndarray:
    x = np.abs(x)
    if linear:
        return np.maximum(1 - x, 0)
    near = (CUBIC_A + 2) * x**3 - (CUBIC_A + 3) * x**2 + 1
    far = CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resample(
    array: np.ndarray, start: Floats, stop: Floats, size_vox: Sequence[int], *, linear: bool = False,
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Resample the window of every channel to `size_vox`.

    Args:
        array: (C, [D,] H, W), any numeric type; only the window is read and converted.
        start, stop: window in edge coordinates, ([D,] H, W).
        size_vox: ([D,] H, W) wanted.
        box: (start, stop) in voxels, outside of which all is 0 and is not read; `None` reads all of the window.

    Returns:
        (C, *size_vox) float32.
    """
    axes = [
        axis_matrix(n, a, b, m, linear=linear)
        for n, a, b, m in zip(array.shape[1:], start, stop, size_vox, strict=True)
    ]
    if box is not None:
        axes = [_within(needed, matrix, a, b) for (needed, matrix), a, b in zip(axes, *box, strict=True)]
    out = array[(slice(None), *(needed for needed, _ in axes))].astype(np.float32)
    # the last axes shrink most and are contiguous: go from the last to the first
    for axis in range(len(axes), 0, -1):
        out = _multiply(out, axes[axis - 1][1], axis)
    return out


def _multiply(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Multiply one axis by a matrix, some rows at a time, by the columns which those use: its weights lie in a band."""
    shape = (*array.shape[:axis], len(matrix), *array.shape[axis + 1 :])
    bands = list(_bands(matrix))
    if axis == array.ndim - 1:
        rows = array.reshape(-1, array.shape[-1])
        return np.concatenate([rows[:, used] @ weights.T for _, used, weights in bands], axis=1).reshape(shape)
    stack = array.reshape(math.prod(shape[:axis]), array.shape[axis], -1)
    out = np.empty((len(stack), len(matrix), stack.shape[2]), np.float32)
    for before, after in zip(stack, out, strict=True):
        for made, used, weights in bands:
            np.matmul(weights, before[used], out=after[made])
    return out.reshape(shape)


def _bands(matrix: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield rows, the columns in which they are not all 0, and their weights there."""
    for top in range(0, len(matrix), BAND_ROWS):
        made = slice(top, top + BAND_ROWS)
        used = np.flatnonzero(matrix[made].any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        yield made, slice(low, high), np.ascontiguousarray(matrix[made, low:high])


def _within(needed: slice, matrix: np.ndarray, start: int, stop: int) -> tuple[slice, np.ndarray]:
    """Keep the input voxels start..stop-1, and one that is 0 where none is needed."""
    low = min(max(needed.start, int(start)), needed.stop - 1)
    high = max(min(needed.stop, int(stop)), low + 1)
    return slice(low, high), matrix[:, low - needed.start : high - needed.start]
