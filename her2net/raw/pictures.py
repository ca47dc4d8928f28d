"""Decode flat pictures (PNG, JPEG, TIFF, BMP) into one grey channel, and refuse what is not one picture."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from her2net.errors import RawDataError
from her2net.raw.headers import refuse

PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB")
GREY_MODES = ("1", "L", "LA", "I", "F")
MAX_PIXELS = 170_000_000
"""Just below where Pillow itself takes a picture for a decompression bomb."""

_stderr_lock = threading.Lock()


def read_picture(path: Path, *, mask: bool) -> np.ndarray:
    """Return (H, W), grey, in the precision of the file."""
    try:
        with warnings.catch_warnings(), quiet_stderr():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=PILLOW_FORMATS) as picture:
                _check_picture(path, picture)
                picture.load()
                return _to_values(picture) if mask else _to_grey(picture)
    except RawDataError:
        raise
    except Image.DecompressionBombError:
        raise refuse(path, "the picture is too large", expected=f"at most {MAX_PIXELS // 10**6} megapixels") from None
    except Image.UnidentifiedImageError:
        raise refuse(path, "not a readable picture", expected="a PNG, JPEG, TIFF or BMP file") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise refuse(
            path, "the picture is truncated or damaged", found=str(error)[:120] or type(error).__name__
        ) from None


def read_colours(path: Path) -> np.ndarray | None:
    """Return (H, W, 3) uint8 of a picture that `read_picture` can read, `None` if it is grey."""
    with Image.open(path, formats=PILLOW_FORMATS) as picture:
        if picture.mode in GREY_MODES or picture.mode.startswith("I;16"):
            return None
        return np.asarray(picture.convert("RGB"))


def _check_picture(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        expected = f"at most {MAX_PIXELS // 10**6} megapixels"
        raise refuse(path, "the picture is too large", found=f"{width} x {height} pixels", expected=expected)
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames > 1:
        remedy = "Save the one frame to be classified as a PNG."
        raise refuse(
            path,
            "the picture is animated or has several pages",
            found=f"{n_frames} frames",
            expected="1",
            remedy=remedy,
        )


def _to_grey(picture: Image.Image) -> np.ndarray:
    """Return the ITU-R 601 luminance; transparency is ignored; grey of more than 8 bits keeps its precision."""
    if picture.mode.startswith("I;16"):
        return np.ascontiguousarray(np.asarray(picture).astype(np.uint16))
    if picture.mode in ("I", "F"):
        return narrow(np.asarray(picture))
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"), dtype=np.uint8)
    if picture.mode == "LA":
        return np.array(picture.getchannel("L"), dtype=np.uint8)
    return np.array(picture.convert("RGB").convert("L"), dtype=np.uint8)


def _to_values(picture: Image.Image) -> np.ndarray:
    """Return mask values: of a coloured picture the brightest channel, so that no dark colour rounds to 0."""
    if picture.mode in GREY_MODES or picture.mode.startswith("I;16"):
        return _to_grey(picture)
    return np.asarray(picture.convert("RGB")).max(axis=2)


def narrow(array: np.ndarray) -> np.ndarray:
    """Return the array as uint8, int16, uint16 or float32, whichever holds it first."""
    if array.dtype in (np.uint8, np.int16, np.uint16, np.float32):
        return np.ascontiguousarray(array)
    if array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        for dtype in (np.int16, np.uint16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence what C libraries print to the error stream; what is wrong is raised as an error instead."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with _stderr_lock:
        try:
            saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # no error stream, as in a windowed program
            yield
            return
        try:
            os.dup2(sink, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(sink)
