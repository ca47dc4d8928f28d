"""Two models on the same cases: which is better, and what difference could have been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from her2net.evaluate.bootstrap import (
    N_RESAMPLES,
    NO_VARIANCE,
    NO_WIDTH,
    SAME,
    bootstrap_values,
    interval_from_values,
)
from her2net.evaluate.delong import auc_contrast, mean_auc_contrast
from her2net.evaluate.estimate import (
    NAN,
    has_both_classes,
    is_clustered,
    mean_by_patient,
    number_owners,
    t_quantile,
    two_sided_p,
    z_quantile,
)
from her2net.evaluate.weighted import Statistic

FEW_DF = 30
"""Below that many degrees of freedom DeLong's difference is referred to t: the normal then rejects up to 10 % at 0.05."""
DIFFERENCE = np.array([1.0, -1.0])
CONVOLUTION_ERROR = 1e-14


@dataclass(frozen=True)
class Comparison:
    """Difference of two models (a - b) on the same cases; NaN with a reason where undefined."""

    difference: float
    ci_low: float
    ci_high: float
    statistic: float
    p_value: float
    test: str
    reason: str = ""


def compare_aucs(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: np.ndarray | None = None, *,
    alpha: float = 0.05,
) -> Comparison:  # fmt: skip
    """Compare two AUCs, or mean AUCs over classes, on the same cases with DeLong's paired test.

    Where a class has few cases (less than 30 degrees of freedom) Student's t takes the place of the normal.

    Args:
        labels: (n,) class, of which each has a case.
        scores_a: (n,), or (n, n_classes) of three and more classes.
        scores_b: as `scores_a`.
        patients: (n,) owner of each case; where one owns several, Obuchowski's covariance is used.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595; Obuchowski 1997, doi:10.2307/2533958; t: as in `auc_contrast`.
    """
    from scipy.special import stdtr

    test = "DeLong paired, clustered by patient" if is_clustered(patients) else "DeLong paired"
    if scores_a.ndim == 1 and not has_both_classes(labels):
        return Comparison(NAN, NAN, NAN, NAN, NAN, test, "one class only")
    difference, error, df = _difference(labels, scores_a, scores_b, patients)
    if math.isnan(error):
        return Comparison(difference, NAN, NAN, NAN, NAN, test, "fewer than two cases of a class")
    if not error > SAME:
        equal = abs(difference) < SAME
        reason = "the two rank the cases alike: no variance" if equal else "all cases count alike: no variance"
        return Comparison(difference, NAN, NAN, NAN, 1.0 if equal else NAN, test, reason)
    few = df < FEW_DF
    z, half = difference / error, (t_quantile(df, alpha) if few else z_quantile(alpha)) * error
    p = float(2 * stdtr(df, -abs(z))) if few else two_sided_p(z)
    test += f", t with {df:.1f} df" if few else ""
    return Comparison(difference, max(-1.0, difference - half), min(1.0, difference + half), z, p, test)


def _difference(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: np.ndarray | None
) -> tuple[float, float, float]:
    """Return the difference of two AUCs, its standard error and the degrees of freedom of that."""
    scores = np.stack([scores_a, scores_b]).astype(np.float64)
    contrast = mean_auc_contrast if scores.ndim == 3 else auc_contrast
    value, variance, df = contrast(labels, scores, DIFFERENCE, patients)
    return value, math.nan if math.isnan(variance) else math.sqrt(max(variance, 0.0)), df


def detectable_auc_difference(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: np.ndarray | None = None, *,
    power: float = 0.8, alpha: float = 0.05,
) -> float:  # fmt: skip
    """Return the smallest difference of two AUCs that this many cases would show with the given power; NaN without variance.

    Source:
        Obuchowski & McClish 1997, doi:10.1002/(SICI)1097-0258(19970715)16:13<1529::AID-SIM565>3.0.CO;2-H.
    """
    if scores_a.ndim == 1 and not has_both_classes(labels):
        return NAN
    error = _difference(labels, scores_a, scores_b, patients)[1]
    return (z_quantile(alpha) + z_quantile(2 * (1 - power))) * error if error > SAME else NAN


def compare_means(
    losses_a: np.ndarray, losses_b: np.ndarray, patients: np.ndarray | None = None, *, alpha: float = 0.05
) -> Comparison:
    """Compare the mean losses of two models on the same cases, as Brier scores are, with Student's paired t.

    The bootstrap takes the spread of a few cases for that of all, and calls too many equal models different.

    Args:
        losses_a: (n,) loss of each case, in [0, 1].
        losses_b: (n,).
        patients: (n,) owner of each case; the variance is summed by patient.

    Source:
        Student 1908, doi:10.2307/2331554.
    """
    from scipy.special import stdtr

    change, clustered = np.asarray(losses_a, dtype=np.float64) - np.asarray(losses_b, dtype=np.float64), is_clustered(patients)
    test = "paired t, clustered by patient" if clustered else "paired t"
    if not len(change):
        return Comparison(NAN, NAN, NAN, NAN, NAN, test, "no case")
    owners = number_owners(patients, len(change))
    mean = mean_by_patient(change, owners, int(owners.max()) + 1)
    df, error = mean.n_patients - 1, math.sqrt(mean.variance)
    if df < 1:
        return Comparison(mean.value, NAN, NAN, NAN, NAN, test, "fewer than two patients")
    if not error > 1e-12:
        p = 1.0 if abs(mean.value) < 1e-12 else NAN
        return Comparison(mean.value, NAN, NAN, NAN, p, test, "the two differ alike in every case: no variance")
    t, half = mean.value / error, t_quantile(df, alpha) * error
    low, high = max(-1.0, mean.value - half), min(1.0, mean.value + half)
    return Comparison(mean.value, low, high, t, float(2 * stdtr(df, -abs(t))), f"{test} with {df} df")


def mcnemar_exact(right_a: np.ndarray, right_b: np.ndarray, patients: np.ndarray | None = None) -> Comparison:
    """Compare two accuracies on the same cases with McNemar's exact test; the interval is Tango's.

    The test asks how often a balance of right decisions as uneven as the one seen would come about if, for each
    patient, a coin decided which model is which. With one case per patient that is McNemar's; where a patient owns
    several, their decisions change sides together, and the interval is for as many cases as they are worth.

    Args:
        right_a: (n,) bool, whether model a decides the case rightly.
        right_b: (n,) bool.
        patients: (n,) owner of each case.

    Source:
        McNemar 1947, doi:10.1007/BF02295996; interval: Tango 1998,
        doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B; clustered: Obuchowski 1998,
        doi:10.1002/(SICI)1097-0258(19980715)17:13<1495::AID-SIM863>3.0.CO;2-I (variance), Rao & Scott 1992,
        doi:10.2307/2532311 (what the cases are worth).
    """
    right_a, right_b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    n, only_a, only_b = len(right_a), int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    if n == 0:
        return Comparison(NAN, NAN, NAN, NAN, NAN, "McNemar exact", "no case")
    if not is_clustered(patients):
        p = sign_flip_p(np.array([1] * only_a + [-1] * only_b))
        low, high = tango_limits(only_a, only_b, n)
        return Comparison((only_a - only_b) / n, low, high, float(min(only_a, only_b)), p, "McNemar exact")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    gain, n_owners = right_a.astype(float) - right_b, int(owner.max()) + 1
    balance, difference = np.bincount(owner, gain, n_owners), (only_a - only_b) / n
    residual = np.bincount(owner, gain - difference, n_owners)
    simple = float(((gain - difference) ** 2).sum())
    variance = float((residual**2).sum()) * n_owners / max(n_owners - 1, 1)
    effect = max(1.0, variance / simple) if simple > 0 else n / n_owners
    low, high = tango_limits(only_a / effect, only_b / effect, n / effect)
    test = "McNemar exact, clustered by patient"
    return Comparison(difference, low, high, float(balance.sum()), sign_flip_p(balance), test)


def sign_flip_p(balance: np.ndarray) -> float:
    """Return P(|sum| >= the one seen) if each of the whole numbers (k,) had its sign drawn by a coin, exactly.

    Source:
        Fisher 1935, The Design of Experiments, section 21.
    """
    from scipy.signal import convolve
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(np.asarray(balance)).astype(np.int64), return_counts=True)
    chances, total = np.ones(1), 0
    for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
        spread = np.zeros(2 * int(size) * int(count) + 1)
        spread[:: 2 * int(size)] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances, total = convolve(chances, spread), total + int(size) * int(count)
    sums = np.abs(np.arange(-total, total + 1))
    p = float(chances[sums >= abs(round(float(np.sum(balance))))].sum())
    return min(1.0, max(p, CONVOLUTION_ERROR if len(sizes) > 1 else 0.0))


def tango_limits(only_a: float, only_b: float, n: float, *, alpha: float = 0.05) -> tuple[float, float]:
    """Return the score limits of a difference of paired proportions (only_a - only_b) / n; counts may be fractional.

    Source:
        Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.
    """
    from scipy.optimize import brentq

    difference, z = (only_a - only_b) / n, z_quantile(alpha)

    def score(delta: float) -> float:
        b = -only_a - only_b + (2 * n - only_a + only_b) * delta
        c = -only_b * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        return (only_a - only_b - n * delta) / math.sqrt(variance) if variance > 0 else 0.0

    tiny = 1e-10
    low = -1.0 if score(-1 + tiny) < z else float(brentq(lambda d: score(d) - z, -1 + tiny, difference - tiny))
    high = 1.0 if score(1 - tiny) > -z else float(brentq(lambda d: score(d) + z, difference + tiny, 1 - tiny))
    return low, high


def paired_bootstrap(
    statistic_a: Statistic, statistic_b: Statistic, labels: np.ndarray, patients: np.ndarray | None = None, *,
    n_resamples: int = N_RESAMPLES, alpha: float = 0.05, rng: np.random.Generator | None = None,
) -> Comparison:  # fmt: skip
    """Compare any metric of two models on the same resampled patients.

    Args:
        statistic_a: weights (b, n) -> values (b,) of model a, as in `her2net.evaluate.weighted`.
        statistic_b: the same of model b.

    Source:
        Efron & Tibshirani 1993, ISBN 9780412042317, chapter 16.
    """
    pair = {"": (statistic_a, statistic_b)}
    return paired_bootstraps(pair, labels, patients, n_resamples=n_resamples, alpha=alpha, rng=rng)[""]


def paired_bootstraps(
    statistics: Mapping[str, tuple[Statistic, Statistic]], labels: np.ndarray, patients: np.ndarray | None = None, *,
    n_resamples: int = N_RESAMPLES, alpha: float = 0.05, rng: np.random.Generator | None = None,
) -> dict[str, Comparison]:  # fmt: skip
    """Compare several metrics, each as `paired_bootstrap` does, on the same resamples.

    Args:
        statistics: metric -> that of model a and that of model b.
    """
    differences = {name: _minus(a, b) for name, (a, b) in statistics.items()}
    draws = bootstrap_values(differences, labels, patients, n_resamples=n_resamples, rng=rng)
    return {name: _compared(both, draws[name], labels, patients, alpha) for name, both in differences.items()}


def _minus(statistic_a: Statistic, statistic_b: Statistic) -> Statistic:
    return lambda weights: statistic_a(weights) - statistic_b(weights)


def _compared(
    both: Statistic, values: np.ndarray, labels: np.ndarray, patients: np.ndarray | None, alpha: float
) -> Comparison:
    value = float(both(np.ones((1, len(labels))))[0])
    found = interval_from_values(value, values, both, labels, patients, method="percentile", alpha=alpha)
    kept, test = values[np.isfinite(values)], f"paired {found.ci_method}"
    if found.reason:
        p = 1.0 if found.reason in (NO_VARIANCE, NO_WIDTH) and abs(value) < SAME else NAN
        return Comparison(found.value, NAN, NAN, NAN, p, test, found.reason)
    tail = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(kept) + 1))
    return Comparison(value, found.ci_low, found.ci_high, NAN, p, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values; NaN stays NaN and is not counted as a test.

    Source:
        Holm 1979, Scand J Stat 6:65, https://www.jstor.org/stable/4615733.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in adjusted]


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Return Bonferroni-adjusted p-values; NaN stays NaN and is not counted as a test."""
    p = np.asarray(p_values, dtype=np.float64)
    return [float(value) for value in np.minimum(p * np.isfinite(p).sum(), 1.0)]


def corrected_resampled_t(differences: np.ndarray, n_train: float, n_test: float, *, alpha: float = 0.05) -> Comparison:
    """Test fold-wise differences of two models without taking the folds for independent.

    Args:
        differences: (n_folds,) metric of a - metric of b in each fold.
        n_train: patients that train a fold.
        n_test: patients that a fold tests.

    Source:
        Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    from scipy.special import stdtr, stdtrit

    values = np.asarray(differences, dtype=np.float64)
    k = len(values)
    test = f"corrected resampled t, {k} folds"
    if k < 2 or not np.isfinite(values).all():
        return Comparison(NAN, NAN, NAN, NAN, NAN, test, "fewer than two folds with a value")
    mean, error = float(values.mean()), math.sqrt((1 / k + n_test / n_train) * float(values.var(ddof=1)))
    if error == 0:
        return Comparison(mean, NAN, NAN, NAN, 1.0 if mean == 0 else NAN, test, "the folds do not differ")
    t, half = mean / error, float(stdtrit(k - 1, 1 - alpha / 2)) * error
    return Comparison(mean, mean - half, mean + half, t, float(2 * stdtr(k - 1, -abs(t))), test)
