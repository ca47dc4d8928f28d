"""The cache: one uncompressed HDF5 file per modality and preprocessing digest.

    image     (N, C, [D,] H, W) float16, z-scored, contiguous
    mask      (N, [D,] H, W) uint8
    case_id   (N,) text, sorted            has_mask  (N,) bool
    digest    (N,) text: what the row was made from; one changed case recomputes one row
    checksum  (N,) text: of all else in the row; a damaged row is found and rebuilt
    attribute version of the preprocessing; complete = True, written last

Workers return arrays and one process writes, to a temporary name that is renamed at
the end. Files are opened when needed and closed at once; no handle outlives a function or a fork.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from her2net.artefact import digest_bytes, digest_json, explain_write_failure, replacing
from her2net.errors import CacheError, MissingArtefactError, WriteError
from her2net.memory import fits_in_memory, largest_case
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.layout import Layout, create, opened, reserve, text_type, texts
from her2net.preprocess.prepare import PreparedCase, prepare_case
from her2net.progress import choose_workers, map_in_processes

CACHE_VERSION = 3  # raise when the same plan gives other arrays
DIGEST_TYPE = text_type([digest_bytes(b"")])


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case of one modality, and the digest of their content."""

    case_id: str
    images: tuple[Path, ...]
    mask: Path | None
    source_digest: str

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self.images, *([self.mask] if self.mask else []))


@dataclass(frozen=True)
class Cache:
    """The rows of a cache in memory; see the module for shapes."""

    case_ids: tuple[str, ...]
    image: np.ndarray
    mask: np.ndarray
    digests: tuple[str, ...]


def method_digest(plan: PreprocessingPlan) -> str:
    """Digest of how images are prepared, whichever they are."""
    return digest_json([CACHE_VERSION, plan.digest])


def row_digest(case: CaseFiles, plan: PreprocessingPlan) -> str:
    """Digest of everything one row depends on."""
    return digest_json([CACHE_VERSION, case.case_id, case.source_digest, case.mask is not None, plan.digest])


def cache_is_fresh(path: Path, cases: Sequence[CaseFiles], plan: PreprocessingPlan) -> bool:
    """Whether the cache holds exactly these cases, made from exactly this; pixels are not read."""
    try:
        return not explain_staleness(path, cases, plan)
    except (MissingArtefactError, CacheError):
        return False


def explain_staleness(path: Path, cases: Sequence[CaseFiles], plan: PreprocessingPlan) -> str:
    """Say what differs between the cache and what it should hold; empty if nothing. Pixels are not read.

    Raises:
        MissingArtefactError: no cache.
        CacheError: it cannot be read.
    """
    with opened(path) as file:
        found = dict(zip(texts(file["case_id"]), texts(file["digest"]), strict=True))
        version = int(file.attrs.get("version", 0))
    if version != CACHE_VERSION:
        return f"this her2net prepares images in another way (version {CACHE_VERSION}, cache {version})"
    wanted = {case.case_id: row_digest(case, plan) for case in cases}
    kinds = {
        "changed": [c for c in wanted if c in found and found[c] != wanted[c]],
        "new": [c for c in wanted if c not in found],
        "gone": [c for c in found if c not in wanted],
    }
    parts = [f"{len(ids)} {kind}: {', '.join(ids[:3])}{', ...' * (len(ids) > 3)}" for kind, ids in kinds.items() if ids]
    return "; ".join(parts)


def build_cache(
    path: Path, cases: Sequence[CaseFiles], plan: PreprocessingPlan, *, n_workers: int | None, quiet: bool = False
) -> int:
    """Make the cache, or bring it up to date; return how many cases were computed.

    Args:
        cases: sorted by case id. Memory does not grow with their number.
        n_workers: `None` chooses by processors and free memory.

    Raises:
        RawDataError: a case cannot be read.
        WriteError: the disk is full or the folder cannot be written; a former cache is untouched.
    """
    reusable = _sound_rows(path, (len(cases[0].images) + len(plan.derived_channels), *plan.stored_vox))
    wanted = [row_digest(case, plan) for case in cases]
    if reusable and list(reusable) == wanted:
        return 0
    missing = [i for i, digest in enumerate(wanted) if digest not in reusable]
    try:
        with replacing(path) as temporary:
            _write(temporary, path, cases, wanted, reusable, missing, plan, n_workers, quiet)
    except RuntimeError as error:  # so the HDF5 library words a full disk
        if "write failed" in str(error):
            raise WriteError(explain_write_failure(path, OSError(str(error)))) from error
        raise
    return len(missing)


def _write(
    temporary: Path, path: Path, cases: Sequence[CaseFiles], wanted: list[str], reusable: dict[str, int],
    missing: list[int], plan: PreprocessingPlan, n_workers: int | None, quiet: bool,
) -> None:  # fmt: skip
    n, names = len(cases), [case.case_id for case in cases]
    layout: Layout = {
        "image": ((n, len(cases[0].images) + len(plan.derived_channels), *plan.stored_vox), np.dtype(np.float16)),
        "mask": ((n, *plan.stored_vox), np.dtype(np.uint8)),
        "case_id": ((n,), text_type(names)), "has_mask": ((n,), np.dtype(bool)),
        "digest": ((n,), DIGEST_TYPE), "checksum": ((n,), DIGEST_TYPE),
    }  # fmt: skip
    todo = [cases[i] for i in missing]
    with create(temporary, layout, {"version": CACHE_VERSION}) as rows:

        def put(row: int, case: PreparedCase) -> None:
            for name, value in (("image", case.image), ("mask", case.mask), ("has_mask", np.bool_(case.has_mask))):
                rows.put(name, row, value)
            checksum = _checksum(names[row], wanted[row], case.has_mask, case.image, case.mask)
            for name, text in (("case_id", names[row]), ("digest", wanted[row]), ("checksum", checksum)):
                rows.put(name, row, np.array(text.encode(), dtype=layout[name][1]))

        for row, case in _kept_rows(path, wanted, reusable):
            put(row, case)
        for k, case in map_in_processes(
            partial(prepare_files, plan=plan), todo, description="Preprocess", quiet=quiet,
            n_workers=choose_workers(n_workers, largest_case(case.paths for case in todo)), name_of=lambda c: c.case_id,
        ):  # fmt: skip
            put(missing[k], case)


def _kept_rows(path: Path, wanted: list[str], reusable: dict[str, int]) -> Iterator[tuple[int, PreparedCase]]:
    """Yield the rows of the former cache that go into the new one, and their places there."""
    if reusable:
        with opened(path) as old:
            for row, digest in enumerate(wanted):
                if digest in reusable:
                    k = reusable[digest]
                    yield row, PreparedCase(old["image"][k], old["mask"][k], bool(old["has_mask"][k]))


def prepare_files(case: CaseFiles, plan: PreprocessingPlan) -> PreparedCase:
    """Read and prepare one case; at module level so that worker processes find it."""
    return prepare_case(case.images, case.mask, plan)


def load_cache(path: Path, case_ids: Sequence[str]) -> Cache:
    """Read the given cases, in the given order, and check every row. Takes no more memory than what it returns.

    Where that is more than a share of the free memory, the arrays lie in files without a name beside the cache, and the
    system reads what is asked for; they vanish with the arrays.

    Raises:
        MissingArtefactError: no cache.
        CacheError: incomplete, damaged, or without one of the cases.
        WriteError: it does not fit into memory, nor a copy on the disk.
    """
    with opened(path) as file:
        place = {case_id: i for i, case_id in enumerate(texts(file["case_id"]))}
        absent = [case_id for case_id in case_ids if case_id not in place]
        if absent:
            raise CacheError(f"{path}: holds no case {', '.join(absent[:5])}. Run her2net_plan to bring it up to date.")
        shapes = {name: (len(case_ids), *file[name].shape[1:]) for name in ("image", "mask")}
        n_bytes = 2 * math.prod(shapes["image"]) + math.prod(shapes["mask"])
        held = fits_in_memory(n_bytes)
        image, mask = (np.empty(shapes[name], dtype) if held else _on_disk(path, shapes[name], dtype)
                       for name, dtype in (("image", np.dtype(np.float16)), ("mask", np.dtype(np.uint8))))  # fmt: skip
        digests, damaged = texts(file["digest"]), []
        for i, case_id in enumerate(case_ids):
            image[i], mask[i] = file["image"][place[case_id]], file["mask"][place[case_id]]
            if not _is_sound(file, place[case_id], case_id, digests[place[case_id]], image[i], mask[i]):
                damaged.append(case_id)
    if damaged:
        raise CacheError(f"{path}: damaged rows: {', '.join(damaged[:5])}. Run her2net_plan; it rebuilds those alone.")
    return Cache(tuple(case_ids), image, mask, tuple(digests[place[case_id]] for case_id in case_ids))


def _on_disk(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array in a file without a name, beside `path`; its space is reserved, since a full disk would end the process."""
    n_bytes = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            reserve(file.fileno(), n_bytes)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise WriteError(explain_write_failure(path, error)) from error


def _sound_rows(path: Path, shape: tuple[int, ...]) -> dict[str, int]:
    """Return digest -> row for the undamaged rows of an existing cache of images of this shape, in their order."""
    try:
        with opened(path) as file:
            if file["image"].shape[1:] != shape:
                return {}
            names, digests = texts(file["case_id"]), texts(file["digest"])
            return {
                digest: k
                for k, (name, digest) in enumerate(zip(names, digests, strict=True))
                if _is_sound(file, k, name, digest, file["image"][k], file["mask"][k])
            }
    except (MissingArtefactError, CacheError):
        return {}


def _is_sound(file: h5py.File, row: int, case_id: str, digest: str, image: np.ndarray, mask: np.ndarray) -> bool:
    found = _checksum(case_id, digest, bool(file["has_mask"][row]), image, mask)
    return found == file["checksum"][row].decode(errors="replace")


def _checksum(case_id: str, digest: str, has_mask: bool, image: np.ndarray, mask: np.ndarray) -> str:
    head = digest_json([case_id, digest, bool(has_mask)]).encode()
    return digest_bytes(head + np.ascontiguousarray(image).tobytes() + np.ascontiguousarray(mask).tobytes())
