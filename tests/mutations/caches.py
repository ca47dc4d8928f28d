"""Damaged caches: training refuses a damaged row by its case, and her2net_plan rebuilds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from her2net.paths import DatasetPaths
from mutations.case import CACHE, TRAIN_ALL, Kind, Mutation
from mutations.tools import Damage, Edit, cut, cut_share, edit_file, flip, replace_file

CACHES = Kind("cache", (TRAIN_ALL,))


def cache(d: DatasetPaths) -> Path:
    return next(d.caches.glob("US_*.h5"))


def raw_bytes(edit: Edit) -> Damage:
    return lambda d: edit_file(cache(d), edit)


def inside(change: Callable[[h5py.File], object]) -> Damage:
    """Change the file with the HDF5 library, as a script would."""

    def damage(d: DatasetPaths) -> None:
        with h5py.File(cache(d), "r+", locking=False) as file:
            change(file)

    return damage


def dataset(name: str, make: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    """Replace a dataset, or remove it."""

    def change(file: h5py.File) -> None:
        old = file[name][:]
        del file[name]
        new = make(old)
        if new is not None:
            file[name] = new

    return inside(change)


def claim(name: str, shape: tuple[int, ...], kind: str) -> Damage:
    """Put a dataset of this shape there that holds nothing."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, kind, chunks=(1,) * (len(shape) - 1) + (1 << 12,))

    return inside(change)


def set_row(name: str, row: int, value: object) -> Damage:
    def change(file: h5py.File) -> None:
        file[name][row] = value

    return inside(change)


def link_out(file: h5py.File) -> None:
    del file["image"]
    file["image"] = h5py.ExternalLink("/etc/hostname", "/image")


WHOLE = "the whole cache is made again"
ROW = "the row is made again"
FILE = "cache/US_"
WAYS: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "0 bytes": (raw_bytes(cut(0)), ("cannot be read",), WHOLE),
    "text file": (lambda d: replace_file(cache(d), b"case_id,image\n"), ("cannot be read",), WHOLE),
    **{f"cut to {share:.0%}": (raw_bytes(cut_share(share)), ("cannot be read",), WHOLE) for share in (0.01, 0.3, 0.9)},
    "last byte missing": (raw_bytes(cut(-1)), ("cannot be read",), WHOLE),
    **{f"byte flipped at {share:.0%}": (raw_bytes(flip(share)), ("damaged rows",), ROW) for share in (0.2, 0.4, 0.6, 0.8)},
    "one bit flipped": (raw_bytes(flip(0.5, 1)), ("damaged rows",), ROW),
    "signature damaged": (raw_bytes(flip(0)), ("cannot be read",), WHOLE),
    "incomplete": (inside(lambda f: f.attrs.modify("complete", False)), ("incomplete",), WHOLE),
    "complete is a text": (inside(lambda f: f.attrs.update(complete="no")), (), WHOLE),
    "images missing": (dataset("image", lambda a: None), ("cannot be read", "image"), WHOLE),
    "checksums missing": (dataset("checksum", lambda a: None), ("cannot be read", "checksum"), WHOLE),
    "ids missing": (dataset("case_id", lambda a: None), ("cannot be read", "case_id"), WHOLE),
    "images of float64": (dataset("image", lambda a: a.astype("f8")), ("float64",), WHOLE),
    "images of text": (dataset("image", lambda a: np.full(a.shape[0], b"x")), (), WHOLE),
    "images of another size": (dataset("image", lambda a: a[..., :-2]), (), WHOLE),
    "images of one dimension": (dataset("image", lambda a: a.ravel()), (), WHOLE),
    "images with a channel more": (dataset("image", lambda a: np.repeat(a, 2, 1)), (), WHOLE),
    "one image missing": (dataset("image", lambda a: a[:-1]), (), WHOLE),
    "no image": (dataset("image", lambda a: a[:0]), (), WHOLE),
    "masks of another size": (dataset("mask", lambda a: a[..., :-2]), (), WHOLE),
    "images that claim a terabyte": (claim("image", (8, 1, 1 << 19, 1 << 18), "f2"), (), WHOLE),
    "ids that claim a terabyte": (claim("case_id", (1 << 33,), "S128"), (), WHOLE),
    "images in another file": (inside(link_out), (), WHOLE),
    "image is a folder": (inside(lambda f: (f.__delitem__("image"), f.create_group("image"))), (), WHOLE),
    "ids numbers": (dataset("case_id", lambda a: np.arange(len(a))), (), WHOLE),
    "ids no text": (dataset("case_id", lambda a: np.full(len(a), b"\xff\xfe")), (), WHOLE),
    "other ids": (dataset("case_id", lambda a: np.array([b"X%03d" % i for i in range(len(a))])), ("holds no case", "C000"), ROW),
    "two ids exchanged": (dataset("case_id", lambda a: a[[1, 0, *range(2, len(a))]]), ("damaged rows", "C000"), ROW),
    "digests exchanged": (dataset("digest", lambda a: a[[1, 0, *range(2, len(a))]]), ("damaged rows", "C000"), ROW),
    "image blackened": (set_row("image", 3, 0), ("damaged rows", "C003"), ROW),
    "image of NaN": (set_row("image", 3, np.nan), ("damaged rows", "C003"), ROW),
    "mask emptied": (set_row("mask", 3, 0), ("damaged rows", "C003"), ROW),
    "mask denied": (set_row("has_mask", 3, False), ("damaged rows", "C003"), ROW),
    "checksum emptied": (set_row("checksum", 3, b""), ("damaged rows", "C003"), ROW),
}  # fmt: skip

MUTATIONS: list[Mutation] = [
    *(CACHES.refused(name, damage, FILE, *says) for name, (damage, says, _) in WAYS.items()),
    *(CACHES.repaired(f"{name}, planned again", damage, why, restores="US_*.h5", commands=(CACHE, TRAIN_ALL))
      for name, (damage, _, why) in WAYS.items()),
    CACHES.refused("missing", lambda d: cache(d).unlink(), FILE, "Run her2net_plan"),
    CACHES.refused("folder instead", lambda d: (path := cache(d), path.unlink(), path.mkdir()), FILE),
    CACHES.repaired("missing, planned again", lambda d: cache(d).unlink(), WHOLE, restores="US_*.h5", commands=(CACHE,)),
    CACHES.repaired("other version, planned again", inside(lambda f: f.attrs.modify("version", 99)), WHOLE, restores="US_*.h5",
                    commands=(CACHE,)),
]  # fmt: skip
