"""Ways of fusing: what each computes, that choosing one never sees the patient it reports on, and cases that lack a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from her2net import pipeline
from her2net.errors import MissingArtefactError, PlanError
from her2net.fuse.choose import (
    METHOD_NAMES,
    METHODS,
    Candidate,
    _simplest_good,
    describe_left_out,
    describe_selection,
    fit_fusion,
    fuse_out_of_fold,
    list_left_out,
    select_method,
)
from her2net.fuse.logistic import apply_fusion, choose_model, logits
from her2net.fuse.stage import FusionRecord, fuse_modalities, load_fusion
from her2net.input_check import UnlikeTrainingWarning
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.predict import Predictor
from her2net.predictions import Predictions, make_predictions, read_predictions, write_predictions
from her2net.project import load_project

CLASSES = ["negative", "positive"]
SUBSETS = [["A"], ["B"], ["A", "B"]]


def make_tables(
    n: int = 90, *, distances: Mapping[str, float] | None = None, lacking: float = 0.1, seed: int = 0, n_classes: int = 2
) -> dict[str, Predictions]:
    """Draw tables of cases of three folds, two cases a patient; a Gaussian reading of the class each."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.integers(0, n_classes, n // 2), 2)
    tables = {}
    for name, distance in (distances or {"A": 2.0, "B": 1.0}).items():
        scores = distance * np.eye(n_classes)[y] + rng.standard_normal((n, n_classes))
        probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        rows = np.flatnonzero(rng.random(n) >= lacking)
        tables[name] = make_predictions([f"c{i:03d}" for i in rows], [f"p{i // 2:03d}" for i in rows], probs[rows],
                                        labels=[int(v) for v in y[rows]], folds=[str(i // 2 % 3) for i in rows])  # fmt: skip
    return tables


def folds_of(tables: Mapping[str, Predictions], n: int = 3) -> list[list[str]]:
    """Return the patients of each fold."""
    patients = sorted({p for table in tables.values() for p in table.patient_ids})
    return [[p for p in patients if int(p[1:]) % n == k] for k in range(n)]


def test_mean_and_weighted_are_what_they_say() -> None:
    tables = make_tables(lacking=0.0)
    a, b = logits(tables["A"])[:, 0], logits(tables["B"])[:, 0]
    mean = apply_fusion(tables, fit_fusion(tables, SUBSETS, CLASSES, 1.0, method="mean"))
    np.testing.assert_allclose(logits(mean)[:, 0], (a + b) / 2, atol=1e-9)
    above = [roc_auc_score(t.labels, t.probs[:, 1]) - 0.5 for t in tables.values()]
    weighted = apply_fusion(tables, fit_fusion(tables, SUBSETS, CLASSES, 1.0, method="weighted"))
    np.testing.assert_allclose(logits(weighted)[:, 0], (above[0] * a + above[1] * b) / sum(above), atol=1e-9)


def test_tables_that_know_nothing_weigh_alike() -> None:
    tables = make_tables(distances={"A": -2.0, "B": -1.0}, lacking=0.0)
    model = fit_fusion(tables, SUBSETS, CLASSES, 1.0, method="weighted")[-1]
    assert model.weights == [[0.5, 0.5]]


@pytest.mark.parametrize("shrink", [1.0, 1e-4])
def test_intervals_hold_their_odds_ratio_even_of_logits_that_hardly_differ(shrink: float) -> None:
    """A flat modality has odds ratios per unit beyond all numbers; those per standard deviation stay as they are."""
    tables = make_tables(lacking=0.0)
    flat = 1 / (1 + np.exp(-shrink * logits(tables["A"])[:, 0]))
    tables["A"] = replace(tables["A"], probs=np.column_stack([1 - flat, flat]))
    for c in (c for model in fit_fusion(tables, SUBSETS, CLASSES, 1.0, method="logistic") for c in model.coefficients):
        assert c.ci_low is not None
        assert c.ci_high is not None
        assert c.ci_low <= c.odds_ratio <= c.ci_high
        assert c.ci_low_per_sd < c.odds_ratio_per_sd < c.ci_high_per_sd
        assert c.ci_low_per_sd == pytest.approx(1 / (c.ci_high_per_sd / c.odds_ratio_per_sd**2))
    steep, flat_one = (fit_fusion(t, SUBSETS, CLASSES, 1.0, method="logistic")[0] for t in (make_tables(lacking=0.0), tables))
    assert flat_one.coefficients[0].odds_ratio_per_sd == pytest.approx(steep.coefficients[0].odds_ratio_per_sd, rel=1e-3)


def test_gated_equals_logistic_where_no_case_lacks_a_table() -> None:
    tables = make_tables(lacking=0.0)
    logistic, gated = (fit_fusion(tables, SUBSETS, CLASSES, 1.0, method=m)[-1] for m in ("logistic", "gated"))
    np.testing.assert_allclose(gated.weights, logistic.weights, rtol=1e-5)
    np.testing.assert_allclose(gated.intercepts, logistic.intercepts, atol=1e-5)


def test_gated_learns_from_cases_that_lack_a_table() -> None:
    """The cases with both tables have one class only: a regression of their own cannot be fitted, the gated one can."""
    tables = make_tables(n=120, lacking=0.0)
    alone = {name: t.take((t.labels == 0) | (np.arange(len(t)) % 2 == i)) for i, (name, t) in enumerate(tables.items())}
    assert [model.modalities for model in fit_fusion(alone, SUBSETS, CLASSES, 1.0, method="logistic")] == [["A"], ["B"]]
    fused = apply_fusion(tables, fit_fusion(alone, SUBSETS, CLASSES, 1.0, method="gated"))
    assert roc_auc_score(fused.labels, fused.probs[:, 1]) > 0.85


def apart(tables: Mapping[str, Predictions], *, both: frozenset[str] = frozenset()) -> dict[str, Predictions]:
    """Leave each case one of the tables, but those of some patients both."""
    keep = [np.array([int(p[1:]) % 2 == i or p in both for p in t.patient_ids]) for i, t in enumerate(tables.values())]
    return {name: table.take(rows) for (name, table), rows in zip(tables.items(), keep, strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_nobody_has_both_tables(method: str) -> None:
    """There is nothing to fit a regression of both on; a new case that has both is predicted nevertheless."""
    whole = make_tables(120, lacking=0.0)
    tables = apart(whole)
    models = fit_fusion(tables, SUBSETS, CLASSES, 1.0, method=method)  # type: ignore[arg-type]
    assert [model.modalities for model in models] == (SUBSETS[:2] if method == "logistic" else SUBSETS)
    fused = fuse_out_of_fold(tables, SUBSETS, folds_of(tables), CLASSES, 1.0, [method] * 3)  # type: ignore[list-item]
    assert len(fused) == 120
    new = apply_fusion(whole, models)
    assert roc_auc_score(new.labels, new.probs[:, 1]) > 0.75


def test_a_single_table_without_a_class_is_refused() -> None:
    tables = make_tables(lacking=0.0)
    tables["B"] = tables["B"].take(tables["B"].labels == 0)
    with pytest.raises(PlanError, match="fusion of B: no case of class 'positive' has it"):
        fit_fusion(tables, SUBSETS, CLASSES, 1.0, method="logistic")


@pytest.mark.parametrize("method", METHODS)
def test_sets_with_a_table_that_no_case_has_are_left_out(method: str) -> None:
    """As where no test case has covariates and the fusion is fitted on the test cases."""
    whole = make_tables(lacking=0.0)
    subsets = [["A"], ["A", "B"]]
    models = fit_fusion({"A": whole["A"]}, subsets, CLASSES, 1.0, method=method)  # type: ignore[arg-type]
    assert [model.modalities for model in models] == [["A"]]
    left_out = list_left_out({"A": whole["A"]}, subsets, CLASSES, method)  # type: ignore[arg-type]
    assert [(item.modalities, item.reason) for item in left_out] == [(["A", "B"], "no case has B")]
    assert apply_fusion(whole, models).case_ids == whole["A"].case_ids
    with pytest.raises(PlanError, match="fusion of B: no case has B"):
        fit_fusion({"A": whole["A"]}, SUBSETS, CLASSES, 1.0, method=method)  # type: ignore[arg-type]


def test_a_modality_that_no_test_case_has_cannot_be_fitted_on_them(copied: DatasetPaths) -> None:
    project = load_project(copied)
    (copied.model("MRI") / "test.csv").unlink()
    labels = {case.case_id: 0 for case in project.dataset.test}
    with pytest.raises(MissingArtefactError, match=r"no test predictions of MRI to fit on\. Use --fit-on oof"):
        fuse_modalities(copied, project.plan, project.splits.folds(project.plan.splits), fit_on="test", test_labels=lambda: labels)


def test_which_sets_have_a_model_is_decided_without_the_held_out_patients() -> None:
    """All that have both tables are in fold 1: it is fused without a model of both, the others with one."""
    whole = make_tables(120, lacking=0.0)
    folds = folds_of(whole)
    tables = apart(whole, both=frozenset(folds[1]))
    fused = fuse_out_of_fold(tables, SUBSETS, folds, CLASSES, 1.0, ["logistic"] * 3)
    own = np.isin(fused.patient_ids, folds[1])
    rest = {name: table.take(~np.isin(table.patient_ids, folds[1])) for name, table in tables.items()}
    held = {name: table.take(np.isin(table.patient_ids, folds[1])) for name, table in tables.items()}
    expected = apply_fusion(held, fit_fusion(rest, SUBSETS, CLASSES, 1.0))
    np.testing.assert_array_equal(fused.probs[own], expected.probs)
    left_out = [item for k, held in enumerate(folds) for item in list_left_out(tables, SUBSETS, CLASSES, "logistic", fold=k, held=held)]
    assert [(item.modalities, item.fold) for item in left_out] == [(["A", "B"], 1)]
    assert "without the patients of fold 1" in describe_left_out(left_out)[0]
    assert not list_left_out(tables, SUBSETS, CLASSES, "logistic")


def test_a_set_without_a_model_takes_that_of_its_largest_part() -> None:
    tables = make_tables(200, distances={"A": 1.0, "B": 1.0, "C": 1.0, "D": 1.0}, lacking=0.3)
    subsets = [["A"], ["B"], ["C"], ["D"], ["A", "B"], ["A", "C"], ["B", "C"], ["A", "D"]]
    models = fit_fusion(tables, subsets, CLASSES, 1.0)
    assert choose_model(["C", "B"], models).modalities == ["B", "C"]
    of_two = [model for model in models if len(model.modalities) == 2]
    assert choose_model(["A", "B", "C", "D"], models) == max(of_two, key=lambda model: model.n_cases)
    alike = [model.model_copy(update={"n_cases": 7}) for model in models]
    assert choose_model(["A", "B", "C", "D"], alike).modalities == ["A", "B"]
    assert choose_model(["D", "B"], alike).modalities == ["B"]
    fused = apply_fusion(tables, models)
    assert set(fused.case_ids) == {case_id for table in tables.values() for case_id in table.case_ids}
    with pytest.raises(PlanError, match=r"fusion\.subsets of the plan: no model for .* only C; found 'A; A \+ B'\. Add them"):
        choose_model(["C"], [model for model in models if model.modalities in (["A"], ["A", "B"])])


def test_modalities_that_nobody_has_together_are_fused_to_the_end(copied: DatasetPaths) -> None:
    """The record says which set has no model; a case that has it is predicted and warned of."""
    project = load_project(copied)
    test = read_predictions(copied.model("fusion") / "test.csv")
    both = set.intersection(*(set(read_predictions(copied.model(m) / "test.csv").case_ids) for m in ("US", "MRI")))
    tables = {name: read_predictions(copied.model(name) / "oof.csv") for name in ("US", "MRI")}
    alone = set(tables["US"].case_ids[::2])
    write_predictions(copied.model("US") / "oof.csv", tables["US"].take(np.array([c in alone for c in tables["US"].case_ids])))
    write_predictions(copied.model("MRI") / "oof.csv", tables["MRI"].take(np.array([c not in alone for c in tables["MRI"].case_ids])))
    record = fuse_modalities(copied, project.plan, project.splits.folds(project.plan.splits))
    assert [item.fold for item in record.left_out] == [None, *range(project.plan.splits.n_folds)]
    assert all(item.modalities == ["US", "MRI"] for item in record.left_out)
    assert describe_left_out(record.left_out) == [
        f"US + MRI: no model, for no case of class {project.plan.class_names[0]!r} has all of them. Such a case is predicted from the "
        "largest part of them that has a model."
    ]
    assert load_fusion(copied.model("fusion") / "fusion.json", project.plan) == record
    assert read_predictions(copied.model("fusion") / "test.csv").case_ids == test.case_ids

    predictor = Predictor(copied, device="cpu")
    with pytest.warns(UnlikeTrainingWarning, match="fusion-set"):
        found = pipeline.predict_test(project, predictor, tta=False, quiet=True)
    assert set(found["fusion"].case_ids) == set(test.case_ids)
    warned = [f for f in predictor.findings if f.check == "fusion-set"]
    assert {f.case_id for f in warned} == both
    assert "predicted by that of" in str(warned[0])
    assert all(row["warnings"] for row in predictor.decide(found) if row["model"] == "fusion" and row["case_id"] in both)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_any_number_of_tables_and_classes(method: str, n_classes: int) -> None:
    names = ["negative", "low", "positive"][:n_classes]
    tables = make_tables(150, distances={"A": 2.0, "B": 1.0, "CLIN": 0.5, "RAD:US": 1.0}, n_classes=n_classes, lacking=0.2)
    subsets = sorted({tuple(m for m in tables if c in tables[m].case_ids) for t in tables.values() for c in t.case_ids}
                     | {(m,) for m in tables})  # fmt: skip
    if method == "logistic":  # sets with too few cases cannot have a regression of their own
        tables, subsets = make_tables(150, distances={"A": 2.0, "B": 1.0}, n_classes=n_classes), [tuple(s) for s in SUBSETS]
    fused = apply_fusion(tables, fit_fusion(tables, subsets, names, 1.0, method=method))  # type: ignore[arg-type]
    np.testing.assert_allclose(fused.probs.sum(axis=1), 1)
    assert (fused.probs.argmax(axis=1) == fused.labels).mean() > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_the_label_of_a_held_out_patient_changes_nothing_that_is_reported_on_it(method: str) -> None:
    tables = make_tables()
    folds = folds_of(tables)
    before = fuse_out_of_fold(tables, SUBSETS, folds, CLASSES, 1.0, [method] * 3)  # type: ignore[list-item]
    after = fuse_out_of_fold(_flip(tables, folds[1]), SUBSETS, folds, CLASSES, 1.0, [method] * 3)  # type: ignore[list-item]
    own = np.isin(before.patient_ids, folds[1])
    np.testing.assert_array_equal(before.probs[own], after.probs[own])
    assert method == "mean" or not np.array_equal(before.probs[~own], after.probs[~own])


def test_the_choice_of_a_method_never_sees_the_patients_it_is_reported_on() -> None:
    tables = make_tables(60, distances={"A": 1.0, "B": 0.2})
    folds = folds_of(tables)
    before = select_method(tables, SUBSETS, folds, CLASSES, 1.0)
    after = select_method(_flip(tables, folds[1]), SUBSETS, folds, CLASSES, 1.0)
    assert after.per_fold[1] == before.per_fold[1]
    assert after.per_fold[0] != before.per_fold[0]  # what the other folds do see changes them
    assert after.candidates != before.candidates


def _flip(tables: Mapping[str, Predictions], patients: list[str]) -> dict[str, Predictions]:
    return {
        name: t.with_labels({c: int(1 - y) if p in patients else int(y) for c, p, y in
                             zip(t.case_ids, t.patient_ids, t.labels, strict=True)})
        for name, t in tables.items()
    }  # fmt: skip


def test_the_rule_takes_the_simplest_within_one_standard_error() -> None:
    def candidate(method: str, n: int, excess: float | None, se: float | None) -> Candidate:
        return Candidate(method=method, n_parameters=n, log_loss=None if excess is None else 0.5 + excess, excess=excess,  # type: ignore[arg-type]
                         excess_se=se, n_patients=50, reason="")  # fmt: skip

    good = [candidate("mean", 0, 0.03, 0.02), candidate("weighted", 2, 0.01, 0.02), candidate("logistic", 7, 0.0, 0.0)]
    assert _simplest_good(good) == "weighted"
    assert _simplest_good([candidate("mean", 0, None, None), *good[2:]]) == "logistic"


def test_a_useless_table_is_not_given_half_the_say() -> None:
    tables = make_tables(240, distances={"A": 2.5, "B": 0.0}, lacking=0.05)
    selection = select_method(tables, SUBSETS, folds_of(tables), CLASSES, 1.0)
    assert selection.chosen != "mean"
    assert {c.method for c in selection.candidates} == set(METHODS)


@pytest.mark.parametrize("method", ["logistic", "gated"])
def test_networks_that_learned_nothing_are_not_turned_into_a_good_model(method: str) -> None:
    """They say little more than the share of each class among their training cases, which lack just the case in question."""
    aucs = []
    for seed in range(30):
        rng, n = np.random.default_rng(seed), 60
        y, patients = (rng.random(n) < 0.4).astype(int), [f"p{i:03d}" for i in range(n)]
        fold = rng.permutation(n) % 3
        share = np.array([y[fold != k].mean() for k in fold])
        tables = {}
        for name in ("A", "B"):
            p1 = 1 / (1 + np.exp(-np.log(share / (1 - share)) - 0.1 * rng.standard_normal(n)))
            tables[name] = make_predictions([f"c{i:03d}" for i in range(n)], patients, np.column_stack([1 - p1, p1]),
                                            labels=y.tolist(), folds=[str(k) for k in fold])  # fmt: skip
        assert roc_auc_score(y, tables["A"].probs[:, 1]) < 0.55
        folds = [[p for p, k in zip(patients, fold, strict=True) if k == j] for j in range(3)]
        fused = fuse_out_of_fold(tables, SUBSETS, folds, CLASSES, 1.0, [method] * 3)  # type: ignore[list-item]
        aucs.append(roc_auc_score(fused.labels, fused.probs[:, 1]))
    assert np.mean(aucs) < 0.5


@pytest.mark.parametrize("method", ["logistic", "gated"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_table_that_points_the_wrong_way_is_left_out_not_turned_around(method: str, n_classes: int) -> None:
    names = ["negative", "low", "positive"][:n_classes]
    tables = make_tables(150, distances={"A": 2.0, "B": -1.5}, lacking=0.0, n_classes=n_classes)
    alone, wrong, both = fit_fusion(tables, SUBSETS, names, 1.0, method=method)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(both.weights), np.concatenate([alone.weights, np.zeros_like(alone.weights)], axis=1))
    assert not np.any(wrong.weights)
    assert {c.modality: c.ci_low is None for c in both.coefficients} == {"A": False, "B": True}
    fused = apply_fusion({"B": tables["B"]}, [wrong])
    if method == "logistic":  # a gated fusion says what it says of a case whose other table is like the mean
        np.testing.assert_allclose(fused.probs, np.tile(np.bincount(fused.labels) / len(fused), (len(fused), 1)))


def test_two_folds_leave_nothing_to_choose_on() -> None:
    tables = make_tables()
    selection = select_method(tables, SUBSETS, folds_of(tables, 2), CLASSES, 1.0)
    assert (selection.chosen, selection.per_fold) == ("logistic", ["logistic", "logistic"])
    assert "at least 3 folds" in selection.candidates[0].reason


def test_auto_reaches_record_report_and_explanation(copied: DatasetPaths) -> None:
    plan = Plan.load(copied.plan)
    plan.model_copy(update={"fusion": plan.fusion.model_copy(update={"method": "auto"})}).save(copied.plan)
    record = pipeline.fuse(load_project(copied))
    assert record.selection is not None
    assert record.method == record.selection.chosen
    assert len(record.selection.per_fold) == plan.splits.n_folds
    assert FusionRecord.load(copied.model("fusion") / "fusion.json") == record
    project = load_project(copied)
    pipeline.evaluate(project)
    page = pipeline.report(project).read_text(encoding="utf-8")
    assert "Ways of fusing, estimated in an inner loop" in page
    assert METHOD_NAMES[record.method] in page
    lines = describe_selection(record.selection)
    assert lines[0].startswith(f"fusion chose {record.method}")
    assert len(lines) == 6
