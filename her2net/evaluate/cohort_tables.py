"""Table 1 as CSV: training against test cases, and negative against positive ones within each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from her2net.artefact import write_csv
from her2net.evaluate.facts import CaseFacts, Facts
from her2net.evaluate.table1 import make_table
from her2net.raw.spec import CovariateKind

TRAINING_TEST, NEGATIVE_POSITIVE = "table1_training_test.csv", "table1_negative_positive.csv"
TABLE1_FILES = (TRAINING_TEST, NEGATIVE_POSITIVE)
CLASS = "class"


def table1_columns(first: str, second: str) -> tuple[str, ...]:
    """Return the columns of a table of two cohorts."""
    return ("variable", "level", "unit", first, second, f"{first}_missing", f"{second}_missing", "method", "p_value",
            "p_adjusted", "smd")  # fmt: skip


def write_cohort_tables(folder: Path, facts: Facts, class_names: Sequence[str]) -> list[Path]:
    """Write the tables that these cases allow.

    Args:
        facts: with the labels that are known.
        class_names: name of each class.

    Returns:
        The files written: the first needs training and test cases, the second two classes of which both occur.
    """
    written = []
    parts = {part: [case for case in facts.cases if case.part == part] for part in ("training", "test")}
    if all(parts.values()):
        classes: dict[str, CovariateKind] = {CLASS: "categorical"}
        named = [[_with_class(case, class_names) for case in cases] for cases in parts.values()]
        rows = compare_cohorts(named[0], named[1], "training", "test", classes | facts.kinds)
        write_csv(folder / TRAINING_TEST, table1_columns("training", "test"), rows)
        written.append(folder / TRAINING_TEST)
    rows = []
    for part, cases in parts.items() if len(class_names) == 2 else ():
        negative, positive = ([case for case in cases if case.label == c] for c in (0, 1))
        if negative and positive:
            found = compare_cohorts(negative, positive, "negative", "positive", facts.kinds)
            rows += [{"cohort": part, **row} for row in found]
    if rows:
        write_csv(folder / NEGATIVE_POSITIVE, ("cohort", *table1_columns("negative", "positive")), rows)
        written.append(folder / NEGATIVE_POSITIVE)
    return written


def compare_cohorts(
    first: Sequence[CaseFacts], second: Sequence[CaseFacts], first_name: str, second_name: str,
    kinds: dict[str, CovariateKind],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return Table 1 of two groups of cases, the numbers of cases and patients first.

    What never differs between the cases of a patient is counted once per patient, the rest once per case; `unit` says.
    """
    groups = (first, second)
    counts = {"cases": [len(group) for group in groups], "patients": [len({c.patient_id for c in g}) for g in groups]}
    rows = [{"variable": name, "unit": name.rstrip("s"), first_name: n[0], second_name: n[1]} for name, n in counts.items()]
    units = {name: _unit([*first, *second], name) for name in kinds}
    cells = [{name: list(_cells(group, name, units[name])) for name in kinds} for group in groups]
    for row in make_table(cells[0], cells[1], kinds):
        rows.append({
            "variable": row.variable, "level": row.level, "unit": units[row.variable], first_name: row.first,
            second_name: row.second, f"{first_name}_missing": row.missing[0], f"{second_name}_missing": row.missing[1],
            "method": row.test, "p_value": row.p_value, "p_adjusted": row.p_adjusted, "smd": row.smd,
        })  # fmt: skip
    return rows


def _with_class(case: CaseFacts, class_names: Sequence[str]) -> CaseFacts:
    values = {**case.values, CLASS: "" if case.label is None else class_names[case.label]}
    return CaseFacts(case.case_id, case.patient_id, case.part, case.label, values)


def _unit(cases: Sequence[CaseFacts], name: str) -> str:
    seen: dict[str, str] = {}
    for case in cases:
        value = case.values.get(name, "")
        if value and seen.setdefault(case.patient_id, value) != value:
            return "case"
    return "patient"


def _cells(cases: Sequence[CaseFacts], name: str, unit: str) -> Iterator[str]:
    if unit == "case":
        yield from (case.values.get(name, "") for case in cases)
        return
    of_patient: dict[str, str] = {}
    for case in cases:
        of_patient[case.patient_id] = of_patient.get(case.patient_id) or case.values.get(name, "")
    yield from of_patient.values()
