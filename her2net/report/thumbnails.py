"""Small pictures of a case with the outline of its mask, from the original image file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from her2net.raw.dataset import Case
from her2net.raw.images import read_image, read_mask

SIDE_PX = 240
OUTLINE = (230, 159, 0)
"""Orange of Okabe & Ito: seen on black, on white, and by colour-blind readers."""
WINDOW = 3.0
"""Edge of the window shown, in edges of the lesion box; the surround helps to judge a lesion."""
LEAST_SHARE = 0.4
"""The window is at least this share of the image."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture and what it shows.

    Attributes:
        data: JPEG.
        caption: modality and place.
        alt: for readers who do not see it.
    """

    modality: str
    data: bytes
    caption: str
    alt: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.data).decode("ascii")


def draw_thumbnail(case: Case, modality: str, shown_name: str) -> Thumbnail:
    """Draw one case around its lesion: of a volume the slice with most lesion, of a dynamic series the second phase.

    Args:
        shown_name: what the report calls the case.

    Raises:
        RawDataError: an image or mask cannot be read.
    """
    volume = read_image(case.images[modality])
    mask = read_mask(case.masks[modality], volume).array if modality in case.masks else None
    plane = volume.array[min(1, len(volume.array) - 1)]
    where = ""
    if plane.ndim == 3:
        slices = plane.shape[0]
        depth = int(mask.sum(axis=(1, 2)).argmax()) if mask is not None and mask.any() else slices // 2
        plane, mask = plane[depth], None if mask is None else mask[depth]
        where = f", slice {depth + 1} of {slices}"
    spacing = (1.0, 1.0) if volume.spacing_mm is None else volume.spacing_mm[-2:]
    picture = _render(plane, mask, spacing)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    drawn = "the lesion outlined" if mask is not None and mask.any() else "no mask"
    alt = f"{modality} of case {shown_name}{where}, {drawn}"
    return Thumbnail(modality, buffer.getvalue(), f"{modality}{where}", alt, *picture.size)


def _render(plane: np.ndarray, mask: np.ndarray | None, spacing: tuple[float, ...]) -> Image.Image:
    """Cut the window, stretch the grey values between the 1st and 99th percentile, keep the shape of a millimetre."""
    rows, columns = _window(plane.shape, mask)
    plane = np.nan_to_num(plane[rows, columns].astype(np.float32))
    low, high = np.percentile(plane, (1, 99))
    grey = np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    height, width = (n * s for n, s in zip(plane.shape, spacing, strict=True))
    scale = SIDE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.array(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    if mask is not None and mask.any():
        large = np.array(Image.fromarray(mask[rows, columns]).resize(size, Image.Resampling.NEAREST))
        outline = ndimage.binary_dilation(large, iterations=1) & ~ndimage.binary_erosion(large, iterations=1)
        pixels[outline] = OUTLINE
    return Image.fromarray(pixels)


def _window(shape: tuple[int, ...], mask: np.ndarray | None) -> tuple[slice, slice]:
    if mask is None or not mask.any():
        return slice(0, shape[0]), slice(0, shape[1])
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    edge = max(WINDOW * max(axis.stop - axis.start for axis in box), LEAST_SHARE * max(shape))
    ends = []
    for axis, size in zip(box, shape, strict=True):
        half = min(edge, size) / 2
        centre = np.clip((axis.start + axis.stop) / 2, half, size - half)
        ends.append(slice(int(centre - half), int(np.ceil(centre + half))))
    return ends[0], ends[1]
