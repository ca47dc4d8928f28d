"""The cache: one uncompressed HDF5 file per modality and preprocessing digest.

    image     (N, C, [D,] H, W) float16, z-scored, contiguous
    mask      (N, [D,] H, W) uint8
    case_id   (N,) text, sorted            has_mask  (N,) bool
    digest    (N,) text: what the row was made from; one changed case recomputes one row
    checksum  (N,) text: of the row's bytes; a damaged row is found and rebuilt
    attribute complete = True, written last

Workers return arrays and one process writes, to a temporary name that is renamed at
the end. Files are read whole and closed; no handle outlives a function or a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from her2net.artefact import digest_bytes, digest_json
from her2net.errors import CacheError, MissingArtefactError
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.prepare import PreparedCase, prepare_case
from her2net.progress import map_in_processes

CACHE_VERSION = 1  # raise when the same plan gives other arrays


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case of one modality, and the digest of their content."""

    case_id: str
    images: tuple[Path, ...]
    mask: Path | None
    source_digest: str


@dataclass(frozen=True)
class Cache:
    """The rows of a cache in memory; see the module for shapes."""

    case_ids: tuple[str, ...]
    image: np.ndarray
    mask: np.ndarray
    digests: tuple[str, ...]


def row_digest(case: CaseFiles, plan: PreprocessingPlan) -> str:
    """Digest of everything one row depends on."""
    return digest_json([CACHE_VERSION, case.case_id, case.source_digest, case.mask is not None, plan.digest])


def cache_is_fresh(path: Path, cases: Sequence[CaseFiles], plan: PreprocessingPlan) -> bool:
    """Whether the cache holds exactly these cases, made from exactly this."""
    try:
        with _open(path) as file:
            return _texts(file["digest"]) == [row_digest(case, plan) for case in cases]
    except (MissingArtefactError, CacheError):
        return False


def build_cache(
    path: Path, cases: Sequence[CaseFiles], plan: PreprocessingPlan, *, n_workers: int, quiet: bool = False
) -> int:
    """Make the cache, or bring it up to date; return how many cases were computed.

    Args:
        cases: sorted by case id. Memory does not grow with their number.

    Raises:
        RawDataError: a case cannot be read.
        CacheError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reusable = _sound_rows(path)
    wanted = [row_digest(case, plan) for case in cases]
    missing = [i for i, digest in enumerate(wanted) if digest not in reusable]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, path, cases, wanted, reusable, missing, plan, n_workers, quiet)
        os.replace(temporary, path)
    except OSError as error:
        raise CacheError(f"{path}: the cache cannot be written ({error}). Free some space or check the folder.") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return len(missing)


def _write(
    temporary: Path, path: Path, cases: Sequence[CaseFiles], wanted: list[str], reusable: dict[str, int],
    missing: list[int], plan: PreprocessingPlan, n_workers: int, quiet: bool,
) -> None:  # fmt: skip
    with h5py.File(temporary, "w", locking=False) as file:
        n_channels = len(cases[0].images) + len(plan.derived_channels)
        image = file.create_dataset("image", (len(cases), n_channels, *plan.stored_vox), np.float16)
        mask = file.create_dataset("mask", (len(cases), *plan.stored_vox), np.uint8)
        has_mask, checksums = np.zeros(len(cases), bool), [""] * len(cases)

        def put(row: int, case: PreparedCase) -> None:
            image[row], mask[row], has_mask[row] = case.image, case.mask, case.has_mask
            checksums[row] = _checksum(case.image, case.mask)

        if reusable:
            with _open(path) as old:
                for row, digest in enumerate(wanted):
                    if digest in reusable:
                        k = reusable[digest]
                        put(row, PreparedCase(old["image"][k], old["mask"][k], bool(old["has_mask"][k])))
        todo = [cases[i] for i in missing]
        for k, case in map_in_processes(
            partial(_prepare, plan=plan), todo, n_workers=n_workers, description="Preprocess", quiet=quiet,
            name_of=lambda c: c.case_id,
        ):  # fmt: skip
            put(missing[k], case)
        file["case_id"], file["has_mask"] = [case.case_id for case in cases], has_mask
        file["digest"], file["checksum"] = wanted, checksums
        file.flush()
        file.attrs["complete"] = True


def _prepare(case: CaseFiles, plan: PreprocessingPlan) -> PreparedCase:
    return prepare_case(case.images, case.mask, plan)


def load_cache(path: Path, case_ids: Sequence[str]) -> Cache:
    """Read the given cases, in the given order, and check every row.

    Raises:
        MissingArtefactError: no cache.
        CacheError: incomplete, damaged, or without one of the cases.
    """
    with _open(path) as file:
        place = {case_id: i for i, case_id in enumerate(_texts(file["case_id"]))}
        absent = [case_id for case_id in case_ids if case_id not in place]
        if absent:
            raise CacheError(f"{path}: holds no case {', '.join(absent[:5])}. Run her2net_plan to bring it up to date.")
        rows = [place[case_id] for case_id in case_ids]
        image, mask = file["image"][:][rows], file["mask"][:][rows]
        digests, checksums = _texts(file["digest"]), _texts(file["checksum"])
    damaged = [c for c, k, x, m in zip(case_ids, rows, image, mask, strict=True) if _checksum(x, m) != checksums[k]]
    if damaged:
        raise CacheError(f"{path}: damaged rows: {', '.join(damaged[:5])}. Run her2net_plan; it rebuilds those alone.")
    return Cache(tuple(case_ids), image, mask, tuple(digests[k] for k in rows))


def _sound_rows(path: Path) -> dict[str, int]:
    """Return digest -> row for the undamaged rows of an existing cache."""
    try:
        with _open(path) as file:
            digests, checksums = _texts(file["digest"]), _texts(file["checksum"])
            return {
                digest: k
                for k, digest in enumerate(digests)
                if _checksum(file["image"][k], file["mask"][k]) == checksums[k]
            }
    except (MissingArtefactError, CacheError):
        return {}


def _checksum(image: np.ndarray, mask: np.ndarray) -> str:
    return digest_bytes(np.ascontiguousarray(image).tobytes() + np.ascontiguousarray(mask).tobytes())


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [text.decode() for text in dataset[:]]


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not path.exists():
        raise MissingArtefactError(f"{path}: no such file. Run her2net_plan first.")
    remedy = "Delete it and run her2net_plan, which makes it anew."
    try:
        with h5py.File(path, "r", locking=False) as file:
            if not file.attrs.get("complete", False):
                raise CacheError(f"{path}: the cache is incomplete. {remedy}")
            yield file
    except (OSError, KeyError) as error:
        raise CacheError(f"{path}: the cache cannot be read ({error}). {remedy}") from error
