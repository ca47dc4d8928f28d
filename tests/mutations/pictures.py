"""Damaged pictures: PNG, TIFF and JPEG."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import (
    PNG_MAGIC,
    US,
    US_MASK,
    become,
    change_ending,
    chunk,
    cut,
    cut_share,
    flip,
    link,
    mode,
    other_format,
    png,
    raw,
    replace_file,
    save_picture,
)

PICTURE = Kind("picture", (VERIFY, PLAN))
refused, accepted = PICTURE.refused, PICTURE.accepted
TIFF = "imagesTr/US/C003.tif"
JPEG = "imagesTr/US/C003.jpg"


def frames(form: str) -> bytes:
    """Return an animation of three frames."""
    pictures = [Image.fromarray(np.full((48, 64), 40 * i, np.uint8)) for i in range(3)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def encoded(form: str, mode_name: str = "L") -> bytes:
    """Return a picture in another format."""
    grey = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).convert(mode_name).save(buffer, form)
    return buffer.getvalue()


def as_folder(d: DatasetPaths) -> None:
    (d.raw / US).unlink()
    (d.raw / US).mkdir()


def as_fifo(d: DatasetPaths) -> None:
    (d.raw / US).unlink()
    os.mkfifo(d.raw / US)


def deep_tiff(d: DatasetPaths, values: np.ndarray) -> None:
    change_ending(d, "US", ".tif")
    Image.fromarray(values).save(d.raw / TIFF)


def moved_behind_a_link(d: DatasetPaths) -> None:
    (d.raw / US).rename(d.raw.parent / "elsewhere.png")
    (d.raw / US).symlink_to(d.raw.parent / "elsewhere.png")


def sparse(d: DatasetPaths) -> None:
    replace_file(d.raw / US, b"")
    os.truncate(d.raw / US, 1 << 40)


GREY = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
BROKEN = ("truncated or damaged",)
UNREADABLE = ("not a readable picture",)

MUTATIONS: list[Mutation] = [
    *(
        refused(f"cut to {n} bytes", raw(US, cut(n)), US, why)
        for n, why in ((0, "0 bytes"), (1, UNREADABLE[0]), (7, UNREADABLE[0]), (8, UNREADABLE[0]), (20, "picture"),
                       (33, "picture"), (45, "damaged"))
    ),
    *(refused(f"cut to {share:.0%}", raw(US, cut_share(share)), US, "damaged") for share in (0.1, 0.5, 0.9)),
    accepted("last chunk missing", raw(US, cut(-12)), "the pixels are whole"),
    refused("last 40 bytes missing", raw(US, cut(-40)), US, "damaged"),
    refused("magic number wrong", raw(US, flip(0.0)), US, *UNREADABLE),
    refused("line ends converted as text", raw(US, lambda b: b.replace(b"\r\n", b"\n")), US, *UNREADABLE),
    refused("header checksum wrong", raw(US, lambda b: b[:29] + bytes(4) + b[33:]), US, "picture"),
    refused("pixel byte flipped", raw(US, flip(0.5)), US, "damaged"),
    refused("text instead", become(US, b"hello"), US, *UNREADABLE),
    refused("HTML page instead", become(US, b"<!doctype html><title>404</title>" * 20), US, *UNREADABLE),
    refused("SVG instead", become(US, b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"), US, *UNREADABLE),
    refused("PDF instead", become(US, b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" * 9), US, *UNREADABLE),
    refused("DICOM instead", become(US, bytes(128) + b"DICM" + bytes(400)), US, *UNREADABLE),
    refused("ZIP instead", become(US, b"PK\x03\x04" + bytes(500)), US, *UNREADABLE),
    refused("GIF instead", become(US, encoded("GIF")), US, *UNREADABLE),
    refused("WebP instead", become(US, encoded("WEBP")), US, *UNREADABLE),
    refused("EPS instead", become(US, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), US, *UNREADABLE),
    refused("width 0", become(US, png(0, 48, rows=b"")), US, "picture"),
    refused("height 0", become(US, png(64, 0, rows=b"")), US, "picture"),
    refused("header claims 65535 x 65535", become(US, png(65535, 65535, rows=b"\0")), US, "too large"),
    refused("header claims 2147483647 x 2", become(US, png(2**31 - 1, 2, rows=b"\0")), US, "too large"),
    refused("header claims 4294967295 x 4294967295", become(US, png(2**32 - 1, 2**32 - 1, rows=b"\0")), US, "picture"),
    refused("header claims a taller picture", become(US, png(64, 96, rows=(b"\0" + bytes(range(64))) * 48)),
            US_MASK, "another size"),
    refused("bit depth 3", become(US, png(64, 48, 3)), US, "picture"),
    refused("colour type 9", become(US, png(64, 48, 8, 9)), US, "picture"),
    refused("palette without a palette", become(US, png(64, 48, 8, 3)), US, "same value"),
    refused("bomb of 200 megapixels", become(US, png(20_000, 10_000, 1, rows=bytes(2501) * 10_000)), US, "too large"),
    refused("bomb in a text chunk",
            become(US, png(64, 48, extra=chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200 << 20), 9)))), US, "damaged"),
    refused("bomb in the colour profile",
            become(US, png(64, 48, extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200 << 20), 9)))), US, "damaged"),
    accepted("pixels beyond the picture", become(US, png(64, 48, rows=((b"\0" + bytes(range(64))) * 48) + bytes(64 << 20))),
             "what lies behind the last row is not unfolded"),
    refused("chunk longer than the file",
            become(US, PNG_MAGIC + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(40)), US, "picture"),
    refused("animated PNG", become(US, frames("PNG")), US, "animated", "3 frames"),
    refused("animated WebP", become(US, frames("WEBP")), US, *UNREADABLE),
    refused("TIFF of three pages", other_format("US", ".tif", TIFF, lambda _: frames("TIFF")), TIFF, "several pages"),
    refused("TIFF cut to half", other_format("US", ".tif", TIFF, cut_share(0.5)), TIFF, "damaged"),
    refused("TIFF whose directory points to itself",
            other_format("US", ".tif", TIFF, lambda _: b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 256, 3, 1, 64)
                         + struct.pack("<I", 8)), TIFF, "picture"),
    refused("TIFF of floats with NaN", lambda d: deep_tiff(d, np.where(GREY == 9, np.nan, GREY).astype(np.float32)),
            TIFF, "NaN or infinite"),
    accepted("TIFF of floats", lambda d: deep_tiff(d, GREY.astype(np.float32) / 7), "values keep their precision"),
    refused("JPEG cut to half", other_format("US", ".jpg", JPEG, cut_share(0.5)), JPEG, "damaged"),
    refused("JPEG without its end", other_format("US", ".jpg", JPEG, cut_share(0.9)), JPEG, "damaged"),
    refused("every pixel the same", become(US, png(64, 48, rows=(b"\0" + bytes(64)) * 48)), US, "same value"),
    refused("one pixel", become(US, png(1, 1)), US, "same value"),
    accepted("10 x 8 pixels, no mask", lambda d: (replace_file(d.raw / US, png(10, 8)), (d.raw / "masksTr/US/C003.png").unlink()),
             "tiny, which is a warning: low-resolution sources exist", US, "the image is tiny"),
    accepted("16 bits", save_picture(US, lambda p: Image.fromarray(np.asarray(p).astype(np.uint16) * 200)),
             "grey of 16 bits keeps its precision"),
    accepted("colour", save_picture(US, lambda p: p.convert("RGB")), "colour becomes its luminance"),
    accepted("colour of 16 bits", become(US, png(64, 48, 16, 2, rows=b"".join(b"\0" + bytes(range(192)) * 2 for _ in range(48)))),
             "colour becomes its luminance, of 8 bits"),
    accepted("colour with transparency", save_picture(US, lambda p: p.convert("RGBA")), "transparency is ignored"),
    accepted("palette", save_picture(US, lambda p: p.convert("P")), "colour becomes its luminance"),
    accepted("black and white", save_picture(US, lambda p: p.convert("1")), "two grey values are a picture, too"),
    accepted("CMYK JPEG under the name of a PNG", become(US, encoded("JPEG", "CMYK")), "read by its content; becomes luminance"),
    accepted("JPEG under the name of a PNG", become(US, encoded("JPEG")), "read by its content"),
    accepted("bytes after the end", raw(US, lambda b: b + bytes(5000)), "the picture is whole"),
    accepted("ending in capitals", lambda d: (d.raw / US).rename(d.raw / "imagesTr/US/C003.PNG"), "Windows writes them"),
    refused("folder named like a picture", as_folder, US, "is not a file"),
    refused("link to itself", link(US, "C003.png"), US, "is not a file"),
    refused("link that leads nowhere", link(US, "gone.png"), US, "is not a file"),
    refused("link to a device without end", link(US, "/dev/zero"), US, "is not a file"),
    refused("named pipe", as_fifo, US, "is not a file"),
    accepted("link to the picture", moved_behind_a_link, "links keep large data in one place"),
    refused("a terabyte of nothing", sparse, US, *UNREADABLE),
    refused("unreadable permissions", mode(US, 0), US, "Permission denied"),
]  # fmt: skip
