"""Check what a volume's header claims, before a reader believes it and reserves memory.

A few bytes can claim a terabyte, a zero spacing, or that the pixels lie in some other file.
Sources: NIfTI-1 and NIfTI-2 headers, https://nifti.nimh.nih.gov; MetaImage and NRRD text headers.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from her2net.errors import RawDataError, describe

MAX_VOXELS = 1 << 30
MAX_DEFLATE_RATIO = 1032
"""zlib cannot compress better than this."""
TEXT_HEADER_BYTES = 1 << 16
BLOCK = 1 << 20
TRAILING_BYTES = 64 << 20
FLOAT_TYPES = {16: "f4", 64: "f8"}
"""NIfTI datatype code -> numpy type."""
DETACHED = re.compile(rb"^\s*(?:data ?file\s*:|ElementDataFile\s*=)\s*(\S*)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class NiftiHeader:
    """What matters of a NIfTI header.

    Attributes:
        shape: in file order (x, y, z, t, ...); likewise `spacing`.
        data_offset: byte of the first voxel.
        float_type: of the voxels; a byte where they are integers.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    bits_per_voxel: int
    data_offset: int
    float_type: np.dtype

    @property
    def n_bytes(self) -> float:
        """Bytes that header and voxels take together, uncompressed."""
        return self.data_offset + math.prod(self.shape) * self.bits_per_voxel / 8


def check_header(path: Path) -> bool:
    """Refuse a volume whose header cannot be true.

    Returns:
        Whether a NIfTI file holds NaN or infinity. SimpleITK reads them as 0 without a word, see `restore_not_finite`.

    Raises:
        RawDataError: impossible size or spacing, size beyond the file or beyond her2net's limit,
            damaged compression, or pixels kept in another file.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _check_nifti(path)
    _check_text_header(path)
    return False


def restore_not_finite(path: Path, array: np.ndarray) -> np.ndarray:
    """Return the voxels of a NIfTI file with NaN and infinity put back where the file has them."""
    with _open(path) as file:
        header = _parse_nifti(path, file.read(540))
        file.seek(header.data_offset)
        stored = np.frombuffer(file.read(array.size * header.float_type.itemsize), header.float_type)
    not_finite = ~np.isfinite(stored).reshape(array.shape)
    restored = array.astype(np.float32)
    restored[not_finite] = stored.reshape(array.shape)[not_finite]
    return restored


def _open(path: Path) -> BinaryIO | Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def refuse(path: Path, what: str, *, found: object = None, expected: object = None, remedy: str = "") -> RawDataError:
    """Word the refusal of one file; the default remedy is to export it again."""
    remedy = remedy or "Export the file again from its source."
    return RawDataError(describe(what, where=path, found=found, expected=expected, remedy=remedy))


def check_voxels(path: Path, shape: tuple[int, ...], bytes_per_voxel: float, file_bytes: int) -> None:
    """Refuse a size that the file cannot hold, however well it is compressed, or that is too large to read."""
    n_voxels = math.prod(shape)
    if n_voxels > MAX_VOXELS:
        size = " x ".join(map(str, shape))
        raise refuse(path, "the image is too large", found=f"{size} voxels", expected=f"at most {MAX_VOXELS}")
    if n_voxels * bytes_per_voxel > file_bytes * MAX_DEFLATE_RATIO:
        found = f"{file_bytes} bytes for {n_voxels} voxels"
        raise refuse(path, "the file is too short for the size in its header: truncated or damaged", found=found)


def _check_nifti(path: Path) -> bool:
    try:
        with _open(path) as file:
            header = _parse_nifti(path, file.read(540))
            _check_nifti_claims(path, header)
            check_voxels(path, header.shape, header.bits_per_voxel / 8, path.stat().st_size)
            file.seek(header.data_offset)
            found, all_finite = _walk(file, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refuse(path, "the compressed file is truncated or damaged", found=str(error)) from None
    except OSError as error:
        raise refuse(path, "cannot be read", found=error.strerror or str(error)) from None
    if found < header.n_bytes:
        raise refuse(path, "truncated", found=f"{found} bytes", expected=f"{int(header.n_bytes)} by its header")
    return not all_finite


def _walk(file: BinaryIO | Any, header: NiftiHeader) -> tuple[int, bool]:
    """Read to the end, which verifies the checksum of a compressed file, but not far behind the last voxel.

    Returns:
        Number of bytes, header included, and whether all voxels are finite.
    """
    n_bytes = header.data_offset
    all_finite = True
    kind = header.float_type
    while block := file.read(BLOCK):
        within = int(min(len(block), max(0, header.n_bytes - n_bytes)))
        if kind.kind == "f" and all_finite:
            all_finite = bool(np.isfinite(np.frombuffer(block, kind, count=within // kind.itemsize)).all())
        n_bytes += len(block)
        if n_bytes > header.n_bytes + TRAILING_BYTES:
            break
    return n_bytes, all_finite


def _parse_nifti(path: Path, content: bytes) -> NiftiHeader:
    for order in "<>":
        if len(content) >= 348 and struct.unpack_from(order + "i", content)[0] == 348:
            dims = struct.unpack_from(order + "8h", content, 40)
            pixdim = struct.unpack_from(order + "8f", content, 76)
            bits = struct.unpack_from(order + "h", content, 72)[0]
            code = struct.unpack_from(order + "h", content, 70)[0]
            offset = struct.unpack_from(order + "f", content, 108)[0]
            break
        if len(content) >= 540 and struct.unpack_from(order + "i", content)[0] == 540:
            dims = struct.unpack_from(order + "8q", content, 16)
            pixdim = struct.unpack_from(order + "8d", content, 104)
            bits = struct.unpack_from(order + "h", content, 14)[0]
            code = struct.unpack_from(order + "h", content, 12)[0]
            offset = float(struct.unpack_from(order + "q", content, 168)[0])
            break
    else:
        raise refuse(
            path, "not a NIfTI file", found=f"{content[:4]!r} at its start", expected="a header of 348 or 540 bytes"
        )
    if not 1 <= dims[0] <= 7:
        raise refuse(path, "the header is damaged", found=f"{dims[0]} dimensions", expected="1 to 7")
    if not math.isfinite(offset) or not 0 <= offset < 1 << 30:
        raise refuse(path, "the header is damaged", found=f"voxels beginning at byte {offset}")
    n = dims[0]
    float_type = np.dtype(order + FLOAT_TYPES[code]) if code in FLOAT_TYPES else np.dtype(np.uint8)
    return NiftiHeader(tuple(dims[1 : n + 1]), tuple(pixdim[1 : n + 1]), bits, int(offset), float_type)


def _check_nifti_claims(path: Path, header: NiftiHeader) -> None:
    if any(size < 1 for size in header.shape):
        raise refuse(
            path, "the header gives an impossible size", found=f"{header.shape} voxels", expected="at least 1 each"
        )
    if not 1 <= header.bits_per_voxel <= 256:
        raise refuse(path, "the header is damaged", found=f"{header.bits_per_voxel} bits per voxel")
    check_spacing(path, header.spacing[:3])


def check_spacing(path: Path, spacing: tuple[float, ...]) -> None:
    """Refuse a spacing that is zero, negative, NaN, infinite or absurd."""
    if any(not math.isfinite(value) or not 1e-6 < value < 1e6 for value in spacing):
        found = " x ".join(f"{value:g}" for value in spacing) + " mm"
        remedy = "Correct the voxel spacing in the header, or export the file again."
        raise refuse(path, "the voxel spacing is impossible", found=found, expected="positive numbers", remedy=remedy)


def _check_text_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(TEXT_HEADER_BYTES)
    except OSError as error:
        raise refuse(path, "cannot be read", found=error.strerror or str(error)) from None
    is_nrrd = path.name.lower().endswith(".nrrd")
    if is_nrrd and not start.startswith(b"NRRD"):
        raise refuse(path, "not a NRRD file", found=f"{start[:4]!r} at its start", expected="'NRRD'")
    end = re.search(rb"\r?\n\r?\n", start) if is_nrrd else re.search(rb"ElementDataFile[^\n]*", start, re.IGNORECASE)
    if end is None:
        raise refuse(path, "the header has no end: truncated, damaged, or not such a file")
    detached = DETACHED.search(start[: end.end()])
    if detached and detached.group(1).upper() != b"LOCAL":
        remedy = "Save header and voxels in one file (.nii.gz)."
        raise refuse(
            path, "the voxels lie in another file", found=detached.group(1).decode("latin-1")[:80], remedy=remedy
        )
