"""Read every kind of image file into one form, `Volume`, with one axis order.

Arrays are `(C, H, W)` or `(C, D, H, W)` and `spacing_mm` follows the same order; the reversed
order of SimpleITK is dealt with here and nowhere else. Flat pictures go through Pillow, volumes
through SimpleITK. A file that is damaged, animated, or claims an absurd size is refused by name.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from her2net.artefact import load_json, write_bytes
from her2net.errors import Her2netError, RawDataError, describe
from her2net.raw.headers import check_nifti, check_spacing, check_voxels, read_promise, refuse, restore_not_finite
from her2net.raw.pictures import narrow, quiet_stderr, read_picture
from her2net.raw.text_headers import check_text_header

if TYPE_CHECKING:  # else where a volume is read: it takes a third of a second, and most processes read none
    import SimpleITK as sitk  # noqa: N813

ENDINGS_2D = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ENDINGS_3D = (".nii.gz", ".nii", ".mha", ".nrrd")
ENDINGS = (*ENDINGS_2D, *ENDINGS_3D)
NIFTI = "NiftiImageIO"
READERS = {"i.gz": NIFTI, ".nii": NIFTI, ".mha": "MetaImageIO", "nrrd": "NrrdImageIO"}
"""Last four letters -> reader of SimpleITK, so that no other one tries its luck with a damaged file."""
LOSSY_ENDINGS = (".jpg", ".jpeg")
CHANNEL_SUFFIX = re.compile(r"^(.+)_\d{4}$")
MAX_PIXEL_MM = 10.0
SPACING_TOLERANCE = 1e-3
"""Relative; NIfTI stores 32-bit floats and tools round."""
DIRECTION_TOLERANCE = 1e-3
ORIGIN_TOLERANCE_VOX = 0.1


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a mask with its place in space.

    Attributes:
        array: image (C, H, W) or (C, D, H, W), of uint8, int16, uint16 or float32; mask bool (H, W) or (D, H, W).
        spacing_mm: (H, W) or (D, H, W) order; `None` where neither the file nor, for a picture, its sidecar says.
        origin: as SimpleITK gives it (x, y, z); `None` for pictures.
        direction: row-major direction cosines as SimpleITK gives them; `None` for pictures.
    """

    array: np.ndarray
    spacing_mm: tuple[float, ...] | None = None
    origin: tuple[float, ...] | None = None
    direction: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GridDifference:
    """One way in which two grids differ: `quantity` is size, spacing, origin or direction."""

    quantity: str
    found: str
    expected: str


def is_3d(file_ending: str) -> bool:
    """Whether files of this ending are read as volumes; a flat image may lie in such a file, too."""
    return file_ending.lower() in ENDINGS_3D


def read_image(paths: Sequence[Path]) -> Volume:
    """Read an image, one file per channel.

    Returns:
        Volume with array (C, H, W) or (C, D, H, W).

    Raises:
        RawDataError: a file is unreadable, truncated, animated or too large, or the channels do not share a grid.
    """
    if not paths:
        raise ValueError("read_image needs at least one path")
    channels = [_read_file(path) for path in paths]
    first = channels[0]
    for path, channel in zip(paths[1:], channels[1:], strict=True):
        differences = compare_grids(channel, first, has_channels=False)
        if differences:
            text = "; ".join(
                f"{d.quantity} {d.found}, {d.quantity} of the first channel {d.expected}" for d in differences
            )
            remedy = f"Resample it onto the grid of {paths[0].name}."
            raise RawDataError(describe("the channels do not share a grid", where=path, found=text, remedy=remedy))
    sidecar = find_sidecar(paths[0])
    if sidecar is not None:
        first = replace(first, spacing_mm=read_spacing(sidecar))
    if len(channels) == 1:
        return replace(first, array=first.array[np.newaxis])
    dtype = np.result_type(*(channel.array.dtype for channel in channels))
    dtype = dtype if dtype in (np.uint8, np.int16, np.uint16) else np.dtype(np.float32)
    return replace(first, array=np.stack([channel.array.astype(dtype, copy=False) for channel in channels]))


def find_sidecar(image: Path) -> Path | None:
    """Return `<case>.json` beside a picture, which tells its pixel spacing; `None` without one, and for volumes."""
    ending = next((e for e in ENDINGS_2D if image.name.lower().endswith(e)), None)
    if ending is None:
        return None
    stem = image.name[: -len(ending)]
    names = [stem, match[1]] if (match := CHANNEL_SUFFIX.match(stem)) else [stem]
    return next((path for name in names if (path := image.with_name(f"{name}.json")).is_file()), None)


def read_spacing(sidecar: Path) -> tuple[float, float]:
    """Return `spacing_mm` of a sidecar: the height and the width of a pixel. Other keys are of no concern.

    Raises:
        RawDataError: not JSON, or no two positive numbers.
    """
    try:
        found = load_json(sidecar)
    except Her2netError as error:
        raise RawDataError(str(error)) from None
    value = found.get("spacing_mm") if isinstance(found, dict) else None
    values = value if isinstance(value, list) else []
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or len(values) != 2 or not all(0 < v <= MAX_PIXEL_MM for v in values):
        expected = f'{{"spacing_mm": [height, width]}} of a pixel in millimetres, above 0 and at most {MAX_PIXEL_MM:g}'
        raise refuse(sidecar, "tells no pixel spacing", found=str(found)[:80], expected=expected,
                     remedy="Correct the file, or remove it if the spacing is not known.")  # fmt: skip
    return float(values[0]), float(values[1])


def read_mask(path: Path, like: Volume | None = None) -> Volume:
    """Read a mask; every value above 0 is lesion.

    Args:
        path: a volume, or a picture in which any colour above 0 counts.
        like: the image it belongs to. For a flat image, a volume of one slice (as ITK-SNAP writes) is flattened.

    Returns:
        Volume with a bool array (H, W) or (D, H, W).

    Raises:
        RawDataError: unreadable, or not on the grid of `like`.
    """
    raw = read_mask_values(path, like)
    differences = compare_grids(raw, like) if like is not None else []
    if differences:
        text = "; ".join(f"{d.quantity} {d.found}, that of the image {d.expected}" for d in differences)
        raise RawDataError(
            describe("the mask does not lie on its image", where=path, found=text, remedy=mask_remedy(raw, like))
        )
    return replace(raw, array=raw.array > 0)


def read_mask_values(path: Path, like: Volume | None = None) -> Volume:
    """Read a mask as `read_mask` does, but keep its values and do not compare it with its image."""
    raw = _read_file(path, mask=True)
    if like is not None and like.array.ndim == 3 and raw.array.ndim == 3 and raw.array.shape[0] == 1:
        return Volume(raw.array[0])
    return raw


def write_nifti(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write an array in the geometry of an image, as compressed NIfTI, atomically.

    Args:
        path: ends in `.nii.gz`.
        array: ([D,] H, W) on the grid of `like`.
        like: the image. A flat picture has no geometry: it becomes one slice with voxels of 1 mm, which is how viewers
            of volumes open a picture.
    """
    import SimpleITK as sitk  # noqa: N813

    flat = like.spacing_mm is None or like.origin is None or like.direction is None
    image = sitk.GetImageFromArray(array[np.newaxis] if flat and array.ndim == 2 else array)
    if not flat:
        image.SetSpacing(like.spacing_mm[::-1])  # type: ignore[index]
        image.SetOrigin(like.origin)
        image.SetDirection(like.direction)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "image.nii.gz"
        sitk.WriteImage(image, str(temporary), useCompression=True)
        write_bytes(path, temporary.read_bytes())


def mask_remedy(mask: Volume, image: Volume | None) -> str:
    """Say how a mask that does not fit its image is put right."""
    if image is not None and mask.array.shape == image.array.shape[1:][::-1] and mask.array.ndim == 2:
        return "Its rows and columns are swapped: transpose it, or draw it on the image file itself."
    return "Draw or resample the mask on this very image."


def compare_grids(volume: Volume, reference: Volume, *, has_channels: bool = True) -> list[GridDifference]:
    """List how the grid of a mask or channel differs from a reference; geometry that either lacks is not compared.

    Args:
        volume: without a channel axis.
        reference: the image, or with `has_channels=False` another channel.
    """
    shape = reference.array.shape[1:] if has_channels else reference.array.shape
    if volume.array.shape != shape:
        return [GridDifference("size", _by(volume.array.shape), _by(shape))]
    if volume.spacing_mm is None or reference.spacing_mm is None:
        return []
    if volume.origin is None or reference.origin is None or volume.direction is None or reference.direction is None:
        return []  # a picture with a sidecar has no place in space
    found: list[GridDifference] = []
    if not np.allclose(volume.spacing_mm, reference.spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
        found.append(GridDifference("spacing", _by(volume.spacing_mm) + " mm", _by(reference.spacing_mm) + " mm"))
    tolerance_mm = ORIGIN_TOLERANCE_VOX * min(reference.spacing_mm)
    if not np.allclose(volume.origin, reference.origin, rtol=0, atol=tolerance_mm):
        found.append(GridDifference("origin", _vector(volume.origin), _vector(reference.origin)))
    if not np.allclose(volume.direction, reference.direction, rtol=0, atol=DIRECTION_TOLERANCE):
        found.append(GridDifference("direction", _vector(volume.direction), _vector(reference.direction)))
    return found


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _vector(values: Sequence[float] | None) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _read_file(path: Path, *, mask: bool = False) -> Volume:
    try:
        if not path.is_file():
            raise refuse(path, "no such file" if not path.exists() else "is not a file", remedy="Put the image there.")
        if path.stat().st_size == 0:
            raise refuse(path, "the file is empty (0 bytes)")
        return _read_volume(path) if path.name.lower().endswith(ENDINGS_3D) else Volume(read_picture(path, mask=mask))
    except OSError as error:
        raise refuse(path, "cannot be read", found=error.strerror or str(error)) from None


def _read_volume(path: Path) -> Volume:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # SimpleITK would end the interpreter
        remedy = "Rename the file, or the folder in which it lies."
        raise refuse(path, "the path holds bytes that are not UTF-8", remedy=remedy) from None
    import SimpleITK as sitk  # noqa: N813

    promise, holds_not_finite = None, False
    if READERS[path.name.lower()[-4:]] != NIFTI:
        check_text_header(path)
    elif (promise := read_promise(path)) is None:
        holds_not_finite = check_nifti(path)
    try:
        with quiet_stderr():
            reader = sitk.ImageFileReader()
            reader.SetImageIO(READERS[path.name.lower()[-4:]])
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            _check_information(path, reader)
            image = reader.Execute()
    except RuntimeError as error:
        if promise is not None:
            check_nifti(path)  # which knows more of what is wrong
        raise refuse(path, "not readable as a volume", found=_reason(error)) from None
    if promise is not None and not promise.holds(sitk.GetArrayViewFromImage(image)):  # damaged, scaled or not finite
        holds_not_finite = check_nifti(path)
    volume = _from_sitk(path, image)
    return replace(volume, array=restore_not_finite(path, volume.array)) if holds_not_finite else volume


def _check_information(path: Path, reader: sitk.ImageFileReader) -> None:
    import SimpleITK as sitk  # noqa: N813

    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        found = f"{reader.GetNumberOfComponents()} components per voxel"
        raise refuse(
            path, "a voxel holds more than one number", found=found, expected="1", remedy="Save one file per channel."
        )
    size = tuple(int(n) for n in reader.GetSize())
    if any(n != 1 for n in size[3:]):
        remedy = "Split it into one file per channel or time point (<case>_0000, <case>_0001, ...)."
        raise refuse(
            path,
            "the image has more than three dimensions",
            found=f"{_by(size)} (x, y, z, ...)",
            expected="three",
            remedy=remedy,
        )
    if any(n < 1 for n in size):
        raise refuse(path, "the image is empty", found=f"{_by(size)} voxels")
    check_voxels(path, size, 1, path.stat().st_size)


def _from_sitk(path: Path, image: sitk.Image) -> Volume:
    import SimpleITK as sitk  # noqa: N813

    n = min(image.GetDimension(), 3)
    array = sitk.GetArrayFromImage(image)
    array = array.reshape(array.shape[array.ndim - n :])
    spacing = tuple(float(v) for v in image.GetSpacing()[:n])
    check_spacing(path, spacing)
    matrix = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:n, :n]
    origin = np.array(image.GetOrigin()[:n])
    if not np.isfinite(matrix).all() or not np.isfinite(origin).all():
        raise refuse(path, "origin or direction holds NaN or infinity")
    if not np.allclose(matrix @ matrix.T, np.eye(n), rtol=0, atol=0.01):
        raise refuse(
            path, "the axes are sheared or not perpendicular", remedy="Resample the image onto a rectangular grid."
        )
    return Volume(narrow(array), spacing[::-1], tuple(origin.tolist()), tuple(matrix.ravel().tolist()))


def _reason(error: Exception) -> str:
    lines = [line.split("ITK ERROR:")[-1].strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return reason.split("): ", 1)[-1][:160]
