"""Where to cut: the window around a lesion, in voxel coordinates of the image.

Coordinates are edges, not centres: voxel i covers [i, i + 1). A window may reach
over the border; what lies outside repeats the nearest voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from her2net.plan.schema import PreprocessingPlan


def lesion_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (start, stop) of the smallest box around the mask, or `None` if it is empty.

    Args:
        mask: ([D,] H, W) bool. Slices are narrowed axis by axis, so only the slab that holds the lesion is read.
    """
    start, stop = np.zeros(mask.ndim, int), np.array(mask.shape)
    view = mask
    for axis in range(mask.ndim):
        filled = np.flatnonzero(view.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(filled):
            return None
        start[axis], stop[axis] = filled[0], filled[-1] + 1
        view = view[(slice(None),) * axis + (slice(filled[0], filled[-1] + 1),)]
        # later axes see the narrowed view; earlier bounds stay valid because nothing was cut from them
    return start, stop


def crop_window(
    box: tuple[np.ndarray, np.ndarray] | None,
    shape: Sequence[int],
    spacing_mm: Sequence[float] | None,
    plan: PreprocessingPlan,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (start, stop), float, of the window the network is to see.

    Args:
        box: the lesion box in voxels; `None` takes the whole image.
        shape: ([D,] H, W) of the image.
        spacing_mm: in the same order; `None` counts voxels as if they were square.
    """
    size = np.array(shape, float)
    spacing = np.ones(len(size)) if spacing_mm is None else np.array(spacing_mm, float)
    start, stop = (np.zeros(len(size)), size) if box is None else (box[0].astype(float), box[1].astype(float))
    if box is not None:
        margin = _margin_vox(stop - start, spacing, plan)
        start, stop = start - margin, stop + margin
    if plan.aspect == "squash":
        return np.maximum(start, 0), np.minimum(stop, size)
    edges_mm = (stop - start) * spacing
    kept = slice(None) if plan.aspect == "keep" else slice(-2, None)
    edges_mm[kept] = edges_mm[kept].max()
    centre, half = (start + stop) / 2, edges_mm / spacing / 2
    return _fit_inside(centre - half, centre + half, size)


def _margin_vox(edges: np.ndarray, spacing: np.ndarray, plan: PreprocessingPlan) -> np.ndarray:
    if plan.margin_unit == "px":
        return np.full(len(edges), plan.margin)
    if plan.margin_unit == "mm":
        return plan.margin / spacing
    return plan.margin * (edges * spacing).max() / spacing


def _fit_inside(start: np.ndarray, stop: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the window into the image on every axis on which it fits, centre it on the image where it does not."""
    edges = stop - start
    inside = np.clip(start, 0, np.maximum(size - edges, 0))
    start = np.where(edges <= size, inside, (size - edges) / 2)
    return start, start + edges


def widen(
    window: tuple[np.ndarray, np.ndarray], plan: PreprocessingPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Grow the window so that `stored_vox` voxels of the same size cover it and the room around it."""
    start, stop = window
    room = (stop - start) / np.array(plan.input_vox) * (np.array(plan.stored_vox) - np.array(plan.input_vox)) / 2
    return start - room, stop + room
