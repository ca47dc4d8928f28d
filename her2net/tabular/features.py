"""Tables of features: which cases have them, where they come from, and the file that keeps radiomics.

`tables/RAD-US_<digest>.csv` holds one row per case with the digest of what the row was made from: one changed case
recomputes one row. It is plain CSV, so that anyone can read the features.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from her2net.artefact import digest_json, read_text, write_csv
from her2net.errors import CacheError, MissingArtefactError, StaleArtefactError
from her2net.locks import hold
from her2net.memory import largest_case
from her2net.paths import DatasetPaths
from her2net.plan.table_schema import CovariateKind, TablePlan
from her2net.preprocess.cache import CaseFiles
from her2net.progress import choose_workers, map_in_processes
from her2net.project import Project, list_files
from her2net.raw.dataset import Case
from her2net.raw.images import read_mask
from her2net.raw.scan import Scan
from her2net.tabular.radiomics import describe_case, require_mirp

FEATURES_VERSION = 2  # raise when the same image and plan give other features
FIXED = ("case_id", "digest")


@dataclass(frozen=True)
class FeatureTable:
    """Features of n cases, as they are: not scaled, not imputed.

    Attributes:
        columns: name -> (n,) float64 with NaN where missing, or text with "" where missing.
        kinds: name -> kind; text where it is binary or categorical.
    """

    case_ids: tuple[str, ...]
    columns: dict[str, np.ndarray]
    kinds: dict[str, CovariateKind]

    def __len__(self) -> int:
        return len(self.case_ids)

    def take(self, rows: np.ndarray) -> FeatureTable:
        """Return the given rows (indices or a boolean mask), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {name: values[index] for name, values in self.columns.items()}
        return FeatureTable(tuple(self.case_ids[i] for i in index), columns, self.kinds)

    @property
    def digest(self) -> str:
        """Digest of every value."""
        values = {name: [None if v != v else v for v in column.tolist()] for name, column in self.columns.items()}
        return digest_json([list(self.case_ids), values, self.kinds])


def is_text(kind: CovariateKind) -> bool:
    """Whether values of this kind are levels, not numbers."""
    return kind in ("binary", "categorical")


def cases_with(table: TablePlan, cases: Sequence[Case], scan: Scan) -> tuple[Case, ...]:
    """Return the cases that the table describes: with an image and a lesion, or with any covariate filled."""
    if table.modality is None:
        return tuple(case for case in cases if any(case.covariates.get(name) for name in table.columns))
    name, scans = table.modality, scan.find()
    return tuple(
        case for case in cases
        if name in case.masks and scans[case.case_id].images[name].lesion is not None
    )  # fmt: skip


def covariate_table(table: TablePlan, covariates: Mapping[str, Mapping[str, str]]) -> FeatureTable:
    """Put covariates, case id -> column -> text, into a table."""
    ids = sorted(covariates)
    columns: dict[str, np.ndarray] = {}
    for name, kind in table.columns.items():
        cells = [covariates[case_id].get(name, "") for case_id in ids]
        columns[name] = np.array(cells, dtype=object) if is_text(kind) else np.array([float(c or "nan") for c in cells])
    return FeatureTable(tuple(ids), columns, dict(table.columns))


def features_of(project: Project, name: str, cases: Sequence[Case], *, quiet: bool = True) -> FeatureTable:
    """Return the features of some cases of a dataset, in the order of their ids; computes what is not there yet."""
    table = project.plan.tables[name]
    ordered = sorted(cases, key=lambda case: case.case_id)
    if table.modality is None:
        return covariate_table(table, {case.case_id: case.covariates for case in ordered})
    files = list_files(project.scan, table.modality, tuple(ordered))
    channels = project.plan.modalities[table.modality].channels
    rows = update_features(project.paths, name, table, channels, files, n_workers=None, quiet=quiet)[1]
    return _as_table([case.case_id for case in ordered], rows)


def build_features(project: Project, name: str, *, n_workers: int | None, quiet: bool) -> tuple[int, int]:
    """Compute the radiomics of the training cases that is not there yet; return how many of how many were."""
    table = project.plan.tables[name]
    cases = cases_with(table, project.dataset.train, project.scan)
    if table.modality is None:
        return 0, len(cases)
    files = list_files(project.scan, table.modality, cases)
    channels = project.plan.modalities[table.modality].channels
    return update_features(project.paths, name, table, channels, files, n_workers=n_workers, quiet=quiet)[0], len(cases)


def has_lesion(case: CaseFiles) -> bool:
    """Whether a case has a mask that marks something; unreadable masks are an error of the images, told there."""
    return case.mask is not None and bool(read_mask(case.mask).array.any())


def radiomics_table(
    table: TablePlan, channels: list[str], files: Sequence[CaseFiles], *, n_workers: int | None, quiet: bool
) -> FeatureTable:
    """Return the features of images from anywhere that have a mask; nothing is kept."""
    rows = dict(_compute(table, channels, files, n_workers=n_workers, quiet=quiet, description=f"Radiomics {table.modality}"))
    return _as_table(sorted(rows), rows)


def _as_table(ids: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> FeatureTable:
    names = list(dict.fromkeys(name for case_id in ids for name in rows[case_id]))
    columns = {name: np.array([rows[case_id].get(name, np.nan) for case_id in ids], dtype=np.float64) for name in names}
    return FeatureTable(tuple(ids), columns, dict.fromkeys(names, "continuous"))


def features_digest(case: CaseFiles, table: TablePlan) -> str:
    """Digest of everything that the features of one case depend on."""
    return digest_json([FEATURES_VERSION, case.case_id, case.source_digest, table.features_digest])


def missing_features(paths: DatasetPaths, name: str, table: TablePlan, files: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Return the cases whose features are not there, or were made from something else."""
    known = _read(paths.features(name, table.features_digest))
    return [case for case in files if features_digest(case, table) not in known]


def update_features(
    paths: DatasetPaths, name: str, table: TablePlan, channels: list[str], files: Sequence[CaseFiles], *,
    n_workers: int | None, quiet: bool,
) -> tuple[int, dict[str, dict[str, float]]]:  # fmt: skip
    """Compute what is missing and keep it; what was computed before an interruption is kept, too.

    Returns:
        How many cases were computed, and case id -> features.

    Raises:
        MissingDependencyError: mirp is not installed, and something has to be computed.
        RawDataError: a case cannot be described.
    """
    path = paths.features(name, table.features_digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path, f"the features of {name}"):
        known = _read(path)
        wanted = {case.case_id: features_digest(case, table) for case in files}
        todo = [case for case in files if wanted[case.case_id] not in known]
        try:
            for case_id, features in _compute(table, channels, todo, n_workers=n_workers, quiet=quiet, description=f"Features {name}"):
                known[wanted[case_id]] = (case_id, features)
        finally:
            if todo:
                superseded = set(wanted)
                _write(path, {d: row for d, row in known.items() if row[0] not in superseded or d == wanted[row[0]]})
    return len(todo), {case_id: known[digest][1] for case_id, digest in wanted.items()}


def _compute(
    table: TablePlan, channels: list[str], files: Sequence[CaseFiles], *, n_workers: int | None, quiet: bool, description: str
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (case id, features) as they come."""
    if not files:
        return
    require_mirp()
    for index, features in map_in_processes(
        partial(_describe, channels=channels, table=table), list(files), description=description, quiet=quiet,
        n_workers=choose_workers(n_workers, largest_case(case.paths for case in files)), name_of=lambda case: case.case_id,
    ):  # fmt: skip
        yield files[index].case_id, features


def _describe(case: CaseFiles, channels: list[str], table: TablePlan) -> dict[str, float]:
    """Describe one case; at module level so that worker processes find it."""
    if case.mask is None or table.radiomics is None:
        raise StaleArtefactError(f"{case.case_id}: has no mask any more. Run her2net_plan.")
    return describe_case(case.images, case.mask, channels, table.radiomics)


def _read(path: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """Return digest -> (case id, features) of a file; empty if there is none.

    Raises:
        CacheError: the file was changed by hand.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
    except MissingArtefactError:
        return {}
    try:
        return {
            row["digest"]: (row["case_id"], {k: float(v or "nan") for k, v in row.items() if k not in FIXED}) for row in rows
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(f"{path}: not a table of features ({error}). Delete it and run her2net_plan.") from None


def _write(path: Path, known: Mapping[str, tuple[str, Mapping[str, float]]]) -> None:
    rows = sorted(((case_id, digest, features) for digest, (case_id, features) in known.items()), key=lambda row: row[0])
    names = list(dict.fromkeys(name for _, _, features in rows for name in features))
    write_csv(path, [*FIXED, *names], ({"case_id": c, "digest": d, **f} for c, d, f in rows))

