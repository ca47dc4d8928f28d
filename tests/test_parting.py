"""Which splits a plan gets when the cohort changes after they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_paths
from raw_factory import change_cell, read_rows, write_dataset, write_table
from small_run import plan_options

from her2net.errors import PlanError
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.splits import Splits

OWN = [["P000", "P001", "P006", "P007"], ["P002", "P003", "P004", "P005"]]


def make_cohort(root: Path, n_patients: int = 8) -> DatasetPaths:
    paths = make_paths(root, "Dataset001_Tiny")
    write_dataset(paths.raw, n_patients=n_patients, n_test=0)
    return paths


def plan(paths: DatasetPaths, **changes: object) -> tuple[Splits, list[str]]:
    _, remarks = plan_dataset(paths, plan_options(paths.roots.raw.parent, preprocess=False, **changes))
    return Splits.load(paths.splits), remarks


def bring_own_folds(paths: DatasetPaths) -> Splits:
    file = paths.roots.raw.parent / "own.json"
    file.write_text(json.dumps(OWN))
    return plan(paths, splits=str(file))[0]


def drop_patient(paths: DatasetPaths, patient: str) -> None:
    case = f"C{patient[1:]}"
    write_table(paths.raw / "cases.csv", [row for row in read_rows(paths.raw) if patient not in row])
    for file in [*paths.raw.glob(f"*/*/{case}.*"), *paths.raw.glob(f"*/*/{case}_*")]:
        file.unlink()


def test_own_folds_outlive_a_corrected_label(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    change_cell(paths.raw, 2, "label", "1")
    splits, _ = plan(paths)
    assert splits.folds(Plan.load(paths.plan).splits) == OWN


def test_own_folds_that_fit_no_longer_are_refused_and_not_replaced(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    before = bring_own_folds(paths)
    drop_patient(paths, "P003")
    change_cell(paths.raw, 2, "patient_id", "P900")
    with pytest.raises(PlanError, match=r"(?s)in no fold; found 'P900'.*not in the training set; found 'P000'.*'P003'.*--splits FILE"):
        plan(paths)
    assert Splits.load(paths.splits) == before


def test_own_folds_that_are_lost_are_asked_for_and_not_drawn(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    paths.splits.unlink()
    with pytest.raises(PlanError, match=r"your own folds, custom-2, are not there\. .*--splits FILE"):
        plan(paths)
