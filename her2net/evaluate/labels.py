"""Labels from a table of cases, for prediction tables that have none; and what else stands in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from her2net.errors import PredictionTableError, join_problems
from her2net.evaluate.facts import Facts, facts_of_rows
from her2net.predictions import Predictions
from her2net.raw.names import normalise
from her2net.raw.problems import enumerate_names, errors_of
from her2net.raw.rows import CaseRow, is_missing, load_rows
from her2net.raw.spec import DatasetSpec, load_spec
from her2net.raw.table import Table, point_decimal, read_table

OBVIOUS_NAMES = {"negative": 0, "positive": 1}
"""The one pair of class names whose numbers need no dataset.json."""


@dataclass(frozen=True)
class GivenLabels:
    """What `--labels` holds.

    Attributes:
        labels: case id -> class number, -1 where it is empty.
        class_names: name of each class; empty where unknown.
        patients: case id -> patient, where the table says.
        facts: covariates and sites, where a dataset.json beside the table declares them.
    """

    labels: dict[str, int]
    class_names: list[str] = field(default_factory=list)
    patients: dict[str, str] = field(default_factory=dict)
    facts: Facts | None = None


def read_labels(path: Path) -> GivenLabels:
    """Read a table with the columns `case_id` and `label`, numbers or names of classes.

    A dataset.json beside it says which number a name has, and declares patients, covariates and site, which are read
    as far as the table has their columns. Without one, labels are numbers, or the names negative and positive.

    Raises:
        PredictionTableError: every problem of the table.
    """
    spec = _read_spec(path.parent)
    table, problems = read_table(path, where=path.name, required=("case_id", "label"))
    wrong = [str(problem) for problem in errors_of(problems)]
    if table is not None:
        wrong += [f"the column {name!r} is absent; columns: {enumerate_names(table.columns)}"
                  for name in ("case_id", "label") if table.find_column(name) is None]  # fmt: skip
    if table is None or wrong:
        raise PredictionTableError(join_problems(f"{path}: not a table of labels.", wrong))
    labels, wrong = _parse_labels(table, OBVIOUS_NAMES if spec is None else spec.labels, declared=spec is not None)
    rows: list[CaseRow] = []
    if spec is not None and _has_columns(table, spec):
        found, problems = load_rows(path.parent, spec, name=path.name)
        rows, wrong = list(found or ()), wrong + [str(problem) for problem in errors_of(problems)]
    if wrong:
        raise PredictionTableError(join_problems(f"{path}: the labels cannot be read.", wrong))
    if spec is None:
        return GivenLabels(labels, _obvious_names(table), _patients(table, "patient_id"))
    rows = [replace(row, case_id=normalise(row.case_id), patient_id=normalise(row.patient_id)) for row in rows]
    facts = facts_of_rows(rows, labels, spec) if rows else None
    return GivenLabels(labels, list(spec.class_names), _patients(table, spec.patient), facts)


def _read_spec(folder: Path) -> DatasetSpec | None:
    """Return what a dataset.json says; `None` without one.

    Raises:
        PredictionTableError: it is not valid.
    """
    path = folder / "dataset.json"
    if not path.exists():
        return None
    spec, problems = load_spec(folder)
    if spec is None:
        wrong = [str(problem) for problem in errors_of(problems)]
        raise PredictionTableError(join_problems(f"{path}: says what the labels mean, but is not valid.", wrong))
    return spec


def _parse_labels(table: Table, names: Mapping[str, int], *, declared: bool) -> tuple[dict[str, int], list[str]]:
    numbers = {name.strip().casefold(): number for name, number in names.items()}
    case_id, label = (table.find_column(name) or "" for name in ("case_id", "label"))
    labels: dict[str, int] = {}
    wrong, unknown = [], set()
    for row in table.rows:
        key, text = normalise(row.cells[case_id]), row.cells[label]
        if key in labels:
            wrong.append(f"row {row.number}: the case_id {key!r} occurs twice")
        written = point_decimal(text) if table.decimal_comma else text
        number = numbers.get(text.casefold(), -1 if is_missing(text) else _class_number(written))
        if number is None or (declared and number not in (-1, *names.values())):
            unknown.add(text)
        labels[key] = -1 if number is None else number
    if unknown and declared:
        known = ", ".join(f"{number} ({name})" for name, number in names.items())
        wrong.append(f"unknown labels: {enumerate_names(sorted(map(repr, unknown)))}; dataset.json declares {known}")
    elif unknown:
        wrong.append(
            f"the labels {enumerate_names(sorted(map(repr, unknown)))} are not class numbers, and no dataset.json beside "
            "the table says which numbers they have. Write 0, 1, ..., or put the dataset.json there."
        )
    return labels, wrong


def _class_number(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < 1000 else None


def _has_columns(table: Table, spec: DatasetSpec) -> bool:
    wanted = [spec.patient, *spec.covariates, *([] if spec.site is None else [spec.site])]
    return all(table.find_column(name) is not None for name in wanted)


def _obvious_names(table: Table) -> list[str]:
    label = table.find_column("label") or ""
    return list(OBVIOUS_NAMES) if any(row.cells[label].casefold() in OBVIOUS_NAMES for row in table.rows) else []


def _patients(table: Table, column: str) -> dict[str, str]:
    case_id, patient = table.find_column("case_id") or "", table.find_column(column)
    found = table.rows if patient else []
    return {normalise(row.cells[case_id]): normalise(name) for row in found if not is_missing(name := row.cells[patient or ""])}


def put_in_labels(file: Path, table: Predictions, given: GivenLabels) -> Predictions:
    """Put in the labels of another file; labels of the table stay where that file has an empty cell.

    Patients are put in too, where the table names none for a case.

    Raises:
        PredictionTableError: the two disagree, a label is not a class of the table, or a case is unknown.
    """
    problems, merged = [], table.labels.copy()
    unknown = [case_id for case_id in table.case_ids if case_id not in given.labels]
    if len(unknown) == len(table):
        raise PredictionTableError(
            f"{file}: no case has a label: none of its cases is in --labels (here {enumerate_names(table.case_ids, limit=3)}; "
            f"there {enumerate_names(given.labels, limit=3)})."
        )
    if given.class_names and len(given.class_names) != table.n_classes:
        problems.append(f"{table.n_classes} classes in the table, {len(given.class_names)} in the labels: "
                        f"{', '.join(given.class_names)}")  # fmt: skip
    if unknown:
        problems.append(f"{len(unknown)} of {len(table)} cases are not in the labels: {enumerate_names(unknown)}")
    for i, (case_id, old) in enumerate(zip(table.case_ids, table.labels, strict=True)):
        new = given.labels.get(case_id, -1)
        if new >= table.n_classes:
            problems.append(f"{case_id}: label {new} is not a class of this table (0..{table.n_classes - 1})")
        elif old >= 0 <= new and old != new:
            problems.append(f"{case_id}: label {old} in the table, {new} in the labels")
        merged[i] = new if new >= 0 else old
    if problems:
        raise PredictionTableError(join_problems(f"{file}: its labels and those of --labels do not fit.", problems))
    return name_patients(table, given.patients).with_labels({c: int(v) for c, v in zip(table.case_ids, merged, strict=True) if v >= 0})


def name_patients(table: Predictions, patients: Mapping[str, str]) -> Predictions:
    """Give the cases that are their own patient, because the table names none, the patient of `case_id -> patient`."""
    owners = zip(table.case_ids, table.patient_ids, strict=True)
    return replace(table, patient_ids=tuple(patients.get(c, p) if c == p else p for c, p in owners))
