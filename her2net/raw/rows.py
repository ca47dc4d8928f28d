"""The rows of `cases.csv`: ids, labels, patients, sites and declared covariates, each checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from her2net.errors import RawDataError, describe, join_problems
from her2net.raw.names import explain_bad_name, normalise, word_key
from her2net.raw.problems import Problem, enumerate_names, errors_of, problem
from her2net.raw.spec import CovariateKind, DatasetSpec
from her2net.raw.table import Row, Table, point_decimal, read_table

CASES = "cases.csv"
NUMERIC = ("continuous", "ordinal")
MISSING_NUMBER = {"", "na", "n/a", "nan", "none", "null", "-", "?", "."}
MISSING_LEVEL = MISSING_NUMBER - {"none", "-"}
"""Where cells are words, none of something and - beside + are findings."""


def is_missing(cell: str) -> bool:
    """Whether a cell of words is empty, or says so as programs write it."""
    return cell.casefold() in MISSING_LEVEL


@dataclass(frozen=True)
class CaseRow:
    """One row; `label` is still text, so that those of test cases are not looked at."""

    number: int
    case_id: str
    patient_id: str
    label: str
    site: str | None
    covariates: dict[str, str]

    @property
    def where(self) -> str:
        return f"{CASES} row {self.number}"


@dataclass(frozen=True)
class _Columns:
    case_id: str
    label: str
    patient: str
    site: str | None
    covariates: dict[str, str]


def load_rows(folder: Path, spec: DatasetSpec, *, name: str = CASES) -> tuple[list[CaseRow] | None, list[Problem]]:
    """Read `cases.csv` and check every row; a row with an impossible or repeated id is left out."""
    rows, problems = read_case_table(folder, spec, name=name)
    if rows is None:
        return None, problems
    kept, found = _check_ids(rows)
    return kept, problems + found + _check_covariates(kept, spec)


def read_case_table(
    folder: Path, spec: DatasetSpec, *, name: str = CASES
) -> tuple[list[CaseRow] | None, list[Problem]]:
    """Read `cases.csv` without judging its rows; `None` where a required column is absent."""
    required = ("case_id", "label", spec.patient)
    table, problems = read_table(folder / name, where=name, required=required)
    if table is None:
        return None, problems
    columns, found = _find_columns(table, spec)
    problems += found
    if columns is None:
        return None, problems
    rows = [_make_row(row, columns, spec, table.decimal_comma) for row in table.rows]
    return _settle_spelling(rows, spec.covariates), problems


def read_covariates(path: Path, kinds: Mapping[str, CovariateKind]) -> dict[str, dict[str, str]]:
    """Read covariates of new cases from a table with `case_id`: case id -> column -> cell, empty where missing.

    Ids are in composed Unicode form. A column that the table lacks is in no row. Levels stay as they are spelled: `encode` knows
    those of training.

    Raises:
        RawDataError: not a table, no `case_id`, a case that stands twice, or a cell of another kind; lists them all.
    """
    headline = f"{path}: the covariates cannot be read."
    table, problems = read_table(path, where=path.name, required=("case_id",))
    id_column = None if table is None else table.find_column("case_id")
    if table is None or id_column is None:
        lacking = [] if table is None else ["the column 'case_id' is absent."]
        raise RawDataError(join_problems(headline, [*map(str, errors_of(problems)), *lacking]))
    columns = {name: column for name in kinds if (column := table.find_column(name)) is not None}
    messages = [str(item) for item in errors_of(problems)]
    found: dict[str, dict[str, str]] = {}
    for row in table.rows:
        case_id, where = normalise(row.cells[id_column]), f"{path.name} row {row.number}"
        values = {n: _clean_value(row.cells[column], kinds[n], table.decimal_comma) for n, column in columns.items()}
        if case_id in found:
            messages.append(describe(f"case {case_id!r} stands twice", where=where, remedy="Keep one row."))
        messages += [
            describe(f"column {name} is declared {kinds[name]}, not a number", where=where, found=value[:60])
            for name, value in values.items()
            if kinds[name] in NUMERIC and value and _to_number(value) is None
        ]
        found[case_id] = values
    if messages:
        raise RawDataError(join_problems(headline, messages))
    return found


def _find_columns(table: Table, spec: DatasetSpec) -> tuple[_Columns | None, list[Problem]]:
    problems = []

    def find(name: str, check: str, source: str) -> str | None:
        column = table.find_column(name)
        if column is None:
            what = f"the column {name!r} ({source}) is absent"
            found = enumerate_names(table.columns) or "no column"
            remedy = "Add it, or correct its name in the header or in dataset.json."
            problems.append(problem("error", check, f"{CASES} header", f"{what}; columns: {found}", remedy=remedy))
        return column

    case_id = find("case_id", "column-missing", "required")
    label = find("label", "column-missing", "required")
    patient = find(spec.patient, "column-missing", "the patient")
    site = find(spec.site, "column-missing", "the declared site") if spec.site is not None else None
    covariates = {name: find(name, "column-missing", "a declared covariate") for name in spec.covariates}
    if case_id is None or label is None or patient is None:
        return None, problems
    present = {name: column for name, column in covariates.items() if column is not None}
    return _Columns(case_id, label, patient, site, present), problems


def _make_row(row: Row, columns: _Columns, spec: DatasetSpec, decimal_comma: bool) -> CaseRow:
    covariates = {
        name: _clean_value(row.cells[column], spec.covariates[name], decimal_comma)
        for name, column in columns.covariates.items()
    }
    classes = {word_key(name.strip()) for name in spec.labels}
    label, patient, site = (row.cells[column] if column else "" for column in (columns.label, columns.patient, columns.site))
    return CaseRow(
        number=row.number,
        case_id=row.cells[columns.case_id],
        patient_id=known_or_empty(patient),
        label=_point(label if word_key(label) in classes else known_or_empty(label), decimal_comma),
        site=known_or_empty(site) or None,
        covariates=covariates,
    )


def _settle_spelling(rows: Sequence[CaseRow], kinds: Mapping[str, CovariateKind]) -> list[CaseRow]:
    """Spell each level of a binary or categorical covariate as where it occurs first, so that `yes` is no other level than `Yes`.

    Likewise a site, and a patient in two Unicode forms, who would stand on both sides of a fold.
    """
    first: dict[tuple[str, str], str] = {}
    forms: dict[str, str] = {}
    sites: dict[str, str] = {}
    settled = []
    for row in rows:
        cells = {
            name: text if kinds[name] in NUMERIC else first.setdefault((name, word_key(text)), text)
            for name, text in row.covariates.items()
        }
        patient = forms.setdefault(normalise(row.patient_id), row.patient_id)
        site = row.site and sites.setdefault(word_key(row.site), row.site)
        settled.append(replace(row, covariates=cells, patient_id=patient, site=site))
    return settled


def known_or_empty(text: str) -> str:
    """Return a cell of words, empty where it says that nothing is known, as R writes NA."""
    return "" if is_missing(text) else text


def _clean_value(text: str, kind: str, decimal_comma: bool) -> str:
    if kind not in NUMERIC:
        return known_or_empty(text)
    if text.casefold() in MISSING_NUMBER:
        return ""
    number = _point(text, decimal_comma)
    value = _to_number(number) if kind == "ordinal" else None  # 2 and 2.0 are one level
    return number if value is None else str(int(value) if value.is_integer() else value)


def _point(text: str, decimal_comma: bool) -> str:
    return point_decimal(text) if decimal_comma else text


def parse_label(row: CaseRow, spec: DatasetSpec) -> tuple[int | None, Problem | None]:
    """Read a label written as number or name.

    Returns:
        The class number, or `None` and what is wrong.
    """
    expected = " or ".join(
        f"{number} ({name})" for name, number in sorted(spec.labels.items(), key=lambda item: item[1])
    )
    if not row.label:
        remedy = "A training case needs a label; write it, or move the images to imagesTs."
        return None, problem(
            "error",
            "label-missing",
            row.where,
            f"no label for the training case {row.case_id!r}",
            expected=expected,
            remedy=remedy,
        )
    for name, label in spec.labels.items():
        if name.strip().casefold() == row.label.casefold():
            return label, None
    number = _to_number(row.label)
    if number is not None and number in spec.labels.values():
        return int(number), None
    remedy = "Correct the cell, or add the class to dataset.json."
    return None, problem(
        "error", "label-unknown", row.where, "unknown label", found=row.label[:60], expected=expected, remedy=remedy
    )


def _to_number(text: str) -> float | None:
    try:
        number = float(text) if len(text) < 40 and "_" not in text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_ids(rows: Sequence[CaseRow]) -> tuple[list[CaseRow], list[Problem]]:
    kept: list[CaseRow] = []
    problems: list[Problem] = []
    seen: dict[str, CaseRow] = {}
    for row in rows:
        reason = explain_bad_name(row.case_id)
        if reason:
            remedy = "Ids name files: use letters, digits, '-' and '_'."
            problems.append(
                problem(
                    "error",
                    "id-not-a-file-name",
                    row.where,
                    f"the case_id {row.case_id[:60]!r} {reason}",
                    remedy=remedy,
                )
            )
            continue
        if not row.patient_id or not row.patient_id.isprintable() or row.patient_id[0] in "=@":
            what = f"the patient of case {row.case_id!r} is " + ("missing" if not row.patient_id else "not plain text")
            remedy = "Every case needs its patient, or the same patient may end up on both sides of a split."
            problems.append(problem("error", "patient-missing", row.where, what, remedy=remedy))
        first = seen.setdefault(normalise(row.case_id).casefold(), row)
        if first is not row:
            same = first.case_id == row.case_id
            what = f"the case_id {row.case_id!r} " + (
                "occurs" if same else f"differs from {first.case_id!r} only in case or accents"
            )
            what += f" in row {first.number} too" if same else f" (row {first.number})"
            remedy = "Give each case its own id, and its files that name."
            problems.append(problem("error", "id-twice", row.where, what, remedy=remedy))
            continue
        kept.append(row)
    return kept, problems


def _check_covariates(rows: Sequence[CaseRow], spec: DatasetSpec) -> list[Problem]:
    problems: list[Problem] = []
    for name, kind in spec.covariates.items():
        values = [(row, row.covariates[name]) for row in rows if row.covariates.get(name)]
        declared = any(name in row.covariates for row in rows)
        if declared and rows and not values:
            remedy = "Fill it, or take the covariate out of dataset.json."
            problems.append(
                problem("warning", "covariate-empty", f"{CASES} column {name}", "holds no value", remedy=remedy)
            )
        if kind == "binary":
            found = sorted({value.casefold() for _, value in values})
            if len(found) > 2:
                remedy = "Correct the cells, or declare it categorical in dataset.json."
                problems.append(
                    problem(
                        "error",
                        "covariate-kind",
                        f"{CASES} column {name}",
                        f"{len(found)} values: {enumerate_names(found)}",
                        expected="two, as it is declared binary",
                        remedy=remedy,
                    )
                )
        if kind in NUMERIC:
            remedy = f"Write a number (an empty cell is missing), or do not declare it {kind} in dataset.json."
            problems += [
                problem(
                    "error",
                    "covariate-kind",
                    f"{row.where} column {name}",
                    "not a number",
                    found=value[:60],
                    expected=f"a number, as it is declared {kind}",
                    remedy=remedy,
                )
                for row, value in values
                if _to_number(value) is None
            ]
    return problems
