"""Check the text headers of MetaImage and NRRD files before a reader sees them.

A reader in C++ trusts such a header: a wrong number of dimensions ends the interpreter or never returns, and a file
name in it opens any file of the computer. So what it may say is narrow: numbers that agree, voxels in this very file.
Sources: MetaImage, https://itk.org/Wiki/ITK/MetaIO/Documentation; NRRD, https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from pathlib import Path

from her2net.errors import RawDataError
from her2net.raw.headers import refuse

TEXT_HEADER_BYTES = 1 << 16
DIMENSIONS = range(2, 6)
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
PER_AXIS = {b"DimSize": 1, b"ElementSpacing": 1, b"ElementSize": 1, b"Offset": 1, b"Position": 1, b"Origin": 1,
            b"CenterOfRotation": 1, b"TransformMatrix": 2, b"Rotation": 2, b"Orientation": 2}  # fmt: skip
"""Key of MetaImage -> numbers it holds, as a power of the number of dimensions."""
NRRD_ENCODINGS = (b"raw", b"txt", b"text", b"ascii", b"hex", b"gz", b"gzip", b"bz2", b"bzip2")
DAMAGED = "the header is damaged"


def check_text_header(path: Path) -> None:
    """Refuse a MetaImage or NRRD file whose header is damaged, contradicts itself or points to another file.

    Raises:
        RawDataError: names the line or the key.
    """
    try:
        with path.open("rb") as file:
            start = file.read(TEXT_HEADER_BYTES)
    except OSError as error:
        raise refuse(path, "cannot be read", found=error.strerror or str(error)) from None
    _check_nrrd(path, start) if path.name.lower().endswith(".nrrd") else _check_metaimage(path, start)


def _check_metaimage(path: Path, start: bytes) -> None:
    fields: dict[bytes, bytes] = {}
    for number, line in enumerate(start.split(b"\n")[:-1], start=1):
        line = line.removesuffix(b"\r")
        written, sign, value = (part.strip() for part in line.partition(b"="))
        key = re.sub(rb"\s", b"", written)
        if CONTROL.search(line) or b":" in key or (key and not sign):
            raise refuse(path, f"line {number} of the header is not of the form 'key = value'", found=_show(line))
        if key in fields:
            raise refuse(path, f"line {number} of the header repeats the key {_show(key)}")
        if key:
            fields[key] = value
        if key == b"ElementDataFile":
            return _check_metaimage_fields(path, fields)
    raise _no_end(path)


def _check_metaimage_fields(path: Path, fields: dict[bytes, bytes]) -> None:
    _check_inside(path, fields[b"ElementDataFile"])
    n = _check_dimensions(path, fields.get(b"NDims", b""))
    for key, power in PER_AXIS.items():
        if key in fields or key == b"DimSize":
            numbers = _numbers(fields.get(key, b""))
            sizes = key != b"DimSize" or all(value >= 1 and value == int(value) for value in numbers)
            if len(numbers) != n**power or not sizes:
                expected = f"{n**power} {'positive ' * (key == b'DimSize')}numbers"
                raise refuse(path, f"{DAMAGED}: {_show(key)}", found=_show(fields.get(key, b"")), expected=expected)
    if fields.get(b"HeaderSize", b"0") not in (b"0", b"-1"):
        raise refuse(path, f"{DAMAGED}: HeaderSize", found=_show(fields[b"HeaderSize"]), expected="0")


def _check_nrrd(path: Path, start: bytes) -> None:
    if not start.startswith(b"NRRD"):
        raise refuse(path, "not a NRRD file", found=_show(start[:4]) + " at its start", expected="NRRD")
    end = re.search(rb"\r?\n\r?\n", start)
    if end is None:
        raise _no_end(path)
    fields: dict[bytes, bytes] = {}
    for number, line in enumerate(start[: end.start()].split(b"\n")[1:], start=2):
        line = line.removesuffix(b"\r")
        key, sign, value = (part.strip() for part in line.partition(b":"))
        key = re.sub(rb"\s", b"", key).lower()
        if line.startswith(b"#") and not CONTROL.search(line):
            continue
        if CONTROL.search(line) or not key or not sign:
            raise refuse(path, f"line {number} of the header is not of the form 'key: value'", found=_show(line))
        if not value.startswith(b"="):  # key:=value is free text
            if key in fields:
                raise refuse(path, f"line {number} of the header repeats the key {_show(key)}")
            fields[key] = value
    _check_nrrd_fields(path, fields)


def _check_nrrd_fields(path: Path, fields: dict[bytes, bytes]) -> None:
    _check_inside(path, fields.get(b"datafile", b"LOCAL"))
    n = _check_dimensions(path, fields.get(b"dimension", b""))
    sizes = _numbers(fields.get(b"sizes", b""))
    if len(sizes) != n or any(value < 1 or value != int(value) for value in sizes):
        raise refuse(path, f"{DAMAGED}: sizes", found=_show(fields.get(b"sizes", b"")), expected=f"{n} positive numbers")
    if fields.get(b"encoding", b"").lower() not in NRRD_ENCODINGS:
        raise refuse(path, f"{DAMAGED}: encoding", found=_show(fields.get(b"encoding", b"")), expected="raw or gzip")
    for key in (b"lineskip", b"byteskip"):
        if fields.get(key, b"0") not in (b"0", b"-1"):
            raise refuse(path, f"{DAMAGED}: {_show(key)}", found=_show(fields[key]), expected="0")


def _check_inside(path: Path, data_file: bytes) -> None:
    if data_file.upper() != b"LOCAL":
        remedy = "Save header and voxels in one file (.nii.gz)."
        raise refuse(path, "the voxels lie in another file", found=_show(data_file), remedy=remedy)


def _check_dimensions(path: Path, text: bytes) -> int:
    if not re.fullmatch(rb"\d", text) or int(text) not in DIMENSIONS:
        raise refuse(path, f"{DAMAGED}: number of dimensions", found=_show(text), expected="2 or 3")
    return int(text)


def _numbers(text: bytes) -> list[float]:
    """Return the numbers of a line; empty if something else is among them."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return []
    return numbers if all(abs(value) < float("inf") for value in numbers) else []


def _no_end(path: Path) -> RawDataError:
    return refuse(path, "the header has no end: truncated, damaged, or not such a file")


def _show(text: bytes) -> str:
    return text[:80].decode("latin-1")
