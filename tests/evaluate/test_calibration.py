"""Calibration and utility: against statsmodels and scikit-learn; recalibration chosen without looking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from her2net.evaluate.calibration import (
    brier,
    calibration_errors,
    calibration_slope_intercept,
    decompose_brier,
    ece_statistic,
    fit_logistic,
    ici_statistic,
    logit,
    smooth_outcome,
)
from her2net.evaluate.recalibration import choose_recalibration, fit_recalibration, log_loss
from her2net.evaluate.utility import clinical_impact, decision_curve


def cohort(n: int = 300, seed: int = 0, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities whose logits are `slope` times the true ones."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n) * 1.5 - 0.3
    labels = (rng.random(n) < 1 / (1 + np.exp(-score))).astype(int)
    return labels, 1 / (1 + np.exp(-slope * score))


def test_slope_and_intercept_equal_statsmodels() -> None:
    import statsmodels.api as sm

    labels, probs = cohort(slope=1.7)
    slope, intercept = calibration_slope_intercept(labels, probs)
    fitted = sm.Logit(labels, sm.add_constant(logit(probs))).fit(disp=0)
    assert slope.value == pytest.approx(fitted.params[1], abs=1e-8)
    assert [slope.ci_low, slope.ci_high] == pytest.approx(list(fitted.conf_int()[1]), abs=1e-6)
    offset = sm.GLM(labels, np.ones(300), family=sm.families.Binomial(), offset=logit(probs)).fit()
    assert intercept.value == pytest.approx(offset.params[0], abs=1e-8)
    assert [intercept.ci_low, intercept.ci_high] == pytest.approx(list(offset.conf_int()[0]), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(3, 300), st.sampled_from([2, 5, 1000]), st.sampled_from([0.05, 0.5]))
@example(3869, 3, 1000, 0.05)
@settings(max_examples=20, deadline=None)
def test_calibration_figures_equal_statsmodels_or_say_why_not(seed: int, n: int, levels: int, share: float) -> None:
    import statsmodels.api as sm
    from sklearn.metrics import brier_score_loss

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, rng.random(n - 2) < share]).astype(int)
    probs = (np.floor(levels * rng.random(n)) + 0.5) / levels
    slope, intercept = calibration_slope_intercept(labels, probs)
    assert brier(labels, probs).value == pytest.approx(brier_score_loss(labels, probs), abs=1e-12)
    pos, neg = probs[labels == 1], probs[labels == 0]
    if np.ptp(probs) == 0 or pos.min() >= neg.max() or neg.min() >= pos.max():
        assert slope.reason
    else:
        fitted = sm.GLM(labels, sm.add_constant(logit(probs)), family=sm.families.Binomial()).fit(tol=1e-12)
        assert slope.value == pytest.approx(fitted.params[1], rel=1e-5, abs=1e-6)
        assert slope.ci_low == pytest.approx(fitted.conf_int()[1][0], rel=1e-4, abs=1e-4)
    offset = sm.GLM(labels, np.ones(n), family=sm.families.Binomial(), offset=logit(probs)).fit(tol=1e-12)
    assert intercept.value == pytest.approx(offset.params[0], rel=1e-5, abs=1e-6)


def test_cluster_sandwich_equals_statsmodels() -> None:
    import statsmodels.api as sm

    labels, probs = cohort()
    owners = np.repeat(np.arange(150), 2)
    slope, _ = calibration_slope_intercept(labels, probs, owners)
    fitted = sm.GLM(labels, sm.add_constant(logit(probs)), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": owners, "use_correction": False}
    )
    error = (slope.ci_high - slope.ci_low) / 2 / 1.959964
    assert error == pytest.approx(fitted.bse[1] * math.sqrt(150 / 149), rel=1e-5)


@pytest.mark.parametrize("probs", [np.array([0.1, 0.2, 0.8, 0.9]), np.full(4, 0.5), np.array([0.0, 0.0, 1.0, 1.0])])
def test_separated_or_constant_probabilities_have_no_slope(probs: np.ndarray) -> None:
    slope, _ = calibration_slope_intercept(np.array([0, 0, 1, 1]), probs)
    assert math.isnan(slope.value)
    assert slope.reason


def test_newton_gives_up_on_separation() -> None:
    beta, _ = fit_logistic(np.column_stack([np.arange(6.0), np.ones(6)]), np.array([0.0, 0, 0, 1, 1, 1]))
    assert np.isnan(beta).all()


def test_brier_equals_scikit_learn_and_its_parts_add_up() -> None:
    from sklearn.metrics import brier_score_loss

    labels, probs = cohort()
    found = brier(labels, probs)
    assert found.value == pytest.approx(brier_score_loss(labels, probs))
    assert found.ci_low < found.value < found.ci_high
    parts = decompose_brier(labels, probs)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert total == pytest.approx(found.value)
    assert brier(labels, np.column_stack([1 - probs, probs])).value == pytest.approx(found.value)
    assert brier(np.array([0, 1]), np.array([0.0, 1.0])).reason
    alike = brier(np.ones(12, dtype=int), np.full(12, 0.6))
    assert alike.value == pytest.approx(0.16)
    assert np.isnan(alike.ci_low)
    assert "equally far off" in alike.reason


def test_ece_by_hand_and_ici_by_lowess() -> None:
    from statsmodels.nonparametric.smoothers_lowess import lowess

    labels, probs = np.array([0, 1, 1, 0]), np.array([0.12, 0.18, 0.9, 1.0])
    assert ece_statistic(labels, probs)(np.ones((1, 4)))[0] == pytest.approx(0.5 * 0.35 + 0.5 * 0.45)
    labels, probs = cohort(180, slope=2)
    smooth = lowess(labels, probs, frac=0.75, it=0, return_sorted=False)
    knots, ours = smooth_outcome(labels, probs)
    np.testing.assert_allclose(np.interp(probs, knots, ours), np.clip(smooth, 0, 1), atol=1e-6)
    expected = np.abs(np.clip(smooth, 0, 1) - probs).mean()
    assert ici_statistic(labels, probs)(np.ones((1, 180)))[0] == pytest.approx(expected, abs=1e-6)


def test_many_cases_are_rounded_without_moving_the_index() -> None:
    labels, probs = cohort(6000, slope=2)
    whole = ici_statistic(labels, probs)(np.ones((1, 6000)))[0]
    half = ici_statistic(labels[:5000], probs[:5000])(np.ones((1, 5000)))[0]
    assert whole == pytest.approx(half, abs=0.01)


def test_errors_have_intervals_or_reasons() -> None:
    for found in calibration_errors(*cohort(80), n_resamples=200).values():
        assert 0 <= found.ci_low <= found.value <= found.ci_high <= 1
    assert "wider of basic and percentile" in calibration_errors(*cohort(80), n_resamples=200)["ici"].ci_method
    assert calibration_errors(np.zeros(5, dtype=int), np.full(5, 0.2))["ici"].reason


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_recalibration_mends_overconfidence(kind: str) -> None:
    labels, probs = cohort(600, slope=3)
    fresh_labels, fresh = cohort(600, seed=1, slope=3)
    fitted = fit_recalibration(labels, probs, kind)  # type: ignore[arg-type]
    assert log_loss(fresh_labels, fitted.apply(fresh)) < log_loss(fresh_labels, fresh) - 0.05
    assert (np.diff(fitted.apply(np.linspace(0, 1, 50))) >= -1e-12).all()


def test_choice_is_by_log_loss_on_patients_left_out() -> None:
    labels, probs = cohort(600, slope=3)
    chosen = choose_recalibration(labels, probs, np.arange(600))
    assert chosen.kind in ("temperature", "platt")
    assert chosen.log_loss[chosen.kind] == min(chosen.log_loss.values())
    assert choose_recalibration(labels[:6], probs[:6], np.arange(6)).kind == "none"
    assert choose_recalibration(*cohort(400), np.arange(400)).kind == "none"
    assert fit_recalibration(labels, 1 - probs, "platt").kind == "none"


def test_net_benefit_by_hand_and_its_defaults() -> None:
    labels, probs = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.6, 0.2, 0.1])
    curve = decision_curve(labels, probs, thresholds=np.array([0.05, 0.5]))
    assert curve.model[0] == pytest.approx(curve.treat_all[0])
    assert curve.model[1] == pytest.approx(1 / 5 - 1 / 5)
    assert (curve.model_low <= curve.model).all()
    benefit = (probs >= 0.5) * np.where(labels == 1, 1.0, -1.0)
    assert curve.model_high[1] - curve.model[1] == pytest.approx(1.959964 * benefit.std(ddof=1) / math.sqrt(5), rel=1e-6)
    impact = clinical_impact(labels, probs, thresholds=np.array([0.5]))
    assert [impact.called[0], impact.true_positive[0]] == [400, 200]


def test_utility_of_duplicated_cases_is_that_of_the_patients() -> None:
    labels, probs = cohort(80)
    twice = np.repeat(np.arange(80), 2)
    once, clustered = decision_curve(labels, probs), decision_curve(labels[twice], probs[twice], twice)
    np.testing.assert_allclose(clustered.model, once.model, atol=1e-12)
    np.testing.assert_allclose(clustered.model_low, once.model_low, atol=1e-12)
    some = np.array([0.3, 0.6])
    once, clustered = (clinical_impact(labels[rows], probs[rows], rows, thresholds=some) for rows in (np.arange(80), twice))
    np.testing.assert_allclose(clustered.called_limits, once.called_limits, atol=15)
