"""Damaged folders: files in the wrong place, links, permissions."""

from __future__ import annotations

import os
import shutil

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import MRI, US, link, mode, replace_file, rows

LAYOUT = Kind("folder layout", (VERIFY, PLAN))
PERMISSION = Kind("permissions", (VERIFY, PLAN))
CALL = Kind("roots and names", (VERIFY, PLAN))
refused, accepted = LAYOUT.refused, LAYOUT.accepted


def copy(source: str, target: str):  # type: ignore[no-untyped-def]
    return lambda d: shutil.copy(d.raw / source, d.raw / target)


def move(source: str, target: str):  # type: ignore[no-untyped-def]
    return lambda d: (d.raw / source).rename(d.raw / target)


def file_instead(name: str):  # type: ignore[no-untyped-def]
    """Put a file where a folder should be."""
    return lambda d: ((d.raw / name).rename(d.raw.parent / "moved_away"), (d.raw / name).write_text("x"))


def add_file(name: bytes):  # type: ignore[no-untyped-def]
    """Add a file of any name, also of bytes that are no text."""

    def damage(d: DatasetPaths) -> None:
        with open(os.fsencode(d.raw) + b"/" + name, "wb") as file:
            file.write(b"x")

    return damage


def no_modality(d: DatasetPaths) -> None:
    for name in ("imagesTr/US/C003.png", "imagesTr/MRI/C003_0000.nii.gz", MRI):
        (d.raw / name).unlink()


def both_parts(d: DatasetPaths) -> None:
    for name in ("C003_0000", "C003_0001"):
        shutil.copy(d.raw / f"imagesTr/MRI/{name}.nii.gz", d.raw / f"imagesTs/MRI/{name}.nii.gz")


def fifo_instead_of_folder(d: DatasetPaths) -> None:
    (d.raw / "imagesTr/US").rename(d.raw.parent / "moved_away")
    os.mkfifo(d.raw / "imagesTr/US")


def deep_folders(d: DatasetPaths) -> None:
    folder = d.raw / "imagesTr/US/x"
    for _ in range(60):
        folder = folder / "deeper"
    folder.mkdir(parents=True)


def rename_dataset(name: str | bytes):  # type: ignore[no-untyped-def]
    def damage(d: DatasetPaths) -> None:
        source = os.fsencode(d.raw)
        os.rename(source, os.path.join(os.path.dirname(source), os.fsencode(name)))

    return damage


def second_dataset(name: str):  # type: ignore[no-untyped-def]
    return lambda d: shutil.copytree(d.raw, d.raw.parent / name)


def raw_root_is_a_file(d: DatasetPaths) -> None:
    d.roots.raw.rename(d.roots.raw.parent / "moved_away")
    d.roots.raw.write_text("x")


EMPTY = "no training case has this modality"
MUTATIONS: list[Mutation] = [
    refused("row without images", no_modality, "cases.csv row 5", "no image of the case 'C003'"),
    refused("image without a row", copy(US, "imagesTr/US/C777.png"), "imagesTr/US/C777.png", "without a row"),
    refused("channel missing", lambda d: (d.raw / MRI).unlink(), "imagesTr/MRI/C003", "C003_0001.nii.gz"),
    refused("channel that is not declared", copy(MRI, "imagesTr/MRI/C003_0002.nii.gz"), "imagesTr/MRI/C003_0002.nii.gz",
            "does not end in a channel"),
    refused("channel without its number", move(MRI, "imagesTr/MRI/C003.nii.gz"), "imagesTr/MRI/C003.nii.gz",
            "does not end in a channel"),
    refused("same channel twice", copy(US, "imagesTr/US/C003_0000.png"), "imagesTr/US/C003_0000.png", "same channel"),
    refused("same picture with two endings' case", copy(US, "imagesTr/US/C003.PNG"), "imagesTr/US/C003", "same channel"),
    refused("case in both parts", both_parts, "C003", "in imagesTr and in imagesTs"),
    refused("patient in both parts", rows(lambda t: t[9].__setitem__(2, "P003")), "patient P003", "training cases"),
    refused("imagesTr missing", move("imagesTr", "../moved_away"), "imagesTr", "no such folder"),
    refused("imagesTr is a file", file_instead("imagesTr"), "imagesTr"),
    refused("imagesTr is a link to itself", link("imagesTr", "imagesTr"), "imagesTr"),
    refused("imagesTr is in lower case", move("imagesTr", "imagestr"), "imagesTr", "no such folder"),
    refused("modality folder missing", move("imagesTr/US", "../moved_away"), "imagesTr/US", EMPTY),
    refused("modality folder empty", lambda d: [p.unlink() for p in (d.raw / "imagesTr/US").iterdir()], "imagesTr/US", EMPTY),
    refused("modality folder is a file", file_instead("imagesTr/US"), "imagesTr/US", "cannot be listed"),
    refused("modality folder is a named pipe", fifo_instead_of_folder, "imagesTr/US", "cannot be listed"),
    refused("modality folder is a link to itself", link("imagesTr/US", "US"), "imagesTr/US"),
    refused("modality folder links up to the dataset", link("imagesTr/US", "../.."), "imagesTr/US", EMPTY),
    refused("modality folder in another case", move("imagesTr/US", "imagesTr/us"), "imagesTr/us", "upper and lower case"),
    refused("images in a subfolder", lambda d: ((d.raw / "imagesTr/US").rename(d.raw / "x"), (d.raw / "imagesTr/US").mkdir(),
            (d.raw / "x").rename(d.raw / "imagesTr/US/batch1")), "imagesTr/US", EMPTY),
    refused("same pixels in both parts", copy(US, "imagesTs/US/C008.png"), "imagesTr/US/C003.png", "in imagesTr and imagesTs"),
    refused("same pixels under two labels", copy("imagesTr/US/C002.png", US), "imagesTr/US/C002.png", "different labels"),
    accepted("same pixels under two patients", copy("imagesTr/US/C001.png", US), "a warning: they are kept in one fold",
             "imagesTr/US/C001.png", "give the cases one patient_id"),
    accepted("no test images", lambda d: ([shutil.rmtree(d.raw / p) for p in ("imagesTs", "masksTs")],
             rows(lambda t: t.__delitem__(slice(9, 11)))(d)), "a test set is optional"),
    accepted("modality that is not declared", lambda d: replace_file(d.raw / "imagesTr/CT/C003.nii.gz", b"x"),
             "a warning: it is not read", "imagesTr/CT", "not a modality"),
    accepted("file beside the modalities", add_file(b"imagesTr/notes.txt"), "a warning: it is not read", "imagesTr/notes.txt"),
    accepted("file of another ending", add_file(b"imagesTr/US/C003.txt"), "a warning: it is not read", "imagesTr/US/C003.txt"),
    accepted("name that is no text", add_file(b"imagesTr/US/\xff\xfe.txt"), "a warning: it is not read", "imagesTr/US/", ".txt"),
    refused("picture whose name is no text", add_file(b"imagesTr/US/\xff\xfe.png"), "imagesTr/US/", "without a row"),
    refused("picture with a line break in its name", add_file(b"imagesTr/US/a\nb.png"), "imagesTr/US/a", "without a row"),
    refused("picture with a terminal escape in its name", add_file(b"imagesTr/US/\x1b[2J.png"), "imagesTr/US/\\x1b",
            "without a row"),
    accepted("what systems leave behind", lambda d: [add_file(b"imagesTr/US/" + n)(d) for n in
             (b".DS_Store", b"Thumbs.db", b"desktop.ini", b"._C003.png")], "ignored"),
    accepted("deep folders", deep_folders, "a warning: they are not read", "imagesTr/US/x"),
    accepted("case without one modality", lambda d: [(d.raw / p).unlink() for p in (US, "masksTr/US/C003.png")],
             "a note: it counts for the others", "imagesTr/US", "1 of 8 cases lack this modality"),
    PERMISSION.refused("dataset.json unreadable", mode("dataset.json", 0), "dataset.json", "Permission denied"),
    PERMISSION.refused("cases.csv unreadable", mode("cases.csv", 0), "cases.csv", "Permission denied"),
    PERMISSION.refused("picture unreadable", mode(US, 0), US, "Permission denied"),
    PERMISSION.refused("volume unreadable", mode(MRI, 0), MRI, "Permission denied"),
    PERMISSION.refused("mask unreadable", mode("masksTr/US/C003.png", 0), "masksTr/US/C003.png", "Permission denied"),
    PERMISSION.refused("imagesTr unreadable", mode("imagesTr", 0), "imagesTr", "Permission denied"),
    PERMISSION.refused("imagesTr listed but not entered", mode("imagesTr", 0o444), "imagesTr", "Permission denied"),
    PERMISSION.refused("modality folder unreadable", mode("imagesTr/US", 0), "imagesTr/US", "Permission denied"),
    PERMISSION.refused("modality folder listed but not entered", mode("imagesTr/US", 0o444), "imagesTr/US",
                       "Permission denied"),
    PERMISSION.refused("dataset folder unreadable", mode(".", 0), "Dataset001_Tiny", "Permission denied"),
    PERMISSION.refused("raw root unreadable", lambda d: d.roots.raw.chmod(0), "her2net_raw", "Permission denied"),
    PERMISSION.refused("raw root listed but not entered", lambda d: d.roots.raw.chmod(0o444), "her2net_raw"),
    PERMISSION.refused("plans unreadable", lambda d: d.plan.chmod(0), "auto.json", "Permission denied", commands=(PLAN,)),
    CALL.refused("no raw root", lambda d: d.roots.raw.rename(d.roots.raw.parent / "moved_away"), "her2net_raw",
                 "does not exist"),
    CALL.refused("raw root is a file", raw_root_is_a_file, "her2net_raw"),
    CALL.refused("raw root is empty", lambda d: d.raw.rename(d.roots.raw.parent / "moved_away"), "her2net_raw",
                 "Dataset001_Name"),
    CALL.refused("folder number of two digits", rename_dataset("Dataset01_Tiny"), "her2net_raw", "Dataset001_Name"),
    CALL.refused("two datasets and none named", second_dataset("Dataset002_Other"), "her2net_raw",
                 "Dataset001_Tiny, Dataset002_Other"),
    CALL.refused("two datasets of one number", second_dataset("Dataset0001_Other"), "her2net_raw", "several datasets match",
                 commands=((*VERIFY, "-d", "1"), (*PLAN, "-d", "1"))),
    CALL.refused("dataset that is not there", lambda d: None, "her2net_raw", "no dataset matches '../x'",
                 commands=((*VERIFY, "-d", "../x"), (*PLAN, "-d", "../x"))),
    CALL.refused("plan name that leads elsewhere", lambda d: None, "../../x", commands=((*PLAN, "-p", "../../x"),)),
    CALL.refused("plan name with a slash", lambda d: None, "a/b", commands=((*PLAN, "-p", "a/b"),)),
    CALL.refused("plan name that Windows reserves", lambda d: None, "con", commands=((*PLAN, "-p", "con"),)),
    CALL.refused("empty plan name", lambda d: None, "--plan ''", commands=((*PLAN, "-p", ""),)),
    CALL.refused("folder name that is no text", rename_dataset(b"Dataset001_\xff\xfe"), "Dataset001_\\udcff", "not UTF-8"),
    CALL.accepted("folder name with spaces and accents", rename_dataset("Dataset001_Größe und 乳腺"), "a name is a name",
                  "乳腺", commands=(VERIFY,)),
]  # fmt: skip
