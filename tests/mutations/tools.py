"""Small ways to damage a file."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from raw_factory import read_rows, write_table

from her2net.paths import DatasetPaths

US = "imagesTr/US/C003.png"
MRI = "imagesTr/MRI/C003_0001.nii.gz"
US_MASK = "masksTr/US/C003.png"
MRI_MASK = "masksTr/MRI/C003.nii.gz"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

Edit = Callable[[bytes], bytes]
Damage = Callable[[DatasetPaths], object]


def replace_file(path: Path, content: bytes) -> None:
    """Put another file in the place of this one; never writes into the old one, which may be linked."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def edit_file(path: Path, edit: Edit) -> None:
    """Change the bytes of a file."""
    replace_file(path, edit(path.read_bytes()))


def raw(name: str, edit: Edit) -> Damage:
    """Change the bytes of a file of the raw dataset."""
    return lambda d: edit_file(d.raw / name, edit)


def become(name: str, content: bytes) -> Damage:
    """Replace a file of the raw dataset."""
    return lambda d: replace_file(d.raw / name, content)


def cut(length: int) -> Edit:
    """Keep the first `length` bytes; with a negative number, drop so many at the end."""
    return lambda content: content[:length]


def cut_share(share: float) -> Edit:
    return lambda content: content[: int(share * len(content))]


def flip(share: float, bits: int = 0xFF) -> Edit:
    """Invert the byte that lies at this share of the file."""

    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(share * len(changed))] ^= bits
        return bytes(changed)

    return edit


def unzipped(edit: Edit) -> Edit:
    """Change what a gzip file holds."""
    return lambda content: gzip.compress(edit(gzip.decompress(content)), mtime=0)


def pack(code: str, offset: int, *values: float) -> Edit:
    """Write binary values at an offset, little-endian."""

    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into("<" + code, changed, offset, *values)
        return bytes(changed)

    return edit


def header(*fields: tuple[str, int, float]) -> Damage:
    """Overwrite fields (code, offset, value) in the NIfTI header of the volume that is damaged."""

    def edit(content: bytes) -> bytes:
        for code, offset, value in fields:
            content = pack(code, offset, value)(content)
        return content

    return raw(MRI, unzipped(edit))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 0, *, rows: bytes | None = None, extra: bytes = b"") -> bytes:
    """Return a PNG whose header claims these; `rows` are the filtered scan lines, zeros by default."""
    if rows is None:
        rows = (b"\0" + bytes(range(min(width, 256))) * (width // 256 + 1))[: width + 1] * height
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_MAGIC + chunk(b"IHDR", ihdr) + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def save_picture(name: str, convert: Callable[[Image.Image], Image.Image], **options: Any) -> Damage:
    """Save the picture again, converted, under its own name."""

    def damage(d: DatasetPaths) -> None:
        path = d.raw / name
        with Image.open(path) as picture:
            converted = convert(picture.copy())
        path.unlink()
        converted.save(path, **({"format": "PNG"} | options))

    return damage


def change_ending(d: DatasetPaths, modality: str, ending: str) -> None:
    """Convert the images of a modality to another format, and declare it."""
    old = ".png" if modality == "US" else ".nii.gz"
    for part in ("Tr", "Ts"):
        for path in sorted((d.raw / f"images{part}" / modality).iterdir()):
            target = path.with_name(path.name.removesuffix(old) + ending)
            if modality == "US":
                Image.open(path).save(target)
            else:
                image = sitk.ReadImage(str(path))
                for key in image.GetMetaDataKeys():
                    image.EraseMetaData(key)
                sitk.WriteImage(image, str(target))
            path.unlink()
    set_spec(d, lambda spec: spec["modalities"][modality].update(file_ending=ending))


def other_format(modality: str, ending: str, name: str, edit: Edit) -> Damage:
    """Convert a modality to another format, and damage one file of it."""

    def damage(d: DatasetPaths) -> None:
        change_ending(d, modality, ending)
        edit_file(d.raw / name, edit)

    return damage


def set_spec(d: DatasetPaths, change: Callable[[dict[str, Any]], object]) -> None:
    """Change dataset.json."""
    path = d.raw / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def volume(name: str, change: Callable[[np.ndarray], np.ndarray], **geometry: tuple[float, ...]) -> Damage:
    """Write the volume again with other voxels (D, H, W) or another geometry (spacing, origin, direction)."""

    def damage(d: DatasetPaths) -> None:
        old = sitk.ReadImage(str(d.raw / name))
        new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old)), isVector=False)
        if new.GetDimension() == 3:
            new.CopyInformation(old) if new.GetSize() == old.GetSize() else new.SetSpacing(old.GetSpacing())
        for key, value in geometry.items():
            getattr(new, f"Set{key.capitalize()}")(value)
        (d.raw / name).unlink()
        sitk.WriteImage(new, str(d.raw / name))

    return damage


def rows(change: Callable[[list[list[str]]], object]) -> Damage:
    """Change the rows of cases.csv, header first."""

    def damage(d: DatasetPaths) -> None:
        table = read_rows(d.raw)
        changed = change(table)
        write_table(d.raw / "cases.csv", changed if isinstance(changed, list) else table)

    return damage


def link(name: str, target: str) -> Damage:
    """Put a symbolic link in the place of a file or folder."""

    def damage(d: DatasetPaths) -> None:
        path = d.raw / name
        if path.is_dir():
            path.rename(d.raw.parent / "moved_away")
        else:
            path.unlink()
        path.symlink_to(target)

    return damage


def mode(name: str, bits: int) -> Damage:
    """Change the permissions of a file or folder that no scan has read yet."""
    return lambda d: (d.scan.unlink(), os.chmod(d.raw / name, bits))
