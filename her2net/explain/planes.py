"""Planes of an image with its map and mask, turned as a radiologist expects them and named as anatomy does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from her2net.explain.geometry import Window, window_slices
from her2net.raw.images import Volume

PLANE_NAMES = ("sagittal", "coronal", "axial")
"""By the patient axis (x, y, z) that the plane cuts across."""

ENDS = (("R", "L"), ("A", "P"), ("I", "S"))
"""Where each patient axis comes from and where it goes (x to the left, y to the back, z to the head)."""


@dataclass(frozen=True)
class Plane:
    """One picture to be drawn.

    Attributes:
        grey, heat: (rows, columns); heat 0 to 1.
        mask: (rows, columns) bool, or `None`.
        crop: rows and columns that the network saw.
        aspect: height of a pixel over its width.
        title: what it shows.
        left, top: which side of the patient is at the left and the upper edge; empty where unknown.
    """

    grey: np.ndarray
    heat: np.ndarray
    mask: np.ndarray | None
    crop: tuple[slice, slice]
    aspect: float
    title: str
    left: str = ""
    top: str = ""


def patient_axes(volume: Volume) -> list[tuple[int, int]] | None:
    """Return, for each array axis (D, H, W), the patient axis it runs along most (0 x, 1 y, 2 z) and its sign.

    `None` where the file does not say, or two axes run along the same one.
    """
    if volume.direction is None or volume.array.ndim != 4:
        return None
    cosines = np.array(volume.direction).reshape(3, 3)[:, ::-1]  # columns: D, H, W
    axes = np.abs(cosines).argmax(axis=0)
    if len(set(axes.tolist())) < 3:
        return None
    return [(int(a), 1 if cosines[a, i] > 0 else -1) for i, a in enumerate(axes)]


def cut_plane(
    volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window, axis: int | None = None, index: int = 0
) -> Plane:
    """Cut one plane of a volume, or take the whole picture if it is flat.

    Args:
        volume: image (C, [D,] H, W); of a dynamic series the second channel is shown.
        axis: 0 D, 1 H, 2 W; `None` for a flat picture.
        index: which voxel along it.
    """
    grey = volume.array[min(1, len(volume.array) - 1)]
    inside = list(window_slices(window, grey.shape))
    if axis is None:
        return Plane(grey, heat, mask, (inside[0], inside[1]), 1.0, "")
    rows, columns = (a for a in range(3) if a != axis)
    spacing = volume.spacing_mm or (1.0, 1.0, 1.0)
    pictures = [None if a is None else np.take(a, index, axis) for a in (grey, heat, mask)]
    crop, left, top, name = (inside[rows], inside[columns]), "", "", f"axis {axis + 1}"
    axes = patient_axes(volume)
    if axes is not None:
        name = PLANE_NAMES[axes[axis][0]]
        if axes[rows][0] < axes[columns][0]:  # the head is up; without it, the back is down
            rows, columns = columns, rows
            pictures = [None if a is None else a.T for a in pictures]
            crop = (crop[1], crop[0])
        row_axis, column_axis = axes[rows][0], axes[columns][0]
        for place, (patient_axis, sign) in enumerate((axes[rows], axes[columns])):
            if _turned(patient_axis, sign):
                n = pictures[0].shape[place]  # type: ignore[union-attr]
                pictures = [None if a is None else np.flip(a, place) for a in pictures]
                turned = slice(n - crop[place].stop, n - crop[place].start)
                crop = (turned, crop[1]) if place == 0 else (crop[0], turned)
        top = ENDS[row_axis][1 if row_axis == 2 else 0]
        left = ENDS[column_axis][0]  # the head is never sideways
    title = f"{name}, {index + 1} of {grey.shape[axis]}"
    aspect = spacing[rows] / spacing[columns]
    shown, warm, outline = pictures
    return Plane(shown, warm, outline, crop, aspect, title, left, top)  # type: ignore[arg-type]


def _turned(patient_axis: int, sign: int) -> bool:
    """Whether an axis has to be flipped so that left is at the right, the back down or at the right, the head up."""
    return sign > 0 if patient_axis == 2 else sign < 0


def three_planes(volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window) -> list[Plane]:
    """Return the three planes through the maximum of the map, or of an empty map through the middle of the crop."""
    place = peak(heat, window)
    return [cut_plane(volume, heat, mask, window, axis, place[axis]) for axis in range(3)]


def montage(volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window, n: int) -> list[Plane]:
    """Return up to n slices of the crop along the first axis, evenly spaced."""
    along = window_slices(window, heat.shape)[0]
    wanted = np.linspace(along.start, along.stop - 1, min(n, along.stop - along.start)).round().astype(int)
    return [cut_plane(volume, heat, mask, window, 0, int(i)) for i in wanted]


def peak(heat: np.ndarray, window: Window) -> Sequence[int]:
    """Return the voxel of the maximum, or of an empty map the middle of the crop."""
    if heat.any():
        return [int(i) for i in np.unravel_index(int(heat.argmax()), heat.shape)]
    return [(s.start + s.stop) // 2 for s in window_slices(window, heat.shape)]
