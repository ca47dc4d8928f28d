"""The HDF5 file of a cache: its layout, and writing it so that a full disk cannot hurt.

The HDF5 library cannot recover from a disk that fills up while it writes: it leaves the file open and crashes
the interpreter at the end. So it writes the (small) frame of the file only, the space is
reserved, and the rows go to their places by ordinary writes, which fail cleanly.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from her2net.errors import CacheError, Her2netError, MissingArtefactError

FRAME_BYTES = 1 << 16  # generous: object headers and attributes
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class RowWriter:
    """Writes single rows of datasets whose places in the file are known."""

    def __init__(self, file: IO[bytes], offsets: Mapping[str, int], layout: Layout) -> None:
        self.file, self.offsets, self.layout = file, offsets, layout

    def put(self, name: str, row: int, value: np.ndarray | np.generic) -> None:
        """Write one row, converted to the type of its dataset."""
        shape, dtype = self.layout[name]
        content = np.ascontiguousarray(value, dtype=dtype)
        if content.size != int(np.prod(shape[1:])):
            raise ValueError(f"{name}[{row}]: found shape {content.shape}, expected {shape[1:]}")
        self.file.seek(self.offsets[name] + row * content.nbytes)
        self.file.write(content.tobytes())


@contextmanager
def create(path: Path, layout: Layout, attributes: Mapping[str, object]) -> Iterator[RowWriter]:
    """Create a file of uncompressed, contiguous datasets and yield what writes their rows; marked complete at the end.

    Raises:
        OSError: the disk is full, for example; nothing is open then, and the caller removes the file.
    """
    n_bytes = FRAME_BYTES + sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
    _reserve(path, n_bytes)
    with h5py.File(path, "w", locking=False) as file:
        for name, (shape, dtype) in layout.items():
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            kind = h5py.h5t.py_create(dtype, logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=early)
        offsets = {name: file[name].id.get_offset() for name in layout}
        file.attrs.update({**attributes, "complete": False})
    _reserve(path, os.path.getsize(path))
    with path.open("r+b") as plain:
        yield RowWriter(plain, offsets, layout)
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs.modify("complete", True)  # overwrites a byte that is there, so it needs no space


def _reserve(path: Path, n_bytes: int) -> None:
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        reserve(handle, n_bytes)
    finally:
        os.close(handle)


def reserve(handle: int, n_bytes: int) -> None:
    """Claim space on the disk for an open file, where the system can; fails while nothing is lost yet.

    Raises:
        OSError: there is not so much.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems cannot reserve
                raise
    os.truncate(handle, max(n_bytes, os.fstat(handle).st_size))


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a complete cache to read; for this process and moment only, without HDF5's own locking.

    Raises:
        MissingArtefactError: no such file.
        CacheError: damaged, incomplete or not a cache.
    """
    if not path.exists():
        raise MissingArtefactError(f"{path}: no such file. Run her2net_plan first.")
    remedy = "Run her2net_plan, which makes it anew."
    try:
        with h5py.File(path, "r", locking=False) as file:
            complete = file.attrs.get("complete")
            if not isinstance(complete, np.bool_) or not complete:
                raise CacheError(f"{path}: the cache is incomplete. {remedy}")
            _check_layout(file)
            yield file
    except Her2netError:
        raise
    except (OSError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CacheError(f"{path}: the cache cannot be read ({error}). {remedy}") from error


def _check_layout(file: h5py.File) -> None:
    """Refuse a file whose arrays do not belong together, or claim more than it holds, before anything is read.

    Raises:
        ValueError, KeyError: what is wrong.
    """
    found = {name: file.get(name, getlink=True) for name in ("image", "mask", "case_id", "has_mask", "digest", "checksum")}
    odd = [name for name, link in found.items() if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset)]
    if odd:
        raise KeyError(f"no array {', '.join(odd)}")
    image, n = file["image"], len(file["case_id"])
    expected = {"mask": (n, *image.shape[2:]), "has_mask": (n,), "digest": (n,), "checksum": (n,), "image": (n, *image.shape[1:])}
    if image.ndim not in (4, 5):
        raise ValueError(f"image has the shape {image.shape}, expected (N, C, [D,] H, W)")
    for name, shape in expected.items():
        if file[name].shape != shape:
            raise ValueError(f"{name} has the shape {file[name].shape}, expected {shape}")
    for name, kind in {"image": np.float16, "mask": np.uint8, "has_mask": np.bool_}.items():
        if file[name].dtype != kind:
            raise ValueError(f"{name} is of {file[name].dtype}, expected {np.dtype(kind)}")
    for name in found:
        if file[name].id.get_storage_size() != file[name].nbytes:
            raise ValueError(f"{name} is not stored as {file[name].nbytes} bytes of this file")


def texts(dataset: h5py.Dataset) -> list[str]:
    """Return a dataset of UTF-8 text as a list."""
    return [text.decode() for text in dataset[:]]


def text_type(values: Sequence[str]) -> np.dtype:
    """Return the type of fixed length that holds all of the texts."""
    return h5py.string_dtype("utf-8", max((len(value.encode()) for value in values), default=1) or 1)
