"""The prediction table: what `oof.csv`, `test.csv` and `her2net_predict` hold.

Columns `case_id,patient_id,fold,label,prob_0,prob_1,...`: one row per case, sorted
by `case_id`, the probabilities of a row sum to 1. `fold` is empty for an
ensemble, `label` is empty where it is unknown or sealed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from her2net.artefact import read_text, write_csv
from her2net.errors import PredictionTableError, describe, join_problems
from her2net.raw.dataset import Case
from her2net.raw.rows import known_or_empty
from her2net.raw.table import CONTROL, clean_cell, point_decimal

FIXED_COLUMNS = ("case_id", "patient_id", "fold", "label")
SUM_TOLERANCE = 1e-4
MAX_CLASSES = 1000
SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of n cases, sorted by case id.

    Attributes:
        case_ids: (n,) unique.
        patient_ids: (n,).
        folds: (n,) the fold whose model predicted the case; "" for an ensemble.
        labels: (n,) int64, -1 where unknown.
        probs: (n, n_classes) float64 in [0, 1], rows sum to 1.
    """

    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    folds: tuple[str, ...]
    labels: np.ndarray
    probs: np.ndarray

    def __len__(self) -> int:
        return len(self.case_ids)

    @property
    def n_classes(self) -> int:
        return int(self.probs.shape[1])

    def take(self, rows: np.ndarray) -> Predictions:
        """Return the given rows (indices or a boolean mask), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        pick = lambda values: tuple(values[i] for i in index)
        return Predictions(
            pick(self.case_ids), pick(self.patient_ids), pick(self.folds), self.labels[index], self.probs[index]
        )

    def with_labels(self, labels: dict[str, int]) -> Predictions:
        """Return the same predictions with the labels of `case_id -> label`; a case not named gets -1."""
        return replace(self, labels=np.array([labels.get(c, -1) for c in self.case_ids], dtype=np.int64))


def make_predictions(
    case_ids: list[str], patient_ids: list[str], probs: np.ndarray, *, labels: list[int | None], folds: list[str]
) -> Predictions:
    """Put rows into a table, sorted by case id, probabilities in float64 rescaled to sum to 1 exactly."""
    order = np.argsort(np.array(case_ids, dtype=str), kind="stable")
    probs64 = np.asarray(probs, dtype=np.float64)
    return Predictions(
        tuple(case_ids[i] for i in order),
        tuple(patient_ids[i] for i in order),
        tuple(folds[i] for i in order),
        np.array([-1 if labels[i] is None else labels[i] for i in order], dtype=np.int64),
        (probs64 / probs64.sum(axis=1, keepdims=True))[order],
    )


def write_predictions(path: Path, table: Predictions) -> None:
    """Write the table as CSV, atomically."""
    columns = [*FIXED_COLUMNS, *(f"prob_{c}" for c in range(table.n_classes))]
    rows = (
        {
            "case_id": table.case_ids[i],
            "patient_id": table.patient_ids[i],
            "fold": table.folds[i],
            "label": None if table.labels[i] < 0 else int(table.labels[i]),
            **{f"prob_{c}": float(table.probs[i, c]) for c in range(table.n_classes)},
        }
        for i in range(len(table))
    )
    write_csv(path, columns, rows)


def read_predictions(path: Path, *, made_by: str = "her2net_ensemble") -> Predictions:
    """Read and check a prediction table from anywhere.

    `patient_id` may be absent (each case is then its own patient), as may `fold` and `label`. Cells are read without padding; a
    label written as missing, such as R's `NA`, is unknown.

    Raises:
        MissingArtefactError: no such file.
        PredictionTableError: every problem of the table, with its row.
    """
    text = read_text(path, made_by=made_by)
    control = CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise PredictionTableError(f"{path}: line {line} holds the control character {control.group()!r}: the file is damaged.")
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text), strict=True, delimiter=separator)
    try:
        header, rows = list(reader.fieldnames or []), list(reader)
    except csv.Error as error:
        raise PredictionTableError(f"{path}: line {reader.line_num}: not CSV ({error}).") from None
    repeated = sorted({name for name in header if header.count(name) > 1} - {""}) if len(set(header)) < len(header) else []
    if repeated:
        raise PredictionTableError(f"{path}: the column {', '.join(map(repr, repeated[:5]))} occurs twice. Keep one of them.")
    if separator != ",":  # a spreadsheet that separates cells otherwise may use the comma as decimal point
        numbers = [name for name in header if name == "label" or name.startswith("prob_")]
        rows = [row | {name: point_decimal(row[name]) for name in numbers if row[name]} for row in rows]
    words = [name for name in FIXED_COLUMNS if name in header]
    rows = [row | {name: clean_cell(row[name]) for name in words if row[name]} for row in rows]
    rows = [row | {"label": known_or_empty(row.get("label") or "")} for row in rows]
    n_classes = sum(name.startswith("prob_") for name in header)
    if n_classes > MAX_CLASSES:
        what = "too many columns of probabilities"
        raise PredictionTableError(describe(what, where=path, found=n_classes, expected=f"at most {MAX_CLASSES}"))
    wanted = ["case_id", *(f"prob_{c}" for c in range(max(n_classes, 2)))]
    absent = [name for name in wanted if name not in header]
    if absent:
        raise PredictionTableError(
            describe(f"column {', '.join(absent)} is absent", where=path, found=", ".join(header) or "no header",
                     expected=", ".join((*FIXED_COLUMNS, "prob_0", "prob_1", "...")))
        )
    problems = _row_problems(rows, n_classes)
    if problems:
        raise PredictionTableError(join_problems(f"{path}: not a prediction table.", problems))
    return make_predictions(
        [row["case_id"] for row in rows],
        [row.get("patient_id") or row["case_id"] for row in rows],
        np.array([[float(row[f"prob_{c}"]) for c in range(n_classes)] for row in rows]).reshape(-1, n_classes),
        labels=[int(float(row["label"])) if row.get("label") else None for row in rows],
        folds=[row.get("fold") or "" for row in rows],
    )


def check_table(path: Path, table: Predictions, cases: Sequence[Case], *, n_classes: int, made_by: str) -> None:
    """Refuse a table that is not one of these cases: whoever is predicted has the patient and the label of the dataset.

    Raises:
        PredictionTableError: unknown cases, other patients or labels, or another number of classes.
    """
    known = {case.case_id: case for case in cases}
    problems = []
    if table.n_classes != n_classes:
        problems.append(describe("another number of classes", found=table.n_classes, expected=n_classes))
    for case_id, patient, label in zip(table.case_ids, table.patient_ids, table.labels.tolist(), strict=True):
        if case_id not in known:
            problems.append(describe("no such case", where=case_id))
        elif patient != known[case_id].patient_id:
            problems.append(describe("another patient", where=case_id, found=patient, expected=known[case_id].patient_id))
        elif label != known[case_id].label:
            problems.append(describe("another label", where=case_id, found=label, expected=known[case_id].label))
    if problems:
        raise PredictionTableError(join_problems(f"{path}: not a table of this dataset. Run {made_by} to make it anew.", problems))


def _row_problems(rows: list[dict[str, str]], n_classes: int) -> list[str]:
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        where = f"row {number} ({row['case_id']})"
        if None in row or None in row.values():
            problems.append(describe("another number of cells than the header has", where=where))
            continue
        if not row["case_id"]:
            problems.append(describe("case_id is empty", where=where))
        elif row["case_id"] in seen:
            problems.append(describe(f"case_id stands in row {seen[row['case_id']]} already", where=where))
        seen.setdefault(row["case_id"], number)
        probs = [_number(row[f"prob_{c}"]) for c in range(n_classes)]
        if any(p is None or not 0 <= p <= 1 for p in probs):
            problems.append(describe("a probability is outside 0..1 or not a number", where=where,
                                     found=", ".join(str(row[f"prob_{c}"]) for c in range(n_classes))))
        elif abs(sum(probs) - 1) > SUM_TOLERANCE:  # type: ignore[arg-type]
            problems.append(describe("the probabilities do not sum to 1", where=where, found=sum(probs)))  # type: ignore[arg-type]
        label = row.get("label")
        if label and _number(label) not in range(n_classes):
            problems.append(describe("label is unknown", where=where, found=label, expected=f"0..{n_classes - 1}"))
    return problems


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in (text or "") else None  # Python alone reads 1_0 as 10
