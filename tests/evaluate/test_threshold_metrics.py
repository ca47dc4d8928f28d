"""Rates and thresholds: against scikit-learn, scipy and statsmodels; every undefined value says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2net.evaluate.cohort_metrics import binary_metrics, multiclass_metrics
from her2net.evaluate.estimate import Estimate
from her2net.evaluate.pairwise import compare_models
from her2net.evaluate.proportions import (
    Confusion,
    clopper_pearson,
    clustered_proportion,
    likelihood_ratios,
    mcc_formula,
    predictive_values_at,
    proportion,
    threshold_metrics,
    wilson,
)
from her2net.evaluate.thresholds import Threshold, choose_rule_in_out, choose_threshold, midpoints
from her2net.predictions import make_predictions

decisions = st.integers(3, 200).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n)
    )
)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=30, deadline=None)
def test_proportion_limits_equal_statsmodels(counts: tuple[int, int]) -> None:
    from statsmodels.stats.proportion import proportion_confint

    k, n = counts
    np.testing.assert_allclose(clopper_pearson(k, n), proportion_confint(k, n, method="beta"), atol=1e-9)
    np.testing.assert_allclose(wilson(k, n), proportion_confint(k, n, method="wilson"), atol=1e-9)


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=4))
def test_mcc_is_a_correlation_and_1_for_a_perfect_table(cells: list[int]) -> None:
    tp, fn, tn, fp = cells
    value = float(mcc_formula(*map(np.array, cells)))
    assert math.isnan(value) == (0 in (tp + fp, tp + fn, tn + fp, tn + fn))
    assert math.isnan(value) or -1 <= value <= 1
    if tp and tn:
        assert mcc_formula(np.array(tp), np.array(0), np.array(tn), np.array(0)) == 1
        assert mcc_formula(np.array(0), np.array(tp), np.array(0), np.array(tn)) == -1
        assert (value == 1) == (fn == fp == 0)


def test_limits_work_elementwise_and_at_the_ends() -> None:
    low, high = wilson(np.array([0, 5, 10, 0]), np.array([10, 10, 10, 0]))
    assert low[0] == 0
    assert high[2] == 1
    assert np.isnan([low[3], high[3]]).all()
    assert [float(x) for x in clopper_pearson(0, 10)] == pytest.approx([0, 0.3084971], abs=1e-6)


@given(decisions)
@settings(max_examples=30, deadline=None)
def test_rates_equal_scikit_learn(sample: tuple[list[int], list[bool]]) -> None:
    from sklearn import metrics

    labels, called = np.array(sample[0]), np.array(sample[1])
    found = threshold_metrics(labels, called)
    expected = {
        "accuracy": metrics.accuracy_score(labels, called),
        "sensitivity": metrics.recall_score(labels, called, zero_division=np.nan),
        "specificity": metrics.recall_score(1 - labels, ~called, zero_division=np.nan),
        "ppv": metrics.precision_score(labels, called, zero_division=np.nan),
        "npv": metrics.precision_score(1 - labels, ~called, zero_division=np.nan),
        "f1": metrics.f1_score(labels, called, zero_division=np.nan),
    }
    if len(set(labels)) == 2:
        expected["balanced_accuracy"] = metrics.balanced_accuracy_score(labels, called)
    if len(set(labels)) == 2 and len(set(called)) == 2:
        expected["mcc"] = metrics.matthews_corrcoef(labels, called)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name
    for name, estimate in found.items():
        assert_sound(name, estimate)


def assert_sound(name: str, estimate: Estimate) -> None:
    """An interval holds its value; what is not a number says why."""
    if not estimate.defined:
        assert estimate.reason, name
    elif math.isfinite(estimate.ci_low):
        assert estimate.ci_low <= estimate.value + 1e-12 <= estimate.ci_high + 2e-12, name


def test_likelihood_ratios_equal_a_worked_example() -> None:
    plus, minus = likelihood_ratios(Confusion(tp=431, fn=30, tn=87, fp=29))
    a, b = 431 / 461, 29 / 116
    half = 1.959964 * math.sqrt((1 - a) / 431 + (1 - b) / 29)
    assert [plus.ci_low, plus.ci_high] == pytest.approx([a / b * math.exp(-half), a / b * math.exp(half)], rel=1e-6)
    assert minus.value == pytest.approx((30 / 461) / (87 / 116))


def test_no_false_alarm_gives_an_infinite_ratio_as_nan_with_a_lower_limit() -> None:
    plus, minus = likelihood_ratios(Confusion(tp=12, fn=7, tn=29, fp=0))
    assert math.isnan(plus.value)
    assert "infinite" in plus.reason
    assert plus.ci_low > 1
    assert minus.value == pytest.approx(7 / 19)


def test_predictive_values_move_with_prevalence() -> None:
    counts = Confusion(tp=15, fn=4, tn=23, fp=6)
    moved = predictive_values_at(19 / 48, *likelihood_ratios(counts))
    assert moved["ppv"].value == pytest.approx(15 / 21)
    assert moved["npv"].value == pytest.approx(23 / 27)
    assert predictive_values_at(0.05, *likelihood_ratios(counts))["ppv"].value < 0.2
    assert moved["npv"].ci_low < moved["npv"].value < moved["npv"].ci_high


def test_predictive_values_of_an_infinite_ratio_are_at_their_bound() -> None:
    """No false alarm: every call is right, whatever the prevalence; specificity 0: every all-clear is wrong."""
    plus, minus = likelihood_ratios(Confusion(tp=6, fn=4, tn=10, fp=0))
    ppv = predictive_values_at(0.1, plus, minus)["ppv"]
    odds = plus.ci_low / 9
    assert (ppv.value, ppv.ci_high, ppv.reason) == (1.0, 1.0, "")
    assert ppv.ci_low == pytest.approx(odds / (1 + odds))
    plus, minus = likelihood_ratios(Confusion(tp=6, fn=4, tn=0, fp=10))
    npv = predictive_values_at(0.1, plus, minus)["npv"]
    assert (npv.value, npv.ci_low, npv.reason) == (0.0, 0.0, "")
    assert npv.ci_high == pytest.approx(1 / (1 + minus.ci_low / 9))
    for counts, name in ((Confusion(tp=0, fn=10, tn=10, fp=0), "ppv"), (Confusion(tp=10, fn=0, tn=0, fp=10), "npv")):
        never = predictive_values_at(0.1, *likelihood_ratios(counts))[name]
        assert math.isnan(never.value)
        assert never.reason == "0 / 0"


def test_cases_of_one_patient_count_for_less() -> None:
    success, owners = np.repeat([True, False], [30, 10]), np.repeat(np.arange(20), 2)
    clustered, plain = clustered_proportion(success, owners), proportion(30, 40)
    patients = proportion(15, 20)
    assert clustered.value == plain.value
    assert clustered.ci_low < plain.ci_low
    assert clustered.ci_low == pytest.approx(patients.ci_low, abs=0.01)
    assert clustered_proportion(np.ones(40, dtype=bool), owners).ci_low == pytest.approx(proportion(20, 20).ci_low)


@given(decisions, st.sampled_from([1, 3, 50]))
@settings(max_examples=30, deadline=None)
def test_youden_is_the_best_of_all_thresholds(sample: tuple[list[int], list[bool]], levels: int) -> None:
    labels = np.array(sample[0])
    scores = np.random.default_rng(len(labels)).integers(0, levels, len(labels)) / levels
    chosen = choose_threshold(labels, scores)
    if len(set(labels)) < 2 or len(set(scores)) < 2:
        assert chosen == 0.5
        return
    youden = lambda t: (scores[labels == 1] >= t).mean() + (scores[labels == 0] < t).mean()
    best = max(youden(t) for t in midpoints(np.unique(scores)))
    assert youden(chosen) == pytest.approx(best, abs=1e-9)
    assert choose_threshold(labels[::-1], scores[::-1]) == chosen


@pytest.mark.parametrize("score", [0.3, 0.5, 0.7])
def test_bounds_are_met_by_a_model_that_gives_all_cases_the_same(score: float) -> None:
    labels, scores = np.repeat([0, 1], 10), np.full(20, score)
    assert (scores >= choose_threshold(labels, scores, "sensitivity")).all()
    assert not (scores >= choose_threshold(labels, scores, "specificity")).any()
    low, high = choose_rule_in_out(labels, scores)
    assert low <= score < high  # nothing is ruled out or in
    assert choose_threshold(labels, scores) == choose_threshold(labels, scores, "cost") == 0.5


def test_bounds_are_met_and_the_other_rate_is_the_best_left() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    scores = rng.normal(size=200) + labels
    for bound in (0.5, 0.9, 0.95, 1.0):
        t = choose_threshold(labels, scores, "sensitivity", at_least=bound)
        assert (scores[labels == 1] >= t).mean() >= bound
        t = choose_threshold(labels, scores, "specificity", at_least=bound)
        assert (scores[labels == 0] < t).mean() >= bound
    dear_misses, dear_alarms = (choose_threshold(labels, scores, "cost", cost_ratio=r) for r in (20, 0.05))
    assert dear_misses < choose_threshold(labels, scores) < dear_alarms
    low, high = choose_rule_in_out(labels, scores)
    assert low < high


def test_neighbouring_floats_are_still_told_apart() -> None:
    below = 0.5
    above = float(np.nextafter(below, 1))
    t = choose_threshold(np.array([0, 1]), np.array([below, above]))
    assert below < t <= above


def test_a_perfect_or_an_idle_model_has_no_interval_without_width() -> None:
    """A bootstrap within classes draws the same figure again and again there, which says nothing of other patients."""
    labels, owners = np.repeat([0, 1], [12, 8]), np.arange(20)
    apart, alike = np.where(labels == 1, 0.8, 0.1) + np.linspace(0, 0.1, 20), np.full(20, 0.4)
    for probs in (apart, alike):
        for name, found in binary_metrics(labels, probs, owners, threshold=0.5).items():
            assert not (found.ci_low == found.ci_high and found.ci_method), name
            if "partial" in name:
                assert found.reason == "no variance: alike in every resample"
    ratio = threshold_metrics(labels, alike > 0.5)["lr_negative"]
    assert ratio.ci_low < 0.9 < 1.1 < ratio.ci_high
    names = [f"c{i:02d}" for i in owners]
    tables = {
        (name, "test"): make_predictions(names, names, np.stack([1 - p, p], axis=1), labels=list(labels), folds=[""] * 20)
        for name, p in (("A", apart), ("B", alike), ("C", alike))
    }
    half = Threshold(value=0.5, rule="given", chosen_on="nothing", n=0)
    rows = {(row["model_a"], row["model_b"], row["metric"]): row for row in compare_models(tables, dict.fromkeys("ABC", half))}
    for metric in ("auc", "balanced_accuracy", "pr_auc"):
        different, equal = rows["A", "B", metric], rows["B", "C", metric]
        assert (different["p_value"], different["ci_low"], equal["p_value"], equal["ci_low"]) == (None, None, 1.0, None)
        assert "no variance" in different["reason"]
    assert rows["A", "B", "auc"]["reason"] == "all cases count alike: no variance"  # they do not rank alike
    assert rows["A", "B", "auc"]["detectable_difference"] is None


def test_balanced_accuracy_of_three_perfectly_told_classes_has_an_interval() -> None:
    labels = np.repeat([0, 1, 2], 4)
    names = [f"c{i:02d}" for i in range(12)]
    probs = np.full((12, 3), 0.1) + 0.7 * np.eye(3)[labels]
    for owners in (names, [f"p{i // 2}" for i in range(12)]):
        found = multiclass_metrics(make_predictions(names, owners, probs, labels=list(labels), folds=[""] * 12), ordinal=True)
        assert found["balanced_accuracy"].value == pytest.approx(1.0)
        assert 0.4 < found["balanced_accuracy"].ci_low < 0.8
        assert np.isnan(found["weighted_kappa"].ci_low)
    clustered = found["balanced_accuracy"]
    assert clustered.ci_method == "MOVER of Wilson, clustered by patient"
