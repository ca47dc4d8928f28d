"""Pictures of maps: one overlay per case, and a contact sheet of many."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from her2net.artefact import write_bytes
from her2net.explain.geometry import Window
from her2net.explain.planes import Plane, cut_plane, montage, peak, three_planes
from her2net.raw.images import Volume

OUTLINE, FRAME = "#56B4E9", "#E69F00"
"""Sky blue and orange of Okabe & Ito, as in the preview of the plan."""

MOST_OPAQUE = 0.75
N_MONTAGE = 12
N_COLUMNS = 6
TILE_PX = 160


def _heat_colours() -> ListedColormap:
    """Inferno, perceptually uniform and safe for colour-blind readers; what is cold is transparent."""
    colours = colormaps["inferno"](np.linspace(0.15, 1, 256))
    colours[:, 3] = MOST_OPAQUE * np.clip(np.linspace(0, 2, 256), 0, 1)
    return ListedColormap(colours, "heat")


HEAT = _heat_colours()


@dataclass(frozen=True)
class Caption:
    """What stands on the picture of a case.

    Attributes:
        method: in words.
        who: whose network, e.g. `fold 2, which never saw this patient`.
        label_name: the known class; `None` where it is unknown or sealed.
    """

    case_id: str
    modality: str
    method: str
    class_name: str
    probability: float
    who: str
    label_name: str | None

    def lines(self) -> str:
        """Return the heading."""
        label = f" · labelled {self.label_name}" if self.label_name else ""
        return (
            f"{self.modality} {self.case_id} · P({self.class_name}) = {self.probability:.2f}{label}\n"
            f"{self.method} for {self.class_name} · {self.who}"
        )


@dataclass(frozen=True)
class Tile:
    """One case of the contact sheet, small."""

    plane: Plane
    title: str


def draw_overlay(
    path: Path, volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window, caption: Caption
) -> None:
    """Draw one case: the plain image with the crop, and the crop with the map; of a volume three planes and a montage.

    Args:
        volume: the original image.
        heat, mask: ([D,] H, W) on its grid; heat 0 to 1.
    """
    if heat.ndim == 2:
        plane = cut_plane(volume, heat, mask, window)
        figure, rows = _figure(1, 2, 4.6)
        _show(rows[0, 0], replace(plane, title="image"), heat=False, zoom=False)
        _show(rows[0, 1], replace(plane, title="what the network saw, with the map"))
    else:
        slices = montage(volume, heat, mask, window, N_MONTAGE)
        n_rows = -(-len(slices) // N_COLUMNS)
        figure, rows = _figure(1 + n_rows, N_COLUMNS, 2.4)
        for i, plane in enumerate(three_planes(volume, heat, mask, window)):
            _show(rows[0, 2 * i], plane, heat=False, zoom=False)
            _show(rows[0, 2 * i + 1], replace(plane, title=f"{plane.title}: crop with the map"))
        for axis, plane in zip(rows[1:].flat, slices, strict=False):
            _show(axis, plane)
    _legend(figure, caption.class_name, has_mask=mask is not None and bool(mask.any()))
    nothing = "" if heat.any() else "\nNo place speaks for this class: the map is empty."
    figure.suptitle(caption.lines() + nothing, fontsize=10)
    _save(figure, path)


def make_tile(
    volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window, caption: Caption
) -> Tile:
    """Return the crop of one case, small: of a volume the slice through the maximum."""
    axis = None if heat.ndim == 2 else 0
    plane = cut_plane(volume, heat, mask, window, axis, peak(heat, window)[0])
    step = max(1, max(s.stop - s.start for s in plane.crop) // TILE_PX)
    cut = tuple(slice(s.start, s.stop, step) for s in plane.crop)
    whole = tuple(slice(0, len(range(s.start, s.stop, s.step))) for s in cut)
    small = replace(
        plane, grey=plane.grey[cut].copy(), heat=plane.heat[cut].copy(), crop=(whole[0], whole[1]),
        mask=None if plane.mask is None else plane.mask[cut].copy(), title="", left="", top="",
    )  # fmt: skip
    return Tile(small, f"{caption.case_id}\n{caption.class_name} {caption.probability:.2f}")


def draw_contact_sheet(path: Path, tiles: Sequence[Tile], heading: str) -> None:
    """Draw many cases side by side."""
    columns = min(8, len(tiles))
    n_rows = -(-len(tiles) // columns)
    figure, axes = _figure(n_rows, columns, 1.7)
    for axis, tile in zip(axes.flat, tiles, strict=False):
        _show(axis, tile.plane)
        axis.set_title(tile.title, fontsize=7)
    _legend(figure, "the class named", has_mask=any(tile.plane.mask is not None for tile in tiles), frame=False)
    figure.suptitle(heading, fontsize=10)
    _save(figure, path)


def _figure(n_rows: int, n_columns: int, side_in: float) -> tuple[Figure, Any]:
    width = max(side_in * n_columns + 0.9, 7.0)
    figure = Figure(figsize=(width, side_in * n_rows + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _show(axis: Any, plane: Plane, *, heat: bool = True, zoom: bool = True) -> None:
    low, high = np.percentile(plane.grey[plane.crop] if zoom else plane.grey, [1, 99])
    axis.imshow(plane.grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-3), aspect=plane.aspect)
    if heat:
        axis.imshow(plane.heat, cmap=HEAT, vmin=0, vmax=1, aspect=plane.aspect, interpolation="nearest")
    if plane.mask is not None and plane.mask.any() and not plane.mask.all() and min(plane.mask.shape) > 1:  # a line has no outline
        axis.contour(plane.mask, levels=[0.5], colors=OUTLINE, linewidths=1.2)
    rows, columns = plane.crop
    if zoom:
        axis.set_xlim(columns.start - 0.5, columns.stop - 0.5)
        axis.set_ylim(rows.stop - 0.5, rows.start - 0.5)
    else:
        corner = (columns.start - 0.5, rows.start - 0.5)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=FRAME, linestyle="--", linewidth=1.2))
    sides: dict[str, Any] = {"transform": axis.transAxes, "color": "white", "fontsize": 8}
    axis.text(0.02, 0.5, plane.left, va="center", **sides)
    axis.text(0.5, 0.98, plane.top, ha="center", va="top", **sides)
    axis.set_title(plane.title, fontsize=8)
    axis.set_anchor("N")  # pictures of any shape begin in one line, below their titles


def _legend(figure: Figure, class_name: str, *, has_mask: bool, frame: bool = True) -> None:
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=figure.axes, fraction=0.025, pad=0.02, shrink=0.8, panchor=False)
    bar.ax.set_facecolor("0.45")  # about the grey that the colours lie on
    bar.set_label(f"speaks for {class_name}\n(1: most in this case)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    lines = [Line2D([], [], color=OUTLINE, label="mask of the lesion")] if has_mask else []
    lines += [Line2D([], [], color=FRAME, linestyle="--", label="crop the network saw")] if frame else []
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_bytes(path, buffer.getvalue())
