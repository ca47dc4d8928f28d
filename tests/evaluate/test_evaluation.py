"""The stage: what is written, where thresholds come from, sealed labels, hostile tables."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2net.errors import MissingArtefactError, PredictionTableError
from her2net.evaluate.evaluation import (
    COMPARISON_COLUMNS,
    METRIC_COLUMNS,
    Evaluation,
    Options,
    evaluate_dataset,
    evaluate_files,
    evaluate_tables,
    fit_thresholds,
    format_summary,
)
from her2net.evaluate.record import RESEMBLING, _compared
from her2net.evaluate.thresholds import Thresholds, choose_rule_in_out, choose_threshold
from her2net.paths import DatasetPaths, Roots
from her2net.predictions import Predictions, make_predictions, write_predictions


def make_table(
    n: int = 60, seed: int = 0, *, n_classes: int = 2, effect: float = 1.5, prefix: str = "c", fold: str = "0",
    with_labels: bool = True,
) -> Predictions:  # fmt: skip
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    odds = rng.normal(size=(n, n_classes)) + effect * np.eye(n_classes)[labels]
    probs = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    names = [f"{prefix}{i:03d}" for i in range(n)]
    known: list[int | None] = [int(label) if with_labels else None for label in labels]
    return make_predictions(names, names, probs, labels=known, folds=[fold] * n)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("cohort")
    paths = DatasetPaths(Roots(root / "raw", root / "pre", root / "res"), "Dataset001_Toy")
    for seed, model in enumerate(("US", "MRI", "fusion")):
        write_predictions(paths.model(model) / "oof.csv", make_table(60, seed))
        test = make_table(30, 10 + seed, prefix="t", fold="", with_labels=False)
        write_predictions(paths.model(model) / "test.csv", test)
    return paths


@pytest.fixture(scope="module")
def evaluation(paths: DatasetPaths) -> Evaluation:
    opened = []

    def open_labels() -> dict[str, int]:
        opened.append(1)
        return {f"t{i:03d}": i % 2 for i in range(30)}

    found = evaluate_dataset(
        paths, ["US", "MRI", "fusion"], test_labels=open_labels, class_names=["negative", "positive"],
        optimistic={"US": "optimistic: epoch chosen on the reported fold"}, resembling_test_cases=["t003"],
    )  # fmt: skip
    assert len(opened) == 1
    return found


def test_files_and_columns(paths: DatasetPaths, evaluation: Evaluation) -> None:
    rows = read(paths.evaluation / "metrics.csv")
    assert tuple(rows[0]) == METRIC_COLUMNS
    assert tuple(read(paths.evaluation / "comparisons.csv")[0]) == COMPARISON_COLUMNS
    keys = [(row["model"], row["cohort"], row["metric"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert {row["cohort"] for row in rows} == {"oof", "test", RESEMBLING}
    wanted = {"auc", "pr_auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "mcc",
              "lr_positive", "lr_negative", "brier", "calibration_slope", "calibration_intercept", "ece", "ici",
              "brier_recalibrated"}  # fmt: skip
    assert wanted <= {row["metric"] for row in rows if (row["model"], row["cohort"]) == ("US", "test")}
    assert Evaluation.load(paths.evaluation / "metrics.json") == evaluation
    for row in rows:
        assert row["value"] or next(m.reason for m in evaluation.metrics if m.metric == row["metric"] and m.reason)


def test_thresholds_come_from_oof_and_are_carried_over(paths: DatasetPaths, evaluation: Evaluation) -> None:
    thresholds = Thresholds.load(paths.evaluation / "thresholds.json").models
    for model, seed in (("US", 0), ("MRI", 1), ("fusion", 2)):
        oof = make_table(60, seed)
        assert thresholds[model].value == choose_threshold(oof.labels, oof.probs[:, 1])
        assert thresholds[model].pair == choose_rule_in_out(oof.labels, oof.probs[:, 1])
        used = {row["threshold"] for row in read(paths.evaluation / "metrics.csv") if row["model"] == model}
        assert used == {"", *(repr(value) for value in (thresholds[model].value, *thresholds[model].pair))}
    assert {metric.n for metric in evaluation.metrics if metric.cohort == RESEMBLING} == {29}


def test_comparisons_pair_every_two_models_with_adjusted_p(evaluation: Evaluation) -> None:
    oof = [row for row in evaluation.comparisons if row["cohort"] == "oof"]
    assert len(oof) == 3 * 14
    assert {row["metric"] for row in oof} == {
        "auc", "accuracy", "sensitivity", "specificity", "balanced_accuracy", "f1", "mcc", "pr_auc", "brier", "nri", "nri_positive",
        "nri_negative", "idi", "auc_across_folds",
    }  # fmt: skip
    for row in oof:
        if row["metric"] == "auc_across_folds":
            assert row["reason"] == "fewer than two folds with a value"
        else:
            assert row["p_bonferroni"] >= row["p_adjusted"] >= row["p_value"]
    assert all(row["detectable_difference"] > 0 for row in oof if row["metric"] == "auc")


def test_remark_marks_the_figures_it_spoils_and_no_others(evaluation: Evaluation) -> None:
    spoiled = {(metric.model, metric.cohort) for metric in evaluation.metrics if metric.remark}
    assert spoiled == {("US", "oof")}


def test_what_is_made_of_optimistic_figures_is_marked_too(paths: DatasetPaths, evaluation: Evaluation) -> None:
    remark = "optimistic: epoch chosen on the reported fold"
    pairs = {(row["model_a"], row["model_b"], row["cohort"]): row["remark"] for row in evaluation.comparisons}
    assert {pair: found for pair, found in pairs.items() if found} == {
        ("US", "MRI", "oof"): f"{remark} (US)", ("US", "fusion", "oof"): f"{remark} (US)",
    }  # fmt: skip
    assert {(row.model, row.cohort) for row in evaluation.certainty if row.remark} == {("US", "oof")}
    for name in ("comparisons_detail.csv", "certainty.csv"):
        assert {row["cohort"] for row in read(paths.evaluation / name) if row["remark"]} == {"oof"}
    lines = format_summary(paths.evaluation).splitlines()
    marked = [line.split(":")[0] for line in lines if remark in line and not line.startswith("US   ")]
    assert marked == ["US - MRI (oof, n = 60)", "US - fusion (oof, n = 60)", "US (oof)"]
    table = lines[lines.index(next(line for line in lines if line.startswith("model "))) :]
    assert all(re.match(r"\S+ +(oof|test)", line) for line in table[1:]), "what was asked for stands last, where a terminal ends"


def test_subgroups_of_an_optimistic_model_are_marked() -> None:
    tables = {("A", "oof"): make_table(), ("A", "test"): make_table(prefix="t", fold="")}
    levels = {case: "ab"[i % 4 // 2] for table in tables.values() for i, case in enumerate(table.case_ids)}
    remarks = {"A": "optimistic: chosen; apparent performance: fitted on the test cases; threshold 0.5: given"}
    found = evaluate_tables(tables, {}, remarks, ["0", "1"], Options(subgroups={"side": levels}))
    assert {(row.cohort, row.remark) for row in found.subgroups} == {
        ("oof", "optimistic: chosen"), ("test", "apparent performance: fitted on the test cases"),
    }  # fmt: skip


def test_certainty_and_alternatives_are_kept(evaluation: Evaluation) -> None:
    assert {(row.model, row.cohort) for row in evaluation.certainty} >= {("US", "oof"), ("fusion", "test")}
    methods = {row.ci_method for row in evaluation.alternatives if row.metric == "auc"}
    assert {"DeLong", "binomial exact"} <= methods


def test_figures_are_whole_and_at_journal_width(paths: DatasetPaths, evaluation: Evaluation) -> None:
    for kind in ("roc", "precision_recall", "calibration", "decision_curve"):
        stem = paths.evaluation / "figures" / f"{kind}_oof"
        root = ElementTree.parse(stem.with_suffix(".svg")).getroot()
        assert root.get("width") == "252pt"
        assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_summary_names_every_model_and_cohort(paths: DatasetPaths, evaluation: Evaluation) -> None:
    text = format_summary(paths.evaluation)
    rows = [line.split()[:2] for line in text.splitlines()]
    seconds = [row[1] for row in rows if row[0] == "US"]
    assert seconds == [*["-"] * 4, "(oof):", "(test):", "oof", "test", RESEMBLING]
    assert "80 % power for" in text
    assert "permutation p = " in text
    assert "optimistic" in text


def test_no_minus_stands_before_a_difference_that_rounds_to_0(evaluation: Evaluation) -> None:
    row = next(row for row in evaluation.comparisons if row["metric"] == "auc")
    values = {"difference": -0.0001, "ci_low": -0.0002, "ci_high": -0.00005, "p_value": 0.5, "p_adjusted": 0.5}
    (line,) = _compared(evaluation.model_copy(update={"comparisons": [row | values]}))
    assert "AUC difference 0.000 [0.000, 0.000], p = 0.5" in line


def test_same_tables_give_the_same_figures() -> None:
    tables = {("A", "oof"): make_table()}
    one, two = (evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"]) for _ in range(2))
    assert one == two
    other = evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"], Options(seed=1))
    assert [m.value for m in other.metrics] == [m.value for m in one.metrics]


def test_missing_oof_table_names_the_command(tmp_path: Path) -> None:
    paths = DatasetPaths(Roots(tmp_path, tmp_path, tmp_path), "Dataset001_Toy")
    with pytest.raises(MissingArtefactError, match="her2net_ensemble US"):
        evaluate_dataset(paths, ["US"], test_labels=None, optimistic={}, resembling_test_cases=(), class_names=["a"])


def test_options_add_prevalence_and_subgroups() -> None:
    table = make_table()
    levels = {case: ("young" if i % 3 else "old") for i, case in enumerate(table.case_ids)}
    options = Options(prevalence=0.1, subgroups={"age": levels})
    found = evaluate_tables({("A", "oof"): table}, fit_thresholds({("A", "oof"): table}), {}, ["0", "1"], options)
    assert {"ppv_at_prevalence", "npv_at_prevalence"} <= {metric.metric for metric in found.metrics}
    assert [(row.level, row.n) for row in found.subgroups] == [("old", 20), ("young", 40)]


def test_three_ordered_classes() -> None:
    table = make_table(90, n_classes=3)
    found = evaluate_tables({("A", "oof"): table}, {}, {}, ["zero", "low", "positive"], Options(ordinal=True))
    values = {metric.metric: metric for metric in found.metrics}
    assert {"auc", "auc_hand_till", "auc_class_2", "accuracy", "weighted_kappa", "brier"} <= set(values)
    assert all(m.value is not None and m.ci_low is not None for m in found.metrics)


@pytest.mark.parametrize("labels", [[0] * 6, [1] * 6, [0, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("flat", [True, False])
def test_hardly_any_information_gives_explained_gaps(labels: list[int | None], flat: bool) -> None:
    p = np.full(6, 0.5) if flat else np.linspace(0, 1, 6)
    names = [f"c{i}" for i in range(6)]
    table = make_predictions(names, names, np.column_stack([1 - p, p]), labels=labels, folds=["0"] * 6)
    tables = {("A", "oof"): table, ("B", "oof"): table}
    found = evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"])
    for metric in found.metrics:
        assert metric.reason or (metric.value is not None and metric.ci_low is not None), metric
    for row in found.comparisons:
        assert row["reason"] or None not in (row["difference"], row["ci_low"], row["p_value"]), row
    json.dumps(found.model_dump(), allow_nan=False)


@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.sampled_from([2, 3]), st.sampled_from([1, 3, 1000]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_whatever_the_table_every_gap_is_explained(seed: int, n: int, n_classes: int, levels: int, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    names = [f"c{i:02d}" for i in range(n)]
    patients = [f"p{k}" for k in rng.integers(0, max(n // 2, 1), n)] if clustered else names
    labels: list[int | None] = [int(label) for label in rng.integers(0, n_classes, n)]

    def draw() -> Predictions:
        probs = np.round(levels * rng.dirichlet(np.ones(n_classes), n)) + 1e-9
        return make_predictions(names, patients, probs, labels=labels, folds=[str(k) for k in np.arange(n) % 2])

    tables = {("A", "oof"): draw(), ("B", "oof"): draw()}
    group = {"side": {name: "ab"[int(i)] for name, i in zip(names, rng.integers(0, 2, n), strict=True)}}
    options = Options(prevalence=0.2, ordinal=True, subgroups=group)
    found = evaluate_tables(tables, fit_thresholds(tables), {}, ["a", "b", "c"][:n_classes], options)
    for metric in [*found.metrics, *found.subgroups]:
        assert metric.reason or None not in (metric.value, metric.ci_low, metric.ci_high), metric
        assert metric.ci_low is None or metric.value is None or metric.ci_low <= metric.value + 1e-9, metric
    for row in found.comparisons:
        assert row["reason"] or None not in (row["difference"], row["ci_low"], row["p_value"]), row
    json.dumps(found.model_dump(), allow_nan=False)


def test_files_are_named_after_themselves_and_read_at_a_half(tmp_path: Path) -> None:
    for name, seed in (("A", 0), ("B", 1)):
        write_predictions(tmp_path / f"{name}.csv", make_table(40, seed, fold="", with_labels=False))
    labels = {f"c{i:03d}": i % 2 for i in range(40)}
    found = evaluate_files([tmp_path / "A.csv", tmp_path / "B.csv"], labels, tmp_path / "out")
    assert {(m.model, m.cohort) for m in found.metrics} == {("A", "test"), ("B", "test")}
    assert {m.threshold for m in found.metrics} == {None, 0.5}
    assert "threshold 0.5" in found.metrics[0].remark
    assert (tmp_path / "out" / "comparisons.csv").exists()


def test_files_that_cannot_be_evaluated(tmp_path: Path) -> None:
    unlabelled, labelled = tmp_path / "A.csv", tmp_path / "B.csv"
    write_predictions(unlabelled, make_table(10, with_labels=False))
    write_predictions(labelled, make_table(10))
    (tmp_path / "other").mkdir()
    write_predictions(tmp_path / "other" / "B.csv", make_table(10))
    with pytest.raises(PredictionTableError, match="no case has a label"):
        evaluate_files([unlabelled], None, tmp_path / "out")
    with pytest.raises(PredictionTableError, match="no case has a label"):
        evaluate_files([unlabelled], {"unknown": 1}, tmp_path / "out")
    with pytest.raises(PredictionTableError, match="twice"):
        evaluate_files([labelled, tmp_path / "other" / "B.csv"], None, tmp_path / "out")
    with pytest.raises(PredictionTableError, match="label 7"):
        evaluate_files([unlabelled], {"c001": 7}, tmp_path / "out")
    with pytest.raises(PredictionTableError, match="label 1 in the table, 0 in the labels"):
        evaluate_files([labelled], {"c001": 0}, tmp_path / "out")
    (tmp_path / "C.csv").write_text("case_id,label,prob_0,prob_1\na,1,0.2,0.9\na,0,0.5,0.5\n", encoding="utf-8")
    with pytest.raises(PredictionTableError, match=r"do not sum to 1(.|\n)*already"):
        evaluate_files([tmp_path / "C.csv"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    table = make_table(20)
    hostile = "<script>alert(1)</script>"
    names = [f"{hostile}{i:02d}" for i in range(20)]
    table = make_predictions(names, names, table.probs, labels=list(table.labels), folds=["0"] * 20)
    write_predictions(tmp_path / "$A&B_x$.csv", table)
    evaluate_files([tmp_path / "$A&B_x$.csv"], None, tmp_path / "out")
    for file in (tmp_path / "out" / "figures").glob("*.svg"):
        assert "<script" not in file.read_text(encoding="utf-8")
        ElementTree.parse(file)


def test_patients_with_several_cases_are_said_to_be_clustered() -> None:
    one = make_table(40)
    table = make_predictions(list(one.case_ids), [f"p{i // 4}" for i in range(40)], one.probs, labels=list(one.labels),
                             folds=["0"] * 40)  # fmt: skip
    tables = {("A", "oof"): table, ("B", "oof"): one}
    found = evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"])
    methods = {(m.model, m.metric): m.ci_method for m in found.metrics}
    assert "clustered by patient" in methods["A", "auc"]
    assert "clustered by patient" in methods["A", "sensitivity"]
    assert "clustered" not in methods["B", "auc"]
    certain = {row.model: row for row in found.certainty}
    assert certain["A"].advice.startswith("With 10 patients (10 with a positive case, 10 with a negative one)")
    assert certain["B"].advice.startswith("With 40 cases (20 positive)")
    assert certain["A"].half_width > 1.3 * certain["B"].half_width


@pytest.mark.slow
def test_a_million_cases_are_evaluated_as_scikit_learn_would(tmp_path: Path) -> None:
    from sklearn.metrics import average_precision_score, brier_score_loss, matthews_corrcoef, roc_auc_score

    rng = np.random.default_rng(0)
    n = 1_000_000
    labels = (rng.random(n) < 0.3).astype(np.int64)
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + labels)))
    names = tuple(map(str, range(n)))
    table = Predictions(names, names, ("0",) * n, labels, np.column_stack([1 - p, p]))
    tables = {("A", "oof"): table}
    start = time.process_time()
    found = evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"])
    assert time.process_time() - start < 30
    values = {m.metric: m for m in found.metrics}
    assert all(m.value is not None and math.isfinite(m.value) for m in found.metrics)
    called = p >= values["mcc"].threshold
    expected = {
        "auc": roc_auc_score(labels, p), "pr_auc": average_precision_score(labels, p), "brier": brier_score_loss(labels, p),
        "mcc": matthews_corrcoef(labels, called), "partial_auc_specificity": roc_auc_score(labels, p, max_fpr=0.1),
    }  # fmt: skip
    for name, value in expected.items():
        assert values[name].value == pytest.approx(value, abs=1e-9), name
        assert values[name].ci_low < value < values[name].ci_high
