"""Damaged volumes: NIfTI, and the text headers of MetaImage and NRRD."""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable

import numpy as np
import SimpleITK as sitk  # noqa: N813

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import (
    MRI,
    Edit,
    become,
    cut,
    cut_share,
    edit_file,
    flip,
    header,
    link,
    other_format,
    pack,
    raw,
    replace_file,
    unzipped,
    volume,
)

VOLUME = Kind("volume", (VERIFY, PLAN))
refused, accepted = VOLUME.refused, VOLUME.accepted
DIM, TYPE, BITS, PIXDIM, OFFSET, SLOPE, INTERCEPT, QFORM, SFORM, QUATERN, SROW, MAGIC = (
    40, 70, 72, 76, 108, 112, 116, 252, 254, 256, 280, 344,
)  # fmt: skip
NAN, INF = math.nan, math.inf
SPACING = "voxel spacing is impossible"
MHA = "imagesTr/MRI/C003_0001.mha"
NRRD = "imagesTr/MRI/C003_0001.nrrd"


def both_channels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[DatasetPaths], None]:
    """Change both channels of the case, and leave its mask out."""

    def damage(d: DatasetPaths) -> None:
        for channel in range(2):
            volume(f"imagesTr/MRI/C003_{channel:04d}.nii.gz", change)(d)
        (d.raw / "masksTr/MRI/C003.nii.gz").unlink()

    return damage


def header_of_all(*fields: tuple[str, int, float]) -> Callable[[DatasetPaths], None]:
    """Change the headers of the case's channels and of its mask alike."""

    def edit(content: bytes) -> bytes:
        for code, offset, value in fields:
            content = pack(code, offset, value)(content)
        return content

    def damage(d: DatasetPaths) -> None:
        for name in ("imagesTr/MRI/C003_0000.nii.gz", MRI, "masksTr/MRI/C003.nii.gz"):
            edit_file(d.raw / name, unzipped(edit))

    return damage


def big_endian(content: bytes) -> bytes:
    """Return the volume as an old workstation wrote it."""
    swapped = bytearray(content)
    for code, start, count in (("i", 0, 1), ("h", 40, 8), ("h", 68, 4), ("f", 76, 8), ("f", 108, 3), ("h", 120, 1),
                               ("f", 124, 4), ("h", 252, 2), ("f", 256, 18)):  # fmt: skip
        struct.pack_into(f">{count}{code}", swapped, start, *struct.unpack_from(f"<{count}{code}", content, start))
    voxels = np.frombuffer(content[352:], "<i2")
    return bytes(swapped[:352]) + voxels.astype(">i2").tobytes()


def four_d(n: int, components: int = 1) -> Callable[[DatasetPaths], None]:
    """Stack the volume n times along a fourth axis, or give each voxel several numbers on a fifth."""

    def edit(content: bytes) -> bytes:
        content = pack("8h", DIM, 5 if components > 1 else 4, 24, 24, 8, n, components, 1, 1)(content)
        return content[:352] + content[352:] * (n * components)

    return raw(MRI, unzipped(edit))


def zip_bomb(d: DatasetPaths) -> None:
    """Two gigabytes behind the last voxel, as 2 MB."""
    content = gzip.decompress((d.raw / MRI).read_bytes())
    part = gzip.compress(bytes(1 << 28), 9, mtime=0)
    replace_file(d.raw / MRI, gzip.compress(content, mtime=0) + part * 8)


def as_folder(d: DatasetPaths) -> None:
    (d.raw / MRI).unlink()
    (d.raw / MRI).mkdir()


def text_header(modify: Callable[[bytes], bytes]) -> Edit:
    """Change the text header of a MetaImage or NRRD file, not its voxels."""

    def edit(content: bytes) -> bytes:
        end = content.index(b"\n\n") if content.startswith(b"NRRD") else content.index(b"LOCAL")
        return modify(content[:end]) + content[end:]

    return edit


def swap(old: bytes, new: bytes) -> Edit:
    """Replace words of a text header that must be there."""

    def modify(text: bytes) -> bytes:
        assert old in text, text
        return text.replace(old, new)

    return text_header(modify)


def one_slice(d: DatasetPaths) -> None:
    for channel in range(2):
        volume(f"imagesTr/MRI/C003_{channel:04d}.nii.gz", lambda a: a[:1])(d)
    volume("masksTr/MRI/C003.nii.gz", lambda a: a[3:4])(d)


def flat(d: DatasetPaths) -> None:
    for channel in range(2):
        path = d.raw / f"imagesTr/MRI/C003_{channel:04d}.nii.gz"
        image = sitk.ReadImage(str(path))[:, :, 3]
        path.unlink()
        sitk.WriteImage(image, str(path))
    (d.raw / "masksTr/MRI/C003.nii.gz").unlink()


def unzipped_twice(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def secret(d: DatasetPaths) -> None:
    (d.roots.raw / "secret.raw").write_bytes(bytes(range(256)) * 36)


def mha(edit: Edit) -> Callable[[DatasetPaths], None]:
    return other_format("MRI", ".mha", MHA, edit)


def nrrd(edit: Edit) -> Callable[[DatasetPaths], None]:
    return other_format("MRI", ".nrrd", NRRD, edit)


def to_elsewhere(ending: str, name: str, edit: Edit) -> Callable[[DatasetPaths], None]:
    """Let the header point to a file outside the dataset."""

    def damage(d: DatasetPaths) -> None:
        secret(d)
        other_format("MRI", ending, name, edit)(d)

    return damage


MHA_HEAD = (b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 24 24 8\n"
            b"ElementSpacing = 0.8 0.8 2.5\nElementType = MET_SHORT\n")  # fmt: skip
NRRD_HEAD = (b"NRRD0004\ntype: short\ndimension: 3\nsizes: 24 24 8\nspacings: 0.8 0.8 2.5\nencoding: raw\n"
             b"endian: little\n")  # fmt: skip
ELSEWHERE = "voxels lie in another file"

MUTATIONS: list[Mutation] = [
    *(refused(f"cut to {n} bytes", raw(MRI, cut(n)), MRI, why)
      for n, why in ((0, "0 bytes"), (1, "truncated"), (9, "truncated"), (18, "truncated"), (100, "truncated"))),
    *(refused(f"cut to {share:.0%}", raw(MRI, cut_share(share)), MRI, "truncated") for share in (0.25, 0.5, 0.99)),
    *(refused(f"unpacked, cut to {n} bytes, packed", raw(MRI, unzipped(cut(n))), MRI, why)
      for n, why in ((0, "not a NIfTI"), (4, "not a NIfTI"), (347, "not a NIfTI"), (348, "truncated"),
                     (352, "truncated"), (5000, "truncated"), (-1, "truncated"))),
    refused("checksum of gzip missing", raw(MRI, cut(-8)), MRI, "truncated"),
    refused("checksum of gzip wrong", raw(MRI, lambda b: b[:-8] + bytes(4) + b[-4:]), MRI, "CRC"),
    refused("byte flipped in the compressed data", raw(MRI, flip(0.5)), MRI, "damaged"),
    refused("gzip of text", become(MRI, gzip.compress(b"hello" * 200)), MRI, "not a NIfTI file"),
    refused("text instead", become(MRI, b"hello" * 200), MRI, "damaged"),
    refused("not compressed", raw(MRI, gzip.decompress), MRI, "damaged"),
    refused("compressed twice", raw(MRI, unzipped_twice), MRI, "not a NIfTI file"),
    refused("garbage after the compressed data", raw(MRI, lambda b: b + b"x" * 99), MRI, "Not a gzipped file"),
    accepted("two gigabytes unfold after the last voxel", zip_bomb, "reading stops behind the last voxel"),
    accepted("zeros after the last voxel", raw(MRI, unzipped(lambda b: b + bytes(999))), "nothing is missing"),
    accepted("compressed in two parts", raw(MRI, lambda b: gzip.compress(gzip.decompress(b)[:999])
                                            + gzip.compress(gzip.decompress(b)[999:])), "gzip allows it"),
    accepted("big-endian", raw(MRI, unzipped(big_endian)), "the format allows it"),
    refused("header of another size", header(("i", 0, 349)), MRI, "not a NIfTI file"),
    refused("magic of a header without voxels", header(("4s", MAGIC, b"ni1\0")), MRI, "not a NIfTI file of one piece"),
    refused("magic overwritten", header(("4s", MAGIC, b"\xff\xff\xff\xff")), MRI, "not a NIfTI file of one piece"),
    refused("magic of Analyze 7.5", header(("4s", MAGIC, bytes(4))), MRI, "not a NIfTI file of one piece"),
    *(refused(f"{n} dimensions", header(("h", DIM, n)), MRI, "expected 1 to 7") for n in (0, 8, -1)),
    refused("one dimension", header(("h", DIM, 1)), MRI),
    *(refused(f"size {n} on the first axis", header(("h", DIM + 2, n)), MRI, "impossible size") for n in (0, -5)),
    refused("size larger than the data", header(("h", DIM + 2, 25)), MRI, "truncated"),
    refused("header claims 32767 x 32767 x 32767",
            header(("h", DIM + 2, 32767), ("h", DIM + 4, 32767), ("h", DIM + 6, 32767)), MRI, "too large"),
    refused("header claims 800 x 800 x 800",
            header(("h", DIM + 2, 800), ("h", DIM + 4, 800), ("h", DIM + 6, 800)), MRI, "too short for the size"),
    refused("4D, two time points", four_d(2), MRI, "more than three dimensions"),
    refused("5D, three numbers per voxel", four_d(1, 3), MRI),
    refused("7D", header(("h", DIM, 7), ("h", DIM + 8, 2)), MRI, "truncated"),
    accepted("4D, one time point", four_d(1), "an axis of length one is dropped"),
    refused("2D among 3D", flat, "modality MRI", "2D and 3D images are mixed"),
    accepted("one slice", one_slice, "a volume may have one slice"),
    refused("channels of another size", volume(MRI, lambda a: a[:, :20]), MRI, "do not share a grid"),
    refused("channels of another spacing", volume(MRI, lambda a: a, spacing=(0.8, 0.8, 3.0)), MRI, "do not share a grid"),
    refused("channels of another direction",
            volume(MRI, lambda a: a, direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), MRI, "do not share a grid"),
    refused("channels elsewhere in space", volume(MRI, lambda a: a, origin=(0, 0, 500)), MRI, "do not share a grid"),
    *(refused(f"spacing {value:g}", header(("f", PIXDIM + 4, value)), MRI, SPACING)
      for value in (0.0, -1.0, NAN, INF, 1e-9, 1e9)),
    refused("slice spacing 0", header(("f", PIXDIM + 12, 0.0)), MRI, SPACING),
    *(refused(f"voxel type {code}", header(("h", TYPE, code)), MRI) for code in (0, 1, 32, 128, 999, 1536, 2304)),
    refused("bits of another voxel type", header(("h", BITS, 64)), MRI, "truncated"),
    refused("0 bits per voxel", header(("h", BITS, 0)), MRI, "bits per voxel"),
    *(refused(f"voxels begin at byte {value:g}", header(("f", OFFSET, value)), MRI, why)
      for value, why in ((-1.0, "header is damaged"), (NAN, "header is damaged"), (1e9, "truncated"), (1e30, "damaged"),
                         (4000.0, "truncated"), (0.0, "header is damaged"), (100.0, "header is damaged"))),
    refused("scale 1e38", header(("f", SLOPE, 1e38)), MRI),
    accepted("scale 0", header(("f", SLOPE, 0.0)), "by the standard, 0 means no scaling"),
    accepted("scale NaN", header(("f", SLOPE, NAN)), "common tools write it for no scaling"),
    accepted("scale infinite", header(("f", SLOPE, INF)), "taken for no scaling"),
    accepted("intercept infinite", header(("f", SLOPE, 1.0), ("f", INTERCEPT, INF)), "taken for no scaling"),
    refused("sheared direction", header_of_all(("h", SFORM, 1), ("h", QFORM, 0), ("f", SROW + 4, 0.5)), "imagesTr/MRI/C003_000",
            "orthonormal"),
    refused("direction of NaN", header_of_all(("h", SFORM, 1), ("h", QFORM, 0), ("f", SROW, NAN)), "imagesTr/MRI/C003_000",
            "the sform of the header holds NaN"),
    refused("direction of zeros", header_of_all(("h", SFORM, 1), ("h", QFORM, 0), ("f", SROW, 0.0)),
            "imagesTr/MRI/C003_000"),
    refused("rotation of NaN", header_of_all(("h", SFORM, 0), ("h", QFORM, 1), ("f", QUATERN, NAN)),
            "imagesTr/MRI/C003_000", "the qform of the header holds NaN"),
    refused("origin infinite", header_of_all(("h", SFORM, 0), ("h", QFORM, 1), ("f", QUATERN + 12, INF)),
            "imagesTr/MRI/C003_000", "the qform of the header holds NaN"),
    accepted("geometry of NaN that is not in use", header(("h", QFORM, 0), ("f", QUATERN, NAN)), "the header says so"),
    accepted("no geometry but spacing", header_of_all(("h", SFORM, 0), ("h", QFORM, 0)), "spacing is enough"),
    refused("NaN among the voxels", volume(MRI, lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32)), MRI,
            "NaN or infinite"),
    refused("infinite voxels", volume(MRI, lambda a: np.where(a > 500, np.inf, a).astype(np.float32)), MRI,
            "NaN or infinite"),
    refused("every voxel the same", volume(MRI, np.zeros_like), MRI, "same value"),
    refused("complex voxels", volume(MRI, lambda a: a.astype(np.complex64)), MRI, "more than one number"),
    accepted("double precision", volume(MRI, lambda a: a.astype(np.float64) / 3), "kept in single precision"),
    accepted("8 bits", volume(MRI, lambda a: np.clip(a / 4, 0, 255).astype(np.uint8)), "types may differ between files"),
    accepted("a later phase without contrast", lambda d: (d.raw / MRI).write_bytes((d.raw / MRI.replace("_0001", "_0000")).read_bytes()),
             "two channels may be alike"),
    refused("folder named like a volume", as_folder, MRI, "is not a file"),
    refused("link to itself", link(MRI, "C003_0001.nii.gz"), MRI, "is not a file"),
    refused("volume of the other modality's format", lambda d: os.replace(d.raw / "imagesTr/US/C002.png", d.raw / MRI), MRI,
            "damaged"),
    refused("MetaImage cut in its header", mha(cut(60)), MHA, "header has no end"),
    refused("MetaImage cut in its voxels", mha(cut_share(0.6)), MHA),
    refused("MetaImage that claims 90000 x 90000 x 90000", mha(swap(b"DimSize = 24 24 8", b"DimSize = 90000 90000 90000")), MHA),
    refused("MetaImage of negative size", mha(swap(b"DimSize = 24 24 8", b"DimSize = -24 24 8")), MHA),
    refused("MetaImage of spacing 0", mha(swap(b"ElementSpacing = 0.8", b"ElementSpacing = 0.0")), MHA),
    *(refused(f"MetaImage of {n} dimensions", mha(swap(b"NDims = 3", f"NDims = {n}".encode())), MHA, "number of dimensions")
      for n in (0, -1, 99, "x")),
    refused("MetaImage of two sizes for three axes", mha(swap(b"DimSize = 24 24 8", b"DimSize = 24 24")), MHA, "DimSize"),
    refused("MetaImage with a key twice", mha(swap(b"NDims = 3", b"NDims = 3\nNDims = 2")), MHA, "repeats the key"),
    refused("MetaImage whose comment ends in a lone carriage return",
            mha(swap(b"NDims = 3", b"Comment = a\rElementDataFile = LOCAL\nNDims = 3")), MHA, "line 2"),
    refused("MetaImage of unknown type", mha(swap(b"MET_SHORT", b"MET_WORDS")), MHA),
    refused("MetaImage sheared", mha(swap(b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0.4 0")), MHA, "sheared"),
    refused("MetaImage whose voxels lie elsewhere",
            to_elsewhere(".mha", MHA, lambda _: MHA_HEAD + b"ElementDataFile = ../../../secret.raw\n"), MHA, ELSEWHERE),
    refused("MetaImage that says LOCAL in a comment and points elsewhere",
            to_elsewhere(".mha", MHA, lambda _: b"Comment = ElementDataFile = LOCAL\n" + MHA_HEAD
                         + b"ElementDataFile = ../../../secret.raw\n"), MHA, ELSEWHERE),
    refused("MetaImage that points elsewhere after a colon",
            to_elsewhere(".mha", MHA, lambda _: MHA_HEAD + b"ElementDataFile : ../../../secret.raw\n"), MHA, "line 8"),
    refused("MetaImage of a list of files",
            to_elsewhere(".mha", MHA, lambda _: MHA_HEAD + b"ElementDataFile = LIST\n../../../secret.raw\n"), MHA, ELSEWHERE),
    refused("NRRD cut in its header", nrrd(cut(40)), NRRD, "header has no end"),
    refused("NRRD cut in its voxels", nrrd(cut_share(0.7)), NRRD),
    refused("NRRD without its magic", nrrd(flip(0.0)), NRRD, "not a NRRD file"),
    refused("NRRD that claims 90000 x 90000 x 90000", nrrd(swap(b"sizes: 24 24 8", b"sizes: 90000 90000 90000")), NRRD),
    refused("NRRD of negative size", nrrd(swap(b"sizes: 24 24 8", b"sizes: -24 24 8")), NRRD),
    refused("NRRD of 20 dimensions", nrrd(swap(b"dimension: 3", b"dimension: 20")), NRRD),
    refused("NRRD of two sizes for three axes", nrrd(swap(b"sizes: 24 24 8", b"sizes: 24 24")), NRRD, "sizes"),
    refused("NRRD that skips behind its end", nrrd(lambda _: NRRD_HEAD + b"byte skip: 999999\n\n" + bytes(9216)), NRRD),
    refused("NRRD of text numbers that are not", nrrd(lambda _: NRRD_HEAD.replace(b"raw", b"text") + b"\n" + b"x " * 4608), NRRD),
    refused("NRRD of unknown encoding", nrrd(lambda _: NRRD_HEAD.replace(b"raw", b"zip9") + b"\n" + bytes(9216)), NRRD),
    refused("NRRD whose voxels lie elsewhere",
            to_elsewhere(".nrrd", NRRD, lambda _: NRRD_HEAD + b"data file: ../../../secret.raw\n\n"), NRRD, ELSEWHERE),
    refused("NRRD whose voxels lie elsewhere, in another spelling",
            to_elsewhere(".nrrd", NRRD, lambda _: NRRD_HEAD + b"DATAFILE:../../../secret.raw\n\n"), NRRD, ELSEWHERE),
    accepted("MetaImage", mha(lambda b: b), "one of the formats"),
    accepted("NRRD", nrrd(lambda b: b), "one of the formats"),
]  # fmt: skip
