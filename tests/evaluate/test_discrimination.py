"""Areas and their intervals: against scikit-learn and brute force, invariances, degenerate samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2net.evaluate import bootstrap
from her2net.evaluate.bootstrap import bootstrap_values, group_cases, resample_weights
from her2net.evaluate.calibration import calibration_errors
from her2net.evaluate.delong import auc, auc_contrast, auc_covariance, mean_auc_contrast, placements
from her2net.evaluate.discrimination import (
    auc_interval,
    bootstrap_aucs,
    newcombe_interval,
    partial_auc_interval,
    pr_auc_interval,
    roc_points,
)
from her2net.evaluate.multiclass import hand_till, macro_auc, name_classes, weighted_kappa
from her2net.evaluate.weighted import auc_statistic, partial_auc_statistic, pr_auc_statistic

METHODS = ("delong", "delong-logit", "delong-logit-t", "newcombe", "bootstrap", "bootstrap-percentile", "binomial-exact")


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels with both classes, one of them possibly rare, and scores with heavy ties."""
    n = draw(st.integers(3, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_pos = draw(st.sampled_from([1, n // 2, n - 1]))
    labels = np.zeros(n, dtype=np.int64)
    labels[rng.choice(n, max(n_pos, 1), replace=False)] = 1
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    return labels, rng.integers(0, levels, n) / levels + 0.3 * labels * draw(st.sampled_from([0, 1]))


def brute_placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pos, neg = scores[labels == 1], scores[labels == 0]
    wins = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    return wins.mean(axis=1), wins.mean(axis=0)


@given(samples())
@settings(max_examples=30, deadline=None)
def test_placements_equal_all_pairs(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    v10, v01 = placements(labels, np.stack([scores, -scores]))
    for model, sign in enumerate((1, -1)):
        expected = brute_placements(labels, sign * scores)
        np.testing.assert_allclose(v10[model], expected[0], atol=1e-12)
        np.testing.assert_allclose(v01[model], expected[1], atol=1e-12)


@given(samples())
@settings(max_examples=30, deadline=None)
def test_areas_equal_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = sample
    ones = np.ones((1, len(labels)))
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auc_statistic(labels, scores)(ones)[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    precision = average_precision_score(labels, scores)
    assert pr_auc_statistic(labels, scores)(ones)[0] == pytest.approx(precision, abs=1e-12)
    partial = partial_auc_statistic(labels, scores, focus="specificity", at_least=0.8)(ones)[0]
    assert partial == pytest.approx(roc_auc_score(labels, scores, max_fpr=0.2), abs=1e-12)
    mirrored = partial_auc_statistic(labels, scores, focus="sensitivity", at_least=0.8)(ones)[0]
    assert mirrored == pytest.approx(roc_auc_score(1 - labels, -scores, max_fpr=0.2), abs=1e-12)


@pytest.mark.parametrize(("n", "n_positive", "levels"), [(10_000, 3, 4), (300_000, 90_000, 10**6)])
def test_areas_of_many_cases_equal_scikit_learn(n: int, n_positive: int, levels: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(n)
    labels = rng.permutation((np.arange(n) < n_positive).astype(np.int64))
    scores = np.floor(levels / (1 + np.exp(-rng.normal(size=n) - labels))) / levels
    expected = {"specificity": roc_auc_score(labels, scores, max_fpr=0.1),
                "sensitivity": roc_auc_score(1 - labels, -scores, max_fpr=0.1)}  # fmt: skip
    assert auc_interval(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert pr_auc_interval(labels, scores).value == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    for focus, value in expected.items():
        found = partial_auc_interval(labels, scores, focus=focus, n_resamples=50)  # type: ignore[arg-type]
        assert found.value == pytest.approx(value, abs=1e-9)


def test_groups_of_many_cases_are_resampled_like_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(5000) < 0.3).astype(np.int64)
    scores = 1 / (1 + np.exp(-rng.normal(size=5000) - labels))
    measure = lambda: [
        auc_interval(labels, scores, method="bootstrap"), pr_auc_interval(labels, scores, method="bootstrap-percentile"),
        partial_auc_interval(labels, scores, focus="sensitivity"), *calibration_errors(labels, scores).values(),
    ]  # fmt: skip
    whole = measure()
    monkeypatch.setattr(bootstrap, "GROUPED_FROM", 1000)
    groups, means, counts = group_cases(labels, scores)
    assert counts.sum() == 5000
    assert counts @ means == pytest.approx(scores.sum())
    assert [counts[groups == c].sum() for c in (0, 1)] == [(labels == c).sum() for c in (0, 1)]
    assert group_cases(labels, scores, np.arange(5000) // 2)[2] is None
    for one, other in zip(whole, measure(), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-12)
        width = one.ci_high - one.ci_low
        assert [other.ci_low, other.ci_high] == pytest.approx([one.ci_low, one.ci_high], abs=0.12 * width)


def test_degrees_of_freedom_are_those_of_welch() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 9])
    scores = rng.normal(size=49) + labels
    v10, v01 = (part[0] for part in placements(labels, scores[None]))
    value, variance, df = auc_contrast(labels, scores[None], np.ones(1))
    assert df == pytest.approx(ttest_ind(v10, v01, equal_var=False).df)
    assert variance == pytest.approx(auc_covariance(labels, scores[None])[1][0, 0])
    t, z = (auc_interval(labels, scores, method=m) for m in ("delong-logit-t", "delong-logit"))
    assert t.value == value
    assert t.ci_low < z.ci_low < z.ci_high < t.ci_high


@given(samples())
@settings(max_examples=15, deadline=None)
def test_weights_mean_repetition(sample: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = sample
    weights = next(iter(resample_weights(labels, None, 1, np.random.default_rng(0)))).astype(int)
    rows = np.repeat(np.arange(len(labels)), weights[0])
    assert weights[0][labels == 1].sum() == (labels == 1).sum()
    assert auc_statistic(labels, scores)(weights)[0] == pytest.approx(roc_auc_score(labels[rows], scores[rows]))
    expected = average_precision_score(labels[rows], scores[rows])
    assert pr_auc_statistic(labels, scores)(weights)[0] == pytest.approx(expected)


@given(samples())
@settings(max_examples=20, deadline=None)
def test_intervals_hold_the_estimate_and_ignore_order_and_scale(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample[0], np.round(sample[1], 6)  # 0.3 + 0.4 and 0.7 are ties, before the exponential and after
    order = np.random.default_rng(1).permutation(len(labels))
    for method in ("delong", "delong-logit", "delong-logit-t", "newcombe", "binomial-exact"):
        found = auc_interval(labels, scores, method=method)
        moved = auc_interval(labels[order], np.exp(3 * scores[order]), method=method)
        assert moved.value == pytest.approx(found.value, abs=1e-12)
        assert moved.ci_low == pytest.approx(found.ci_low, abs=1e-9, nan_ok=True)
        if math.isfinite(found.ci_low):
            assert 0 <= found.ci_low <= found.value + 1e-12 <= found.ci_high + 2e-12 <= 1 + 1e-9


@given(samples())
@settings(max_examples=20, deadline=None)
def test_turning_the_scores_round_mirrors_the_interval(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    for method in ("delong", "delong-logit", "delong-logit-t", "newcombe"):
        found, turned = (auc_interval(labels, sign * scores, method=method) for sign in (1, -1))
        assert turned.value == pytest.approx(1 - found.value, abs=1e-12)
        assert turned.ci_high == pytest.approx(1 - found.ci_low, abs=1e-7, nan_ok=True)


@pytest.mark.parametrize("method", METHODS)
def test_one_class_is_undefined_with_a_reason(method: str) -> None:
    found = auc_interval(np.ones(5, dtype=int), np.arange(5.0), method=method)  # type: ignore[arg-type]
    assert math.isnan(found.value)
    assert found.reason


def test_perfect_separation_still_has_a_width() -> None:
    found = auc_interval(np.repeat([0, 1], 10), np.arange(20.0))
    assert found.value == 1
    assert 0.5 < found.ci_low < 1
    assert found.ci_high == 1
    assert "Newcombe" in found.ci_method


def test_no_interval_of_an_area_is_without_a_width() -> None:
    labels = np.repeat([0, 1], 30)
    for scores in (labels * 0.5, np.full(60, 0.3)):
        found = auc_interval(labels, scores, method="delong")
        assert math.isnan(found.ci_low)
        assert found.reason == "all cases count alike: no variance"
    for focus in ("sensitivity", "specificity"):
        found = partial_auc_interval(labels, np.random.default_rng(0).normal(size=60) - 4 * labels, focus=focus, method="bca")
        assert found.reason in ("no variance: alike in every resample", "no width: alike in nearly every resample")
        assert math.isnan(found.ci_low)


def test_one_case_of_a_class_has_a_score_interval_but_no_delong_interval() -> None:
    labels, scores = np.array([1, 0, 0]), np.array([0.5, 0.4, 0.6])
    assert math.isnan(auc_interval(labels, scores, method="delong").ci_low)
    assert auc_interval(labels, scores, method="newcombe").ci_low < 0.5


def test_score_interval_is_where_the_observed_area_stops_being_surprising() -> None:
    found = newcombe_interval(0.8, 20, 30)
    for theta in (found.ci_low, found.ci_high):
        spread = 24 * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        error = math.sqrt(theta * (1 - theta) * (1 + spread) / 600)
        assert abs(0.8 - theta) / error == pytest.approx(1.959964, abs=1e-5)


def test_clustered_variance_equals_the_plain_one_for_single_cases() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.normal(size=(2, 60))
    plain, single = (auc_covariance(labels, scores, p)[1] for p in (None, np.arange(60)))
    np.testing.assert_array_equal(plain, single)


def test_clustered_variance_of_duplicated_cases_is_that_of_the_patients() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 30])
    scores = rng.normal(size=(2, 70)) + labels
    twice, owners = np.repeat(np.arange(70), 2), np.repeat(np.arange(70), 2)
    once = auc_covariance(labels, scores)[1]
    np.testing.assert_allclose(auc_covariance(labels[twice], scores[:, twice], owners)[1], once, rtol=1e-12)
    assert auc_covariance(labels[twice], scores[:, twice])[1][0, 0] < 0.6 * once[0, 0]


def test_clustered_variance_where_patients_have_both_classes() -> None:
    """Each patient one positive and one negative that share a level: simulated variance is the judge."""
    rng, values, errors = np.random.default_rng(0), [], []
    labels, owners = np.tile([0, 1], 50), np.repeat(np.arange(50), 2)
    for _ in range(600):
        scores = np.repeat(rng.normal(size=50), 2) + 0.5 * rng.normal(size=100) + 0.7 * labels
        aucs, covariance = auc_covariance(labels, scores[None], owners)
        values.append(aucs[0])
        errors.append(covariance[0, 0])
    assert np.mean(errors) == pytest.approx(np.var(values), rel=0.15)


def test_fast_bootstrap_has_the_distribution_of_the_general_one() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [50, 30])
    for scores in (rng.normal(size=80) + labels, rng.integers(0, 4, 80) + labels):
        fast = bootstrap_aucs(labels, scores.astype(float), n_resamples=4000)
        general = bootstrap_values({"a": auc_statistic(labels, scores)}, labels, n_resamples=4000)["a"]
        assert fast.mean() == pytest.approx(general.mean(), abs=0.005)
        assert fast.std() == pytest.approx(general.std(), rel=0.08)


def test_bca_equals_scipy() -> None:
    """Scipy's BCa of the mean, on the same kind of data; ours through case weights."""
    from scipy.stats import bootstrap

    from her2net.evaluate.bootstrap import bootstrap_interval
    from her2net.evaluate.weighted import mean_statistic

    values = np.random.default_rng(0).exponential(size=60)
    ours = bootstrap_interval(mean_statistic(values), np.zeros(60, dtype=int), n_resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    assert ours.ci_low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.ci_high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_patients_are_drawn_whole() -> None:
    owners = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    for weights in resample_weights(labels, owners, 50, np.random.default_rng(0)):
        for owner in np.unique(owners):
            assert (np.ptp(weights[:, owners == owner], axis=1) == 0).all()


def test_roc_points_equal_scikit_learn() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 50), rng.integers(0, 9, 50).astype(float)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(roc_points(labels, scores), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_bootstrap_is_reproducible_and_seeded() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.normal(size=60)
    one, two = (auc_interval(labels, scores, method="bootstrap", rng=np.random.default_rng(7)) for _ in range(2))
    assert one == two
    assert one != auc_interval(labels, scores, method="bootstrap", rng=np.random.default_rng(8))
    assert pr_auc_interval(labels, scores).ci_low < pr_auc_interval(labels, scores).value
    assert partial_auc_interval(labels, scores, focus="sensitivity").ci_high <= 1


@given(st.integers(0, 2**32 - 1), st.integers(9, 200), st.sampled_from([2, 10, 1000]))
@settings(max_examples=10, deadline=None)
def test_multiclass_figures_equal_scikit_learn(seed: int, n: int, levels: int) -> None:
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, 2, np.minimum(rng.integers(0, 8, n - 3), 2)])  # two classes are rare
    probs = np.round(levels * (rng.dirichlet(np.ones(3), n) + 0.5 * np.eye(3)[labels])) + 1e-3
    probs /= probs.sum(axis=1, keepdims=True)
    one, other = macro_auc(labels, probs), hand_till(labels, probs)
    assert one.value == pytest.approx(roc_auc_score(labels, probs, multi_class="ovr"), abs=1e-9)
    assert other.value == pytest.approx(roc_auc_score(labels, probs, multi_class="ovo"), abs=1e-9)
    for weights in ("linear", "quadratic"):
        found = weighted_kappa(labels, probs.argmax(axis=1), 3, weights=weights)  # type: ignore[arg-type]
        assert found.value == pytest.approx(cohen_kappa_score(labels, probs.argmax(axis=1), weights=weights), abs=1e-12)
    assert macro_auc(labels % 2, probs).reason == "no case of class 2"
    assert name_classes("no case of class 1, 2", ["2", "3", "4"]) == "no case of class 3, 4"
    assert name_classes("one class only", ["2", "3", "4"]) == "one class only"


def test_kappa_of_patients_with_several_cases_has_a_wider_interval() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    decided = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
    once, twice = weighted_kappa(labels, decided, 3), np.repeat(np.arange(60), 2)
    clustered = weighted_kappa(labels[twice], decided[twice], 3, patients=twice)
    assert clustered.value == pytest.approx(once.value)
    assert [clustered.ci_low, clustered.ci_high] == pytest.approx([once.ci_low, once.ci_high], abs=0.05)
    assert "patients" in clustered.ci_method


def softmax_cohort(sizes: tuple[int, ...], signal: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    power = np.exp(signal * np.eye(len(sizes))[labels] + rng.normal(size=(len(labels), len(sizes))))
    return labels, power / power.sum(axis=1, keepdims=True)


def test_variance_of_the_mean_auc_is_delongs_with_two_classes_and_the_jackknifes_with_more() -> None:
    rng = np.random.default_rng(0)
    labels, probs = softmax_cohort((25, 15), 1.0, rng)
    owners = rng.integers(0, 20, 40)
    for patients in (None, owners):
        one = auc_contrast(labels, probs[None, :, 1], np.ones(1), patients)
        assert mean_auc_contrast(labels, probs[None], np.ones(1), patients) == pytest.approx(one)
    labels, probs = softmax_cohort((40, 30, 20), 1.0, rng)
    for pairs in (False, True):
        value, variance, _ = mean_auc_contrast(labels, probs[None], np.ones(1), pairs=pairs)
        jackknife = 0.0
        for c in range(3):
            without = [(np.delete(labels, i), np.delete(probs, i, axis=0)[None]) for i in np.flatnonzero(labels == c)]
            left = np.array([mean_auc_contrast(*cohort, np.ones(1), pairs=pairs)[0] for cohort in without])
            jackknife += (len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum())
        assert variance == pytest.approx(jackknife, rel=0.02)
        assert 0 < value < 1


def test_interval_of_the_mean_auc_holds_with_few_patients_of_a_class() -> None:
    """The bootstrap cannot lose the only case of a class: its intervals held 70 to 86 % here."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        found = macro_auc(*softmax_cohort((8, 8, 7, 2), 2.5, rng))
        held += found.ci_low <= 0.987 <= found.ci_high
    assert held >= 180
    labels, probs = softmax_cohort((6, 6, 6), 20.0, rng)
    perfect = macro_auc(labels, probs)
    assert perfect.value == 1
    assert perfect.ci_low < 0.95
    assert perfect.ci_method == "Newcombe score"
    alone = macro_auc(labels[:-5], probs[:-5])  # one case of the last class
    assert alone.ci_low < perfect.ci_low
