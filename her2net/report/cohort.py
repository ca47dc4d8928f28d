"""Who is in the study: the cohort flow, and Table 1 of training against test cases and of one class against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from her2net.evaluate.cohort_tables import compare_cohorts
from her2net.evaluate.facts import CaseFacts
from her2net.fuse.stage import FUSION
from her2net.plan.table_schema import TablePlan
from her2net.raw.dataset import Case
from her2net.raw.spec import CovariateKind
from her2net.report.material import Material
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import count, number, p_value
from her2net.tabular.features import cases_with

AUTHOR = "for the author"


@dataclass(frozen=True)
class Group:
    """The training or the test cases, counted.

    Attributes:
        per_class: class name -> cases; test cases without a label count for none.
        unlabelled: cases that are predicted but cannot be evaluated.
        lacking: modality -> cases without it; they count for the other modalities.
        unmasked: modality -> cases shown whole for want of a mask.
        described: table model -> cases that have its features; only these train it or are predicted by it.
        resembling: test cases that look like a training case; figures are given with and without them.
    """

    name: str
    n_cases: int
    n_patients: int
    per_class: dict[str, int]
    unlabelled: int
    lacking: dict[str, int]
    unmasked: dict[str, int]
    described: dict[str, int]
    resembling: int


def count_group(material: Material, name: str, cases: Sequence[Case]) -> Group:
    """Count the cases of one part."""
    labels = [material.labels.get(case.case_id) for case in cases]
    modalities = list(material.plan.modalities)
    resembling = set(material.project.splits.resembling_test_cases)
    return Group(
        name=name, n_cases=len(cases), n_patients=len({case.patient_id for case in cases}),
        per_class={c: labels.count(i) for i, c in enumerate(material.class_names)}, unlabelled=labels.count(None),
        lacking={m: sum(m not in case.images for case in cases) for m in modalities},
        unmasked={m: sum(m in case.images and m not in case.masks for case in cases) for m in modalities},
        described={t: len(cases_with(table, cases, material.project.scan)) for t, table in material.plan.tables.items()},
        resembling=sum(case.case_id in resembling for case in cases),
    )  # fmt: skip


def count_groups(material: Material) -> list[Group]:
    """Count the training cases, and the test cases if there are any."""
    dataset = material.project.dataset
    parts = [("Training", dataset.train), ("Test", dataset.test)]
    return [count_group(material, name, cases) for name, cases in parts if cases]


def explain_absence(table: TablePlan) -> str:
    """Say what a case lacks that a table does not describe."""
    return "no covariate filled" if table.modality is None else f"no {table.modality} image with a lesion in its mask"


def flow_table(material: Material, groups: Sequence[Group]) -> Table:
    """Return the cohort flow in numbers: who is used for what, and who is left out of what and why."""
    rows: list[list[str | Cell]] = [
        ["Assessed and excluded before the folder was made", *[Cell(AUTHOR, mark="author") for _ in groups],
         "her2net sees the folder only"],
        ["In cases.csv, with at least one image", *[f"{g.n_cases} ({count(g.n_patients, 'patient')})" for g in groups], ""],
    ]  # fmt: skip
    holdout = material.project.splits.holdout
    if holdout is not None:
        sealed = ["", f"{count(len(holdout.patients), 'patient')}"]
        rows.append(["Drawn from imagesTr and sealed before planning", *sealed[: len(groups)], "hold-out (--holdout)"])
    rows += [[f"of these {name}", *[str(g.per_class[name]) for g in groups], ""] for name in material.class_names]
    for m in material.plan.modalities:
        rows.append([f"Used for the model {m}", *[str(g.n_cases - g.lacking[m]) for g in groups], ""])
        if any(g.lacking[m] for g in groups):
            rows.append([f"Left out of the model {m}", *[str(g.lacking[m]) for g in groups], f"no {m} image"])
        if any(g.unmasked[m] for g in groups):
            rows.append([f"Shown whole to the model {m}", *[str(g.unmasked[m]) for g in groups], f"no {m} mask"])
    for name, table in material.plan.tables.items():
        rows.append([f"Used for the model {name}", *[str(g.described[name]) for g in groups], ""])
        if any(g.described[name] < g.n_cases for g in groups):
            without = [str(g.n_cases - g.described[name]) for g in groups]
            rows.append([f"Left out of the model {name}", *without, explain_absence(table)])
    if FUSION in material.models:
        why = "a case that lacks a modality is fused from those it has" if any(any(g.lacking.values()) for g in groups) else ""
        rows.append(["Used for the fusion", *[str(g.n_cases) for g in groups], why])
    if any(g.unlabelled for g in groups):
        rows.append(["Predicted, not evaluated", *[str(g.unlabelled) for g in groups], "no label"])
    if any(g.resembling for g in groups):
        why = "resemble a training case; figures are given with and without them"
        rows.append(["Left out of a second evaluation", *[str(g.resembling) for g in groups], why])
    return make_table("flow", "Cohort flow in numbers", ["Step", *[g.name for g in groups], "Reason"], rows,
                      numeric=range(1, len(groups) + 1), sortable=False)  # fmt: skip


def table1s(material: Material) -> list[Table]:
    """Return Table 1 of training against test cases, and, with two classes, of one class against the other."""
    dataset = material.project.dataset
    found = []
    if dataset.test:
        found.append(_compare(material, "table1_training_test", "Table 1. Training and test cases",
                              ("Training", dataset.train), ("Test", dataset.test), with_class=True))  # fmt: skip
    if material.binary:
        negative, positive = material.class_names
        by_class = [[c for c in dataset.train if c.label == i] for i in (0, 1)]
        found.append(_compare(material, "table1_classes", f"Table 1b. {negative} and {positive} cases, training cohort",
                              (negative, by_class[0]), (positive, by_class[1]), with_class=False))  # fmt: skip
    return found


def _compare(
    material: Material, key: str, caption: str, first: tuple[str, Sequence[Case]], second: tuple[str, Sequence[Case]],
    *, with_class: bool,
) -> Table:  # fmt: skip
    kinds = {name: kind for name, kind in _kinds(material, first[1], second[1]).items() if with_class or name != "Class"}
    rows = [_row(row, first[0], second[0]) for row in compare_cohorts(
        _facts(material, first[1]), _facts(material, second[1]), first[0], second[0], kinds)]  # fmt: skip
    headers = ["Variable", first[0], second[0], "Counted per", "Missing", "p", "p, Bonferroni", "Test", "SMD"]
    return make_table(key, caption, headers, rows, numeric=(1, 2, 4, 5, 6, 8), sortable=False, notes=(
        "Mean ± SD and Welch's t where Shapiro-Wilk finds both cohorts normal, else median (first, third quartile) and "
        "Mann-Whitney; counts (%) with chi-squared, or Fisher's exact test where an expected count is below 5.",
        "What is the same in all cases of a patient is counted once per patient. Missing: in the first, in the second cohort. SMD: "
        "standardised mean difference, which does not depend on n; 0.1 or more deserves a look (Austin 2009).",
        "Lesion size is measured on the masks, volumes along all axes. Covariates are those that dataset.json declares.",
    ))  # fmt: skip


def _kinds(material: Material, *cohorts: Sequence[Case]) -> dict[str, CovariateKind]:
    """Return variable -> kind, in the order of the table."""
    spec, cases = material.project.dataset.spec, [case for cohort in cohorts for case in cohort]
    kinds: dict[str, CovariateKind] = {"Class": "categorical"}
    if spec.site is not None and spec.site not in spec.covariates:
        kinds[spec.site] = "categorical"
    kinds |= spec.covariates
    for m in material.plan.modalities:
        if any(m not in case.images for case in cases):
            kinds[f"{m} available"] = "categorical"
        kinds[_lesion_name(material, m)] = "continuous"
    cells = _cells(material, cases)
    return {name: kind for name, kind in kinds.items() if any(cells[name])}


def _cells(material: Material, cases: Sequence[Case]) -> dict[str, list[str]]:
    spec, names = material.project.dataset.spec, material.class_names
    labels = [material.labels.get(case.case_id) for case in cases]
    cells = {"Class": ["" if label is None else names[label] for label in labels]}
    if spec.site is not None:
        cells[spec.site] = [case.site or "" for case in cases]
    cells |= {name: [case.covariates.get(name, "") for case in cases] for name in spec.covariates}
    sizes = lesion_sizes(material)
    for m in material.plan.modalities:
        cells[f"{m} available"] = ["yes" if m in case.images else "no" for case in cases]
        cells[_lesion_name(material, m)] = [
            "" if (size := sizes.get((m, case.case_id))) is None else str(size) for case in cases
        ]
    return cells


def _lesion_name(material: Material, modality: str) -> str:
    unit = "px" if material.fingerprint.modalities[modality].spacing_mm is None else "mm"
    return f"Lesion, longest edge in {modality}, {unit}"


def lesion_sizes(material: Material) -> dict[tuple[str, str], float]:
    """Return (modality, case) -> longest edge of the lesion box, in mm where the files say so, else in pixels."""
    sizes = {}
    for case in material.project.scan.cases:
        for modality, image in case.images.items():
            if image.lesion is None or modality not in material.fingerprint.modalities:
                continue
            edges = np.subtract(image.lesion.stop, image.lesion.start).astype(float)
            if material.fingerprint.modalities[modality].spacing_mm is None:
                sizes[modality, case.case_id] = float(edges.max())
            elif image.spacing_mm is not None:
                sizes[modality, case.case_id] = float((edges * image.spacing_mm).max())
    return sizes


def _row(row: dict[str, Any], first: str, second: str) -> list[str | Cell]:
    counted = row["variable"] in ("cases", "patients") and not row.get("method")
    name = f"{row['variable']}: {row['level']}" if row.get("level") else row["variable"].capitalize() if counted else row["variable"]
    missing = [row.get(f"{cohort}_missing") or 0 for cohort in (first, second)]
    tested = bool(row.get("method"))
    return [
        name, str(row[first]), str(row[second]), row["unit"], f"{missing[0]}, {missing[1]}" if tested and any(missing) else "",
        p_value(row["p_value"]) if tested else "", p_value(row["p_adjusted"]) if tested else "", row.get("method", ""),
        number(row["smd"], 2) if tested else "",
    ]  # fmt: skip


def _facts(material: Material, cases: Sequence[Case]) -> list[CaseFacts]:
    cells = _cells(material, cases)
    return [
        CaseFacts(case.case_id, case.patient_id, "training" if case.part == "train" else "test",
                  material.labels.get(case.case_id), {name: column[i] for name, column in cells.items()})
        for i, case in enumerate(cases)
    ]  # fmt: skip
