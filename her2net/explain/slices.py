"""Small pictures for a page with many cases: the crop with its map, of a volume slice by slice."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from her2net.explain.draw import HEAT
from her2net.explain.geometry import Window
from her2net.explain.planes import Plane, cut_plane, montage
from her2net.raw.images import Volume

SIDE_PX = {2: 176, 3: 144}
"""Longest edge of a picture, by the axes of the image."""

N_SLICES = 8
QUALITY = 72
OUTLINE = (86, 180, 233)
"""Sky blue of Okabe & Ito, as in the overlays."""


def draw_slices(volume: Volume, heat: np.ndarray, mask: np.ndarray | None, window: Window) -> list[tuple[bytes, str]]:
    """Return JPEG pictures of one case and what each shows.

    A flat image gives two: the crop, and the crop with the map. A volume gives up to `N_SLICES` slices with the map.

    Args:
        volume: the original image.
        heat, mask: ([D,] H, W) on its grid; heat 0 to 1.
    """
    if heat.ndim == 2:
        plane = cut_plane(volume, heat, mask, window)
        return [(_jpeg(_paint(plane, SIDE_PX[2], warm=warm)), title) for warm, title in ((False, "crop"), (True, "with the map"))]
    return [(_jpeg(_paint(plane, SIDE_PX[3], warm=True)), plane.title) for plane in montage(volume, heat, mask, window, N_SLICES)]


def _paint(plane: Plane, side_px: int, *, warm: bool) -> Image.Image:
    """Paint the crop of a plane with the shape of a millimetre: grey values, map, outline of the mask."""
    grey = np.nan_to_num(plane.grey[plane.crop].astype(np.float32))
    low, high = np.percentile(grey, (1, 99))
    level = np.clip((grey - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    height, width = grey.shape[0] * plane.aspect, float(grey.shape[1])
    size = (max(1, round(side_px * width / max(height, width))), max(1, round(side_px * height / max(height, width))))
    pixels = np.array(Image.fromarray(level).resize(size, Image.Resampling.BILINEAR).convert("RGB"), dtype=np.float32)
    if warm:
        small = Image.fromarray(np.ascontiguousarray(plane.heat[plane.crop], dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
        colours = HEAT(np.clip(np.asarray(small), 0, 1))
        alpha = colours[..., 3:]
        pixels = pixels * (1 - alpha) + 255 * colours[..., :3] * alpha
    picture = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if plane.mask is not None:
        inside = np.array(Image.fromarray(np.ascontiguousarray(plane.mask[plane.crop])).resize(size, Image.Resampling.NEAREST))
        picture[inside & ~ndimage.binary_erosion(inside, border_value=1)] = OUTLINE
    return Image.fromarray(picture)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
