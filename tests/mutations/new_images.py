"""Folders of new images given to `her2net_predict -i`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from her2net.paths import DatasetPaths
from mutations.case import Command, Kind, Mutation
from mutations.pictures import encoded, frames
from mutations.tools import Damage, Edit, cut, cut_share, edit_file, flip, png, replace_file

GIVEN: Command = ("predict", "-i", "{root}/new", "-o", "{root}/out", "--device", "cpu", "--quiet")
NEW = Kind("predict -i", (GIVEN,))
IMAGE, MASK = "US/C008.png", "masks/US/C008.png"


def folder(d: DatasetPaths) -> Path:
    return d.roots.raw.parent / "new"


def given(change: Callable[[Path], object]) -> Damage:
    """Copy the test images as new ones, and change the folder."""

    def damage(d: DatasetPaths) -> None:
        for name in ("US", "MG"):
            shutil.copytree(d.raw / "imagesTs" / name, folder(d) / name)
            shutil.copytree(d.raw / "masksTs" / name, folder(d) / "masks" / name)
        change(folder(d))

    return damage


def edit(name: str, change: Edit) -> Damage:
    return given(lambda new: edit_file(new / name, change))


def become(name: str, content: bytes) -> Damage:
    return given(lambda new: replace_file(new / name, content))


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    return given(lambda new: ((new / name).unlink(), make(new / name)))


def save(name: str, array: np.ndarray) -> Damage:
    return given(lambda new: Image.fromarray(array).save(new / name))


def as_volume(new: Path) -> None:
    (new / IMAGE).unlink()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 48, 64), np.int16)), str(new / "US/C008.nii.gz"))


BROKEN = {
    "0 bytes": (cut(0), "0 bytes"), "cut to 20 bytes": (cut(20), "picture"), "cut to half": (cut_share(0.5), "damaged"),
    "signature damaged": (flip(0), "not a readable picture"), "byte flipped": (flip(0.5), "damaged"),
}  # fmt: skip
GREY = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)

MUTATIONS: list[Mutation] = [
    NEW.refused("missing", lambda d: None, "new", "no such folder"),
    NEW.refused("a file", lambda d: folder(d).write_bytes(b"x"), "new", "no such folder"),
    NEW.refused("empty", lambda d: folder(d).mkdir(), "new", "no image of any modality"),
    NEW.refused("empty modality", lambda d: (folder(d) / "US").mkdir(parents=True), "new", "no image of any modality"),
    NEW.refused("images without their folder", lambda d: (folder(d).mkdir(), shutil.copy(d.raw / "imagesTs/US/C008.png", folder(d))),
                "new", "US/<case>.png"),
    NEW.refused("unknown modality", given(lambda new: [(new / n).rename(new / f"{n}2") for n in ("US", "MG")]), "new", "US/<case>.png"),
    NEW.refused("modality is a file", given(lambda new: [(shutil.rmtree(new / n), (new / n).write_bytes(b"")) for n in ("US", "MG")]), "new",
                "no image"),
    NEW.refused("folder unreadable", given(lambda new: (new / "US").chmod(0)), "new/US"),
    *(NEW.refused(f"image: {name}", edit(IMAGE, way), IMAGE, says) for name, (way, says) in BROKEN.items()),
    *(NEW.refused(f"mask: {name}", edit(MASK, way), MASK, says) for name, (way, says) in BROKEN.items()),
    NEW.refused("image: text", become(IMAGE, b"hello"), IMAGE, "not a readable picture"),
    NEW.refused("image: SVG", become(IMAGE, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), IMAGE, "not a readable picture"),
    NEW.refused("image: bomb", become(IMAGE, png(60000, 60000, rows=b"\0" * 1000)), IMAGE, "too large"),
    NEW.refused("image: animated", become(IMAGE, frames("PNG")), IMAGE, "animated"),
    NEW.refused("image: folder", instead(IMAGE, Path.mkdir), "US"),
    NEW.refused("image: named pipe", instead(IMAGE, os.mkfifo), "US"),
    NEW.refused("image: link to itself", instead(IMAGE, lambda path: path.symlink_to(path.name)), "US"),
    NEW.refused("image: link to a device without end", instead(IMAGE, lambda path: path.symlink_to("/dev/zero")), "US"),
    NEW.refused("image: unreadable", given(lambda new: (new / IMAGE).chmod(0)), IMAGE, "Permission denied"),
    NEW.refused("mask: unreadable", given(lambda new: (new / MASK).chmod(0)), MASK, "Permission denied"),
    NEW.refused("image: one colour", save(IMAGE, np.full_like(GREY, 7)), "C008", "same value"),
    NEW.refused("image: one pixel", become(IMAGE, png(1, 1)), "C008"),
    NEW.refused("mask: other size", save(MASK, np.ones((20, 20), np.uint8)), MASK, "20 x 20"),
    NEW.accepted("mask: empty", save(MASK, np.zeros_like(GREY)), "the whole image is taken, with a warning", "C008", "marks nothing"),
    NEW.accepted("mask: of another case only", given(lambda new: (new / MASK).rename(new / "masks/US/C777.png")),
                 "the whole image is taken, with a warning", "C008", "no lesion mask"),
    NEW.accepted("number like that of a second channel", given(lambda new: (new / IMAGE).rename(new / "US/C008_0001.png")),
                 "of one channel it is the name of a case"),
    NEW.refused("channel twice", given(lambda new: shutil.copy(new / IMAGE, new / "US/C008_0000.png")), "C008_0000.png", "same channel"),
    NEW.refused("every file of another format", given(lambda new: [p.rename(p.with_suffix(".nii.gz")) for n in ("US", "MG")
                for p in sorted((new / n).iterdir())]), "new", "no image"),
    NEW.refused("name of bytes that are no text", given(lambda new: os.rename(new / IMAGE, os.fsencode(new / "US") + b"/C\xff.png")),
                "US/C", "control or invisible character"),
    NEW.refused("name that spreadsheets take for a formula", given(lambda new: (new / IMAGE).rename(new / "US/=cmd.png")), "'='"),
    NEW.refused("name with a line break", given(lambda new: (new / IMAGE).rename(new / "US/a\nb.png")), "control"),
    NEW.refused("name that is nothing but its ending", given(lambda new: (new / IMAGE).rename(new / "US/.png")), "US/.png"),
    NEW.refused("output is a file", given(lambda new: (new.parent / "out").write_bytes(b"")), "out", "is not a folder. Name another, or move that file away"),
    NEW.accepted("a volume among pictures", given(as_volume), "what is not read is listed", "file-ignored"),
    NEW.accepted("a text file among pictures", given(lambda new: (new / "US/notes.txt").write_text("x")), "what is not read is listed",
                 "notes.txt"),
    NEW.accepted("no masks", given(lambda new: shutil.rmtree(new / "masks")), "the whole image is taken", "C008"),
    NEW.accepted("colours", save(IMAGE, np.stack([GREY] * 3, -1)), "grey is made of it"),
    NEW.accepted("JPEG in a file called PNG", become(IMAGE, encoded("JPEG")), "the content decides"),
    NEW.accepted("one modality only", given(lambda new: shutil.rmtree(new / "MG")), "the fusion has a model for it"),
    NEW.accepted("values of another range", save(IMAGE, GREY.astype(np.uint16) * 256), "a warning says so", "C008"),
    NEW.accepted("endings in capitals", given(lambda new: (new / IMAGE).rename(new / "US/C008.PNG")), "Windows does not tell them apart"),
    NEW.accepted("unicode name", given(lambda new: (new / IMAGE).rename(new / "US/Fälle 乳.png")), "it is a file name"),
]  # fmt: skip
