"""One prediction per patient: pooled over lesions and views, evaluated and shown beside the cases."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.patients import pool_patients
from her2net.evaluate.tables import evaluate_tables
from her2net.evaluate.thresholds import Threshold
from her2net.paths import DatasetPaths
from her2net.predictions import Predictions, make_predictions, read_predictions
from her2net.report.words import cohort_label


def make_table(labels: list[int | None], patients: list[str], p: list[float]) -> Predictions:
    probs = np.column_stack([1 - np.array(p), p])
    n = len(p)
    return make_predictions([f"c{i}" for i in range(n)], patients, probs, labels=labels, folds=["0"] * n)


def test_cases_of_a_patient_are_averaged() -> None:
    pooled = pool_patients(make_table([1, 1, 0, 1, None], ["A", "A", "B", "C", "C"], [0.9, 0.5, 0.2, 0.4, 0.8]))
    assert pooled is not None
    assert pooled.case_ids == pooled.patient_ids == ("A", "B", "C")
    np.testing.assert_allclose(pooled.probs[:, 1], [0.7, 0.2, 0.6])
    assert pooled.labels.tolist() == [1, 0, 1]


def test_a_patient_with_lesions_of_both_classes_has_no_label() -> None:
    pooled = pool_patients(make_table([1, 0, 0], ["A", "A", "B"], [0.9, 0.5, 0.2]))
    assert pooled is not None
    assert pooled.labels.tolist() == [-1, 0]


def test_one_case_each_is_not_pooled() -> None:
    assert pool_patients(make_table([1, 0], ["A", "B"], [0.9, 0.5])) is None


def test_the_interval_counts_patients_and_the_remark_who_is_lost() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, 30), 3)
    p = 1 / (1 + np.exp(-(y + rng.standard_normal(90))))
    owners = [f"P{i // 3:02d}" for i in range(90)]
    labels: list[int | None] = [int(v) for v in y]
    labels[0] = 1 - int(y[0])
    table = make_table(labels, owners, p.tolist())
    half = Threshold(value=0.5, rule="given", chosen_on="nothing", n=0)
    metrics = {(m.cohort, m.metric): m for m in evaluate_tables({("US", "oof"): table}, {"US": half}, {}, ["n", "p"]).metrics}
    found, cases = metrics["oof-patients", "auc"], metrics["oof", "auc"]
    pooled = pool_patients(table)
    assert pooled is not None
    known = pooled.take(pooled.labels >= 0)
    expected = auc_interval(known.labels, known.probs[:, 1])
    assert (found.n, cases.n) == (29, 90)
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((expected.value, expected.ci_low, expected.ci_high))
    assert found.value > cases.value  # three views tell more than one
    assert found.remark.startswith("1 of 30 patients")
    assert metrics["oof-patients", "sensitivity"].threshold == 0.5


def test_patients_reach_tables_and_report(done: DatasetPaths) -> None:
    """A tenth of the patients of the synthetic cohort have two cases."""
    rows = list(csv.DictReader((done.evaluation / "patients.csv").open()))
    oof = read_predictions(done.model("fusion") / "oof.csv")
    own = [row for row in rows if (row["model"], row["cohort"]) == ("fusion", "oof-patients")]
    assert {row["patient_id"] for row in own} == set(oof.patient_ids)
    assert sum(int(row["n_cases"]) for row in own) == len(oof)
    metrics = list(csv.DictReader((done.evaluation / "metrics.csv").open()))
    auc = next(r for r in metrics if (r["model"], r["cohort"], r["metric"]) == ("fusion", "oof-patients", "auc"))
    assert int(auc["n"]) == len(own) < len(oof)
    assert cohort_label("oof-patients") in done.report.read_text(encoding="utf-8")
