"""Find what a scanner or a reader burned into an ultrasound picture: calipers, text, rulers and colour.

A network can learn such marks instead of the lesion, where those who placed them knew more than the picture shows.
Images are described, and changed only where the plan asks for it. The rules are cautious: a mark has to look like one, so some
are missed, mostly where a smaller copy of the picture has blurred them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from her2net.artefact import Strict

CONTRAST = 70
"""Grey levels by which a mark exceeds what remains when thin bright structures are taken away."""

BRIGHT = 170
"""Grey levels that a mark has at least; its peak comes near the brightest pixel of the picture."""

PEAK_SHARE = 0.9
COLOURED = 40
"""Difference of the largest and the smallest of red, green and blue from which a pixel has a colour."""

COLOUR_SHARE = 0.002
"""Share of coloured pixels from which a picture is not just grey with a tinted compression artefact."""

HALO_PX = 2
"""Around a mark, smoothing and compression have brightened this many pixels."""

FILL_SD_PX = 3.0
MIN_LETTERS = 3
MIN_TICKS = 5
BORDER_SHARE = 0.06
Box = tuple[int, int, int, int]


class BurnedIn(Strict):
    """Marks in one picture.

    Attributes:
        calipers: measurement crosses.
        letters: characters that stand in a row of at least three.
        ticks: marks of a ruler along a border.
        colour: share of coloured pixels, 0 below `COLOUR_SHARE`.
        boxes: (top, left, bottom, right) of every mark, in pixels; those of calipers, letters and ticks in this order.
    """

    calipers: int = 0
    letters: int = 0
    ticks: int = 0
    colour: float = 0.0
    boxes: list[list[int]] = Field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """What there is, in words."""
        found = {"calipers": self.calipers, "text": self.letters, "ruler": self.ticks, "colour": self.colour}
        return [name for name, amount in found.items() if amount]

    def touches(self, kind: str, box: Sequence[slice]) -> bool:
        """Whether a mark of a kind touches a box (rows, columns); of colour it is not known where it lies."""
        first = {"calipers": 0, "text": self.calipers, "ruler": self.calipers + self.letters}.get(kind, len(self.boxes))
        last = {"calipers": self.calipers, "text": self.calipers + self.letters}.get(kind, len(self.boxes))
        (rows, columns) = box
        return any(
            top < rows.stop and bottom > rows.start and left < columns.stop and right > columns.start
            for top, left, bottom, right in self.boxes[first:last]
        )


@dataclass(frozen=True)
class _Piece:
    """One connected bright piece: its box and its pixels (height, width) within."""

    box: Box
    pixels: np.ndarray

    @property
    def height(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def width(self) -> int:
        return self.box[3] - self.box[1]


def find_burned_in(grey: np.ndarray, rgb: np.ndarray | None = None) -> BurnedIn:
    """Look for marks in one picture.

    Args:
        grey: (H, W) uint8.
        rgb: (H, W, 3) uint8 where the file has colours.
    """
    share = 0.0 if rgb is None else float((np.ptp(rgb.astype(np.int16), axis=2) > COLOURED).mean())
    crosses, letters, ticks = _find_marks(grey)
    return BurnedIn(
        calipers=len(crosses), letters=len(letters), ticks=len(ticks), colour=share if share >= COLOUR_SHARE else 0.0,
        boxes=[list(piece.box) for piece in (*crosses, *letters, *ticks)],
    )  # fmt: skip


def _find_marks(grey: np.ndarray) -> tuple[list[_Piece], list[_Piece], list[_Piece]]:
    """Return crosses, letters and ticks."""
    pieces = find_pieces(grey)
    crosses = [piece for piece in pieces if is_cross(piece.pixels)]
    rest = [piece for piece in pieces if not is_cross(piece.pixels)]
    ticks = find_ticks(rest, grey.shape)
    return crosses, find_letters([piece for piece in rest if piece not in ticks]), ticks


def inpaint_marks(grey: np.ndarray) -> np.ndarray:
    """Return a picture (H, W) uint8 whose calipers, letters and ruler ticks are filled from around them.

    Each pixel of a mark, and those next to it, becomes the Gaussian-weighted mean of the pixels that are none. Colour is
    not taken away: a Doppler box covers what it covers.

    Source:
        Knutsson & Westin 1993, doi:10.1109/CVPR.1993.341081 (normalised convolution).
    """
    from scipy import ndimage

    marked = np.zeros(grey.shape, bool)
    for piece in (piece for kind in _find_marks(grey) for piece in kind):
        top, left, bottom, right = piece.box
        marked[top:bottom, left:right] |= piece.pixels
    if not marked.any():
        return grey
    marked = ndimage.binary_dilation(marked, np.ones((3, 3)), iterations=HALO_PX)
    known, values = (~marked).astype(np.float64), np.where(marked, 0.0, grey)
    weight = np.maximum(ndimage.gaussian_filter(known, FILL_SD_PX), 1e-12)
    filled = ndimage.gaussian_filter(values, FILL_SD_PX) / weight
    return np.where(marked, np.clip(np.rint(filled), 0, 255), grey).astype(np.uint8)


def find_pieces(grey: np.ndarray) -> list[_Piece]:
    """Return connected pieces of thin, nearly saturated structure, in reading order."""
    from scipy import ndimage

    thick = 2 * max(2, round(max(grey.shape) / 160)) + 1
    values = grey.astype(np.int16)
    peak = PEAK_SHARE * int(values.max())
    marked = (values - ndimage.grey_opening(values, (thick, thick)) >= CONTRAST) & (values >= BRIGHT)
    labels, _ = ndimage.label(marked, np.ones((3, 3)))
    pieces = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        pixels = labels[box] == index
        if values[box][pixels].max() >= peak:
            rows, columns = box
            pieces.append(_Piece((rows.start, columns.start, rows.stop, columns.stop), pixels))
    return pieces


def is_cross(pixels: np.ndarray) -> bool:
    """Whether a piece is an upright cross: two straight thin strokes over its whole height and width, meeting inside.

    Args:
        pixels: (height, width) bool.
    """
    height, width = pixels.shape
    if not (7 <= height <= 33 and 7 <= width <= 33 and 0.66 <= height / width <= 1.5):
        return False
    row, column = int(pixels.sum(axis=1).argmax()), int(pixels.sum(axis=0).argmax())
    full = pixels[row].mean() >= 0.8 and pixels[:, column].mean() >= 0.8
    inside = 0.25 <= row / (height - 1) <= 0.75 and 0.25 <= column / (width - 1) <= 0.75
    stroke = 3 + max(height, width) // 12
    near = np.zeros_like(pixels)
    near[max(0, row - stroke // 2) : row + stroke // 2 + 1] = True
    near[:, max(0, column - stroke // 2) : column + stroke // 2 + 1] = True
    return bool(full and inside and pixels[near].sum() >= 0.9 * pixels.sum())


def find_letters(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Return the pieces that stand in rows of at least three of like height and base, as letters do."""
    likely = [p for p in pieces if 5 <= p.height <= 40 and p.width <= 1.6 * p.height and p.pixels.mean() <= 0.95]
    found: list[_Piece] = []
    left_over = sorted(likely, key=lambda piece: piece.box[1])
    while left_over:
        row = [left_over.pop(0)]
        for piece in list(left_over):
            if _continues(row[-1], piece):
                row.append(piece)
                left_over.remove(piece)
        if len(row) >= MIN_LETTERS:
            found += row
    return found


def _continues(last: _Piece, piece: _Piece) -> bool:
    size = max(last.height, piece.height)
    alike = abs(last.height - piece.height) <= max(2, 0.25 * size)
    level = abs(last.box[2] - piece.box[2]) <= max(1, 0.2 * size) and abs(last.box[0] - piece.box[0]) <= max(2, 0.3 * size)
    return alike and level and 0 <= piece.box[1] - last.box[3] + 1 <= 1.2 * size


def find_ticks(pieces: Sequence[_Piece], shape: Sequence[int]) -> list[_Piece]:
    """Return small pieces near one border, in line with it and at equal distances, as a ruler's ticks are."""
    best: list[_Piece] = []
    for axis in (0, 1):  # along which the ruler runs
        across, limit = 1 - axis, BORDER_SHARE * shape[1 - axis]
        for near in (lambda p, a=across, m=limit: p.box[a] <= m,
                     lambda p, a=across, m=limit: p.box[a + 2] >= shape[a] - m):  # fmt: skip
            ticks = sorted((p for p in pieces if near(p) and max(p.height, p.width) <= 20), key=lambda p: p.box[axis])
            best = max(best, _evenly_spaced(ticks, axis), key=len)
    return best


def _evenly_spaced(ticks: Sequence[_Piece], axis: int) -> list[_Piece]:
    if len(ticks) < MIN_TICKS:
        return []
    centres = np.array([(p.box[axis] + p.box[axis + 2]) / 2 for p in ticks])
    gaps = np.diff(centres)
    even = gaps.min() > 4 and np.ptp(gaps) <= max(2, 0.15 * gaps.mean())
    return list(ticks) if even else []
