"""Check what a volume's header claims, before a reader believes it and reserves memory.

A few bytes can claim a terabyte or a zero spacing. `text_headers` does the same for MetaImage and NRRD.
Source: NIfTI-1 and NIfTI-2 headers, https://nifti.nimh.nih.gov.
"""

from __future__ import annotations

import gzip
import math
import os
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
BLOCK = 1 << 20
TRAILING_BYTES = 64 << 20
FLOAT_TYPES = {16: "f4", 64: "f8"}
"""NIfTI datatype code -> numpy type."""
LAYOUTS = {
    348: {"dim": (40, "8h"), "type": (70, "h"), "bits": (72, "h"), "spacing": (76, "8f"), "offset": (108, "f"),
          "forms": (252, "2h"), "qform": (256, "6f"), "sform": (280, "12f"), "magic": (344, "4s")},
    540: {"dim": (16, "8q"), "type": (12, "h"), "bits": (14, "h"), "spacing": (104, "8d"), "offset": (168, "q"),
          "forms": (344, "2i"), "qform": (352, "6d"), "sform": (400, "12d"), "magic": (4, "8s")},
}  # fmt: skip
"""Size of the header (NIfTI-1, NIfTI-2) -> field -> its place and binary form."""
MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
"""Of a file that holds header and voxels."""


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


@dataclass(frozen=True)
class Promise:
    """What a compressed file says of its content at its end, and the bytes that stand before the voxels."""

    head: bytes
    crc32: int

    def holds(self, voxels: np.ndarray) -> bool:
        """Whether these voxels, as stored, are what was compressed: not one byte is missing, damaged or changed."""
        return zlib.crc32(np.ascontiguousarray(voxels).data, zlib.crc32(self.head)) == self.crc32


def read_promise(path: Path) -> Promise | None:
    """Refuse a NIfTI file whose header cannot be true, without reading its voxels.

    Returns:
        The checksum of the whole content, if the length beside it is the one that the header asks for. A reader's
        voxels can be held against it, which spares decompressing the file twice. Else `None`: use `check_nifti`.

    Raises:
        RawDataError: impossible size, spacing or geometry, size beyond the file or beyond her2net's limit.
    """
    if not path.name.lower().endswith(".gz"):
        return None
    try:
        with gzip.open(path, "rb") as file:
            head = file.read(540)
            header = _parse_nifti(path, head)
            _check_nifti_claims(path, header)
            check_voxels(path, header.shape, header.bits_per_voxel / 8, path.stat().st_size)
            if header.data_offset > BLOCK:
                return None
            head = (head + file.read(max(0, header.data_offset - len(head))))[: header.data_offset]
        with path.open("rb") as plain:
            plain.seek(-8, os.SEEK_END)
            crc32, n_bytes = struct.unpack("<II", plain.read(8))
    except (EOFError, zlib.error, OSError):
        return None  # `check_nifti` says what is wrong
    return Promise(head, crc32) if n_bytes == header.n_bytes else None


def check_nifti(path: Path) -> bool:
    """Refuse a NIfTI file whose header cannot be true.

    Returns:
        Whether it holds NaN or infinity. SimpleITK reads them as 0 without a word, see `restore_not_finite`.

    Raises:
        RawDataError: impossible size, spacing or geometry, size beyond the file or beyond her2net's limit, or damaged
            compression.
    """
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
    found = _find_layout(content)
    if found is None:
        raise refuse(
            path, "not a NIfTI file", found=f"{content[:4]!r} at its start", expected="a header of 348 or 540 bytes"
        )
    size, order = found
    field = {
        name: struct.unpack_from(order + code, content, place) for name, (place, code) in LAYOUTS[size].items()
    }
    if field["magic"][0] != MAGIC[size]:
        raise refuse(path, "not a NIfTI file of one piece", found=f"magic {field['magic'][0]!r}", expected=repr(MAGIC[size]))
    n, *shape = field["dim"]
    if not 1 <= n <= 7:
        raise refuse(path, "the header is damaged", found=f"{n} dimensions", expected="1 to 7")
    offset = field["offset"][0]
    if not size + 4 <= offset < 1 << 30:  # NaN is neither
        expected = f"{size + 4} or more"
        raise refuse(path, "the header is damaged", found=f"voxels beginning at byte {offset:g}", expected=expected)
    for code, name in zip(field["forms"], ("qform", "sform"), strict=True):
        if code > 0 and not all(map(math.isfinite, field[name])):
            raise refuse(path, f"the {name} of the header holds NaN or infinity")
    code = field["type"][0]
    float_type = np.dtype(order + FLOAT_TYPES[code]) if code in FLOAT_TYPES else np.dtype(np.uint8)
    return NiftiHeader(tuple(shape[:n]), field["spacing"][1 : n + 1], field["bits"][0], int(offset), float_type)


def _find_layout(content: bytes) -> tuple[int, str] | None:
    """Return the size of the header and its byte order."""
    for order in "<>":
        for size in LAYOUTS:
            if len(content) >= size and struct.unpack_from(order + "i", content)[0] == size:
                return size, order
    return None


def _check_nifti_claims(path: Path, header: NiftiHeader) -> None:
    if any(size < 1 for size in header.shape):
        raise refuse(
            path, "the header gives an impossible size", found=f"{header.shape} voxels", expected="at least 1 each"
        )
    if not 1 <= header.bits_per_voxel <= 256:
        raise refuse(path, "the header is damaged", found=f"{header.bits_per_voxel} bits per voxel")
    check_spacing(path, header.spacing[:3])


def name_orientation(direction: tuple[float, ...] | None) -> str:
    """Return where the axes of a volume run to, such as `LPS`; oblique ones are named after the patient axis they are closest to.

    Args:
        direction: as in `Volume`; of anything but a volume the name is empty.
    """
    if direction is None or len(direction) != 9:
        return ""
    import SimpleITK as sitk  # noqa: N813

    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)


def check_spacing(path: Path, spacing: tuple[float, ...]) -> None:
    """Refuse a spacing that is zero, negative, NaN, infinite or absurd."""
    if any(not math.isfinite(value) or not 1e-6 < value < 1e6 for value in spacing):
        found = " x ".join(f"{value:g}" for value in spacing) + " mm"
        remedy = "Correct the voxel spacing in the header, or export the file again."
        raise refuse(path, "the voxel spacing is impossible", found=found, expected="positive numbers", remedy=remedy)
