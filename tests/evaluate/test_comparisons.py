"""Two models on the same cases: against statsmodels, scipy and definition; p-values stay what they should be."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

from her2net.evaluate.calibration import squared_errors
from her2net.evaluate.comparisons import (
    bonferroni,
    compare_aucs,
    compare_means,
    corrected_resampled_t,
    detectable_auc_difference,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_bootstraps,
    tango_limits,
)
from her2net.evaluate.estimate import two_sided_p
from her2net.evaluate.pairwise import compare_models
from her2net.evaluate.reclassification import integrated_discrimination, net_reclassification
from her2net.evaluate.record import _compared
from her2net.evaluate.sample_size import (
    auc_permutation_p,
    auc_permutation_p_of_many,
    cases_for_half_width,
    half_width,
    hanley_mcneil_error,
    size_advice,
)
from her2net.evaluate.subgroups import MISSING, equality_p, level_order, numeric_levels, subgroup_aucs
from her2net.evaluate.tables import evaluate_tables
from her2net.evaluate.thresholds import Threshold
from her2net.evaluate.weighted import auc_statistic, pr_auc_statistic
from her2net.predictions import Predictions, make_predictions


def cohort(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    common = rng.normal(size=n) + labels
    return labels, common + rng.normal(size=n), common + 0.5 * rng.normal(size=n)


def test_comparison_is_antisymmetric_and_alike_models_do_not_differ() -> None:
    labels, a, b = cohort()
    one, two = compare_aucs(labels, a, b), compare_aucs(labels, b, a)
    assert one.difference == pytest.approx(-two.difference)
    assert one.p_value == pytest.approx(two.p_value)
    same = compare_aucs(labels, a, np.exp(a))
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.reason
    perfect = compare_aucs(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.full(4, 0.5))
    assert (perfect.difference, perfect.reason) == (0.5, "all cases count alike: no variance")
    assert compare_aucs(np.ones(5, dtype=int), a[:5], b[:5]).reason == "one class only"


def test_mcnemar_equals_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = rng.random((2, 40)) < 0.7
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        found = mcnemar_exact(a, b)
        assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert found.ci_low <= found.difference <= found.ci_high


def test_mcnemar_keeps_the_cases_of_a_patient_together() -> None:
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(9), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    a, b = rng.random((2, 18)) < 0.6
    balance = np.bincount(patients, a.astype(float) - b)
    sums = [abs(np.dot(signs, balance)) for signs in product((1, -1), repeat=9)]
    found = mcnemar_exact(a, b, patients)
    assert found.p_value == pytest.approx(np.mean(np.array(sums) >= abs(balance.sum())))
    assert found.test == "McNemar exact, clustered by patient"
    assert mcnemar_exact(a, b, np.arange(18)) == mcnemar_exact(a, b)


def test_mcnemar_of_duplicated_cases_is_that_of_the_patients() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 60)) < [[0.8], [0.6]]
    once, twice = mcnemar_exact(a, b), np.repeat(np.arange(60), 2)
    clustered = mcnemar_exact(a[twice], b[twice], twice)
    assert clustered.p_value == pytest.approx(once.p_value)
    assert [clustered.ci_low, clustered.ci_high] == pytest.approx([once.ci_low, once.ci_high], abs=0.005)
    assert mcnemar_exact(a[twice], b[twice]).p_value < once.p_value / 2


def test_few_cases_of_a_class_are_referred_to_t() -> None:
    labels, a, b = cohort(60)
    rare = np.flatnonzero(labels == 1)[5:]
    labels, a, b = (np.delete(x, rare) for x in (labels, a, b))
    found = compare_aucs(labels, a, b)
    assert "t with" in found.test
    assert found.p_value > two_sided_p(found.statistic)
    assert "t with" not in compare_aucs(*cohort(200)).test


def test_folds_are_compared_pairwise_and_not_taken_for_independent() -> None:
    labels, a, b = cohort(80)
    squash = lambda x: np.column_stack([1 - 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-x))])
    names, folds = [f"c{i:02d}" for i in range(80)], [str(i % 4) for i in range(80)]
    tables = {(m, "oof"): make_predictions(names, names, squash(x), labels=list(labels), folds=folds)
              for m, x in (("A", a), ("B", b))}  # fmt: skip
    row = next(row for row in compare_models(tables, {}) if row["metric"] == "auc_across_folds")
    of_fold = lambda x, k: roc_auc_score(labels[k::4], x[k::4])
    expected = corrected_resampled_t(np.array([of_fold(a, k) - of_fold(b, k) for k in range(4)]), 60, 20)
    assert row["p_value"] == pytest.approx(expected.p_value)
    assert row["test"] == "corrected resampled t, 4 folds"
    other = make_predictions(names, names, squash(b), labels=list(labels), folds=folds[::-1])
    rows = compare_models({("A", "oof"): tables["A", "oof"], ("B", "oof"): other}, {})
    assert next(row for row in rows if row["metric"] == "auc_across_folds")["reason"] == "the models were trained on other folds"


def test_models_that_cannot_be_compared_say_why() -> None:
    def table(cases: range, n_classes: int = 2) -> Predictions:
        names, labels = [f"c{i:02d}" for i in cases], [i % n_classes for i in cases]
        return make_predictions(names, names, np.eye(n_classes)[labels] + 0.1, labels=labels, folds=[""] * len(names))

    tables = {("A", "test"): table(range(20)), ("B", "test"): table(range(30, 50)), ("C", "test"): table(range(20), 3)}
    columns = ("model_a", "model_b", "metric", "n", "p_value", "p_adjusted", "reason")
    assert [tuple(row[name] for name in columns) for row in compare_models(tables, {})] == [
        ("A", "B", "auc", 0, None, None, "no case in common"),
        ("A", "C", "auc", 20, None, None, "2 classes against 3"),
        ("B", "C", "auc", 0, None, None, "2 classes against 3"),
    ]
    evaluation = evaluate_tables(tables, {}, {"A": "apparent performance"}, ["0", "1", "2"])
    assert _compared(evaluation)[0] == "A - B (test, n = 0): AUC difference undefined: no case in common; apparent performance (A)"


def test_the_console_says_why_a_difference_has_no_interval() -> None:
    names, labels = [f"c{i}" for i in range(12)], [0, 1] * 6
    table = make_predictions(names, names, np.random.default_rng(0).random((12, 2)), labels=labels, folds=[""] * 12)
    evaluation = evaluate_tables({("A", "test"): table, ("B", "test"): table}, {}, {}, ["0", "1"])
    assert _compared(evaluation) == [
        "A - B (test, n = 12): AUC difference 0.000 (no interval: the two rank the cases alike: no variance), p = 1, Holm 1"
    ]


def test_tango_limits_equal_the_published_example() -> None:
    """Tango 1998, table III: 50 pairs, 1 against 0, 12 against 1: -0.027 to 0.106 is checked through its definition."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = tango_limits(12, 2, 44)
    assert low < 10 / 44 < high
    assert [low, high] == pytest.approx([-tango_limits(2, 12, 44)[1], -tango_limits(2, 12, 44)[0]], abs=1e-8)
    assert tango_limits(0, 0, 30)[1] == pytest.approx(proportion_confint(0, 30, method="wilson")[1], abs=0.02)
    assert tango_limits(30, 0, 30)[1] == 1


def test_holm_and_bonferroni_equal_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(9) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(bonferroni(p), multipletests(p, method="bonferroni")[1])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.04]), [0.02, math.nan, 0.04])
    assert holm([]) == []


def test_paired_bootstrap_agrees_with_delong() -> None:
    labels, a, b = cohort(200)
    delong = compare_aucs(labels, a, b)
    found = paired_bootstrap(auc_statistic(labels, a), auc_statistic(labels, b), labels)
    assert found.difference == pytest.approx(delong.difference)
    assert [found.ci_low, found.ci_high] == pytest.approx([delong.ci_low, delong.ci_high], abs=0.02)


def test_resamples_that_are_nearly_all_alike_give_no_interval() -> None:
    labels = np.repeat([0, 1], 100)
    one = np.where(np.arange(200) == 0, 1.0, 0.0)  # model a sees one case otherwise, and then only if nothing else moves
    rare = lambda weights: (weights @ one >= 6).astype(float)
    nothing = lambda weights: np.zeros(len(weights))
    found = paired_bootstrap(rare, nothing, labels, n_resamples=5000)
    assert np.isnan([found.ci_low, found.ci_high]).all()
    assert (found.difference, found.p_value, found.reason) == (0, 1, "no width: alike in nearly every resample")


def test_corrected_t_without_test_cases_is_the_plain_one() -> None:
    from scipy.stats import ttest_1samp

    values = np.array([0.02, 0.05, -0.01, 0.04])
    assert corrected_resampled_t(values, 100, 0).p_value == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert corrected_resampled_t(values, 75, 25).p_value > ttest_1samp(values, 0).pvalue
    assert corrected_resampled_t(values[:1], 75, 25).reason


def test_detectable_difference_has_the_power_it_names() -> None:
    labels, a, b = cohort(100)
    difference = detectable_auc_difference(labels, a, b)
    found = compare_aucs(labels, a, b)
    error = (found.ci_high - found.ci_low) / 2 / 1.959964
    assert difference == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    assert np.isnan(detectable_auc_difference(labels, a, a**3))  # ranked alike: no number of cases is enough or too few


def test_reclassification_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    old, new = np.full(7, 0.5), np.array([0.6, 0.7, 0.4, 0.4, 0.4, 0.6, 0.5])
    found = net_reclassification(labels, old, new)
    assert found["nri_positive"].estimate.value == pytest.approx(1 / 3)
    assert found["nri_negative"].estimate.value == pytest.approx(1 / 4)
    assert found["nri"].estimate.value == pytest.approx(1 / 3 + 1 / 4)
    assert net_reclassification(labels, old, new, cuts=[0.65])["nri"].estimate.value == pytest.approx(1 / 3)
    idi = integrated_discrimination(labels, old, new)["idi"].estimate
    assert idi.value == pytest.approx((0.2 / 3) - (-0.1 / 4))
    assert idi.ci_low < idi.value < idi.ci_high
    assert net_reclassification(np.ones(7, dtype=int), old, new)["nri"].estimate.reason


def test_brier_scores_are_compared_by_the_paired_t_of_patients() -> None:
    labels, a, b = cohort(24)
    losses = [squared_errors(labels, 1 / (1 + np.exp(-x))) for x in (a, b)]
    found, expected = compare_means(*losses), ttest_1samp(losses[0] - losses[1], 0)
    interval = expected.confidence_interval()
    assert (found.p_value, found.statistic) == pytest.approx((expected.pvalue, expected.statistic))
    assert (found.ci_low, found.difference, found.ci_high) == pytest.approx((interval.low, np.subtract(*losses).mean(), interval.high))
    assert found.test == "paired t with 23 df"
    twice = compare_means(*(np.tile(loss, 2) for loss in losses), np.tile(np.arange(24), 2))
    assert (twice.p_value, twice.ci_low) == pytest.approx((found.p_value, found.ci_low))
    assert twice.test == "paired t, clustered by patient with 23 df"
    assert compare_means(losses[0], losses[0]).p_value == 1.0
    assert compare_means(np.full(5, 0.5), np.full(5, 0.3)).reason == "the two differ alike in every case: no variance"
    assert compare_means(*losses, np.zeros(24)).reason == "fewer than two patients"
    assert compare_means(np.array([0.9, 0.1]), np.array([0.0, 0.2])).ci_high == 1.0


def probability_tables(labels: np.ndarray, *powers: np.ndarray, patients: np.ndarray | None = None) -> dict:
    """Return tables A, B, ... of test cases whose log-probabilities are (n, n_classes)."""
    names = [f"c{i:03d}" for i in range(len(labels))]
    owners = names if patients is None else [f"p{i}" for i in patients]
    return {(m, "test"): make_predictions(names, owners, np.exp(x), labels=list(labels), folds=[""] * len(labels))
            for m, x in zip("AB", powers, strict=False)}  # fmt: skip


@pytest.mark.parametrize(("n_classes", "per_class"), [(2, 3), (2, 5), (3, 2)])
def test_brier_scores_of_equal_models_seldom_differ_in_a_few_cases(n_classes: int, per_class: int) -> None:
    """The bootstrap called 21 to 28 % of them different in six cases."""
    labels, rejected = np.repeat(np.arange(n_classes), per_class), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        common = np.eye(n_classes)[labels] + 0.7 * rng.normal(size=(len(labels), n_classes))
        tables = probability_tables(labels, *(common + 0.7 * rng.normal(size=common.shape) for _ in "ab"))
        rejected += next(row for row in compare_models(tables, {}) if row["metric"] == "brier")["p_value"] < 0.05
    assert rejected <= 7  # 99 % of samples at a rate of 5 %


@pytest.mark.parametrize(("sizes", "per_patient", "said"), [
    ((3, 20, 20), 1, ""),
    ((2, 20, 20), 1, "too few to test: 3 patients are needed, there are 2 of class 0"),
    ((20, 4, 20), 2, "too few to test: 3 patients are needed, there are 2 of class 1"),
])  # fmt: skip
def test_mean_aucs_are_not_tested_on_a_class_of_few_patients(sizes: tuple[int, ...], per_patient: int, said: str) -> None:
    labels, rng = np.repeat(np.arange(3), sizes), np.random.default_rng(0)
    powers = [np.eye(3)[labels] + rng.normal(size=(len(labels), 3)) for _ in "ab"]
    owners = np.arange(len(labels)) // per_patient
    found = {row["metric"]: row for row in compare_models(probability_tables(labels, *powers, patients=owners), {})}
    assert found["auc"]["reason"] == said
    assert found["auc"]["difference"] is not None
    assert {found["auc"][key] is None for key in ("ci_low", "ci_high", "p_value", "p_adjusted")} == {bool(said)}
    assert found["brier"]["p_value"] is not None


def test_few_positives_that_all_move_one_way_do_not_prove_that_they_do() -> None:
    """Their variance about their mean is 0; a test that took it would find anything."""
    labels, old = np.repeat([1, 0], [3, 40]), np.full(43, 0.5)
    new = old + np.concatenate([np.full(3, 0.1), np.tile([0.1, -0.1], 20)])
    found = net_reclassification(labels, old, new)
    assert found["nri"].estimate.value == 1.0
    assert found["nri"].p_value == pytest.approx(2 * norm.sf(1 / np.sqrt(1 / 3 + 1 / 40)))
    assert found["nri_positive"].estimate.ci_low < 0.2
    assert found["nri_positive"].estimate.ci_high == 1.0
    few = net_reclassification(labels[2:], old[2:], new[2:])
    assert few["nri_positive"].estimate.reason == few["nri"].estimate.reason == "fewer than two patients of a class"
    assert np.isnan(few["nri"].p_value)
    assert np.isfinite(few["nri_negative"].p_value)
    still = net_reclassification(labels, old, old)["nri"]
    assert still.estimate.reason == "no case moved, so there is nothing to test"
    assert still.estimate.ci_low < 0 < still.estimate.ci_high


def test_nri_counts_patients_not_cases() -> None:
    labels, a, b = cohort(60)
    owners = np.arange(60)
    alone = net_reclassification(labels, b, a, patients=owners)["nri"]
    assert alone.p_value == pytest.approx(net_reclassification(labels, b, a)["nri"].p_value)
    twice = net_reclassification(*(np.tile(x, 2) for x in (labels, b, a)), patients=np.tile(owners, 2))["nri"]
    assert twice.estimate.value == pytest.approx(alone.estimate.value)
    assert twice.p_value == pytest.approx(alone.p_value)
    width = lambda found: found.estimate.ci_high - found.estimate.ci_low
    assert width(twice) == pytest.approx(width(alone), rel=0.1)


def test_reclassification_is_tested_as_welch_would() -> None:
    from scipy.stats import ttest_ind

    labels, a, b = cohort(60)
    found = integrated_discrimination(labels, b, a)["idi"]
    change = a - b
    expected = ttest_ind(change[labels == 1], change[labels == 0], equal_var=False)
    interval = expected.confidence_interval()
    assert found.df == pytest.approx(expected.df)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.estimate.value == pytest.approx(change[labels == 1].mean() - change[labels == 0].mean())
    assert [found.estimate.ci_low, found.estimate.ci_high] == pytest.approx([interval.low, interval.high])


def test_permutation_p_equals_mann_whitney_and_keeps_patients_whole() -> None:
    from scipy.stats import mannwhitneyu

    labels, a, _ = cohort(30, seed=5)
    a = a - 0.8 * labels
    expected = mannwhitneyu(a[labels == 1], a[labels == 0], alternative="greater", method="exact").pvalue
    assert auc_permutation_p(labels, a) == pytest.approx(expected, abs=0.02)
    twice = np.repeat(np.arange(30), 2)
    assert auc_permutation_p(labels[twice], a[twice], twice) == pytest.approx(expected, abs=0.02)
    assert math.isnan(auc_permutation_p(np.ones(4, dtype=int), np.arange(4.0)))


@pytest.mark.parametrize("owners", [np.arange(400), np.repeat(np.arange(200), 2), np.r_[np.repeat(np.arange(100), 2), 100:300]])
def test_permutation_p_of_many_cases_is_the_normal_limit_of_that_of_few(owners: np.ndarray) -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 400)[owners]
    scores = rng.integers(0, 20, 400) + 3 * rng.normal(size=400)[owners] + 0.6 * labels
    p = auc_permutation_p(labels, scores, owners)
    assert auc_permutation_p_of_many(labels, scores, owners) == pytest.approx(p, abs=0.015)


def test_size_advice_is_the_inverse_of_the_width() -> None:
    n = cases_for_half_width(0.85, 0.4, 0.05)
    assert half_width(0.85, n, 0.4) <= 0.05 < half_width(0.85, n - 1, 0.4)
    assert hanley_mcneil_error(0.8, 1, 1) == pytest.approx(0.4)
    assert "an interval of about ±0.12 is expected; ±0.05 needs about 271" in size_advice(0.85, 19, 29)
    assert size_advice(math.nan, 0, 5) == ""
    for found, planned in ((0.3, "0.50 (found: 0.30)"), (0.5, "0.50"), (0.99, "0.99"), (1.0, "0.99 (found: 1.00)")):
        assert f" and an AUC of {planned} an interval of" in size_advice(found, 19, 29)


def test_size_advice_counts_patients_where_they_have_several_cases() -> None:
    cases = size_advice(0.85, 19, 29)
    assert size_advice(0.85, 19, 29, patients=48) == cases.replace("cases", "patients")
    both = size_advice(0.85, 20, 20, patients=25)
    assert both.startswith("With 25 patients (20 with a positive case, 20 with a negative one) and an AUC of 0.85")
    needed = cases_for_half_width(0.85, 0.5, 0.05)
    assert f"needs about {math.ceil(needed * 25 / 40)} patients." in both


def test_subgroups_say_their_size_and_whether_they_differ() -> None:
    rng = np.random.default_rng(0)
    labels, levels = rng.integers(0, 2, 400), np.repeat(["a", "b", "c", ""], [180, 180, 20, 20])
    labels[levels == "c"] = 0
    scores = rng.normal(size=400) + 2.5 * labels * (levels == "a")
    found = subgroup_aucs(labels, scores, levels, np.arange(400))
    assert [group.level for group in found.groups] == ["a", "b", "c", MISSING]
    assert [group.n for group in found.groups] == [180, 180, 20, 20]
    assert found.groups[2].auc.reason == "one class only"
    assert found.interaction_p < 1e-6
    assert math.isnan(equality_p(np.array([0.7]), np.array([0.01])))
    assert sorted(["10", "", "b", "2", "a"], key=level_order) == ["2", "10", "a", "b", ""]
    assert set(numeric_levels(np.array([1.0, 2.0, np.nan, 4.0]))) == {"< 2", ">= 2", ""}


def test_equality_of_subgroups_equals_statsmodels() -> None:
    from statsmodels.stats.oneway import anova_generic

    means, variances, n = np.array([0.7, 0.8, 0.95]), np.array([0.5, 0.2, 0.1]), np.array([9, 14, 30])
    expected = anova_generic(means, variances, n, use_var="unequal", welch_correction=True)
    assert equality_p(means, variances / n, n - 1) == pytest.approx(expected.pvalue)
    assert equality_p(means, variances / n, np.full(3, 1e9)) == pytest.approx(equality_p(means, variances / n))


def test_a_subgroup_in_perfect_order_takes_part_in_the_test() -> None:
    labels, levels = np.tile([0, 1], 40), np.repeat(["a", "b"], 40)
    scores = np.where(levels == "a", labels, np.random.default_rng(0).random(80))
    found = subgroup_aucs(labels, scores, levels, np.arange(80))
    assert found.groups[0].auc.value == 1
    assert found.interaction_p < 0.01


def test_rates_of_two_models_are_compared_among_the_cases_they_are_rates_of() -> None:
    labels, a, b = cohort(80)
    names, half = [f"c{i:02d}" for i in range(80)], Threshold(value=0.5, rule="given", chosen_on="nothing", n=0)
    probs = {m: 1 / (1 + np.exp(-x)) for m, x in (("A", a), ("B", b))}
    tables = {(m, "test"): make_predictions(names, names, np.column_stack([1 - p, p]), labels=list(labels), folds=[""] * 80)
              for m, p in probs.items()}  # fmt: skip
    rows = {row["metric"]: row for row in compare_models(tables, {"A": half, "B": half})}
    for metric, among in (("sensitivity", labels == 1), ("specificity", labels == 0)):
        right = [((probs[m] >= 0.5) == (labels == 1))[among] for m in ("A", "B")]
        expected = mcnemar_exact(*right)
        assert rows[metric]["n"] == among.sum()
        assert rows[metric]["difference"] == pytest.approx(right[0].mean() - right[1].mean())
        assert rows[metric]["p_value"] == pytest.approx(expected.p_value)
    for metric, score in (("f1", f1_score), ("balanced_accuracy", balanced_accuracy_score), ("mcc", matthews_corrcoef)):
        both = [score(labels, probs[m] >= 0.5) for m in ("A", "B")]
        assert rows[metric]["difference"] == pytest.approx(both[0] - both[1])
        assert rows[metric]["ci_low"] <= rows[metric]["difference"] <= rows[metric]["ci_high"]
        assert 0 < rows[metric]["p_value"] <= 1
    assert rows["nri"]["difference"] == pytest.approx(rows["nri_positive"]["difference"] + rows["nri_negative"]["difference"])


def test_metrics_resampled_together_are_as_if_alone() -> None:
    labels, a, b = cohort(60)
    makers = {"auc": auc_statistic, "pr": pr_auc_statistic}
    pairs = {name: (make(labels, a), make(labels, b)) for name, make in makers.items()}
    together = paired_bootstraps(pairs, labels, n_resamples=300, rng=np.random.default_rng(4))
    for name, (one, other) in pairs.items():
        assert together[name] == paired_bootstrap(one, other, labels, n_resamples=300, rng=np.random.default_rng(4))


def test_levels_of_a_covariate_seldom_differ_by_chance_in_three_classes() -> None:
    """With one case of a class in each level the bootstrap called 20 % of equal levels different."""
    rejected = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(4), (8, 8, 7, 2))
        levels = np.concatenate([rng.permutation(np.arange(n) % 2) for n in (8, 8, 7, 2)]).astype(str).astype(object)
        power = np.exp(rng.normal(size=(25, 4)))
        found = subgroup_aucs(labels, power / power.sum(axis=1, keepdims=True), levels, np.arange(25))
        rejected += found.interaction_p < 0.05
    assert rejected <= 7  # 99 % of samples at a rate of 5 %
