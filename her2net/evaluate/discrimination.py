"""Discrimination of two classes: area under the ROC curve and its intervals, partial and precision-recall areas."""

from __future__ import annotations

from typing import Literal

import numpy as np

from her2net.evaluate.bootstrap import (
    N_RESAMPLES,
    SAME,
    BootstrapMethod,
    bootstrap_interval,
    group_cases,
    interval_from_values,
)
from her2net.evaluate.delong import auc, auc_contrast, placements
from her2net.evaluate.estimate import (
    NAN,
    Estimate,
    has_both_classes,
    is_clustered,
    t_quantile,
    undefined,
    wald,
    z_quantile,
)
from her2net.evaluate.proportions import clopper_pearson
from her2net.evaluate.weighted import auc_statistic, partial_auc_statistic, pr_auc_statistic

AucMethod = Literal[
    "delong", "delong-logit", "delong-logit-t", "newcombe", "bootstrap", "bootstrap-percentile", "binomial-exact"
]  # fmt: skip
DEFAULT_AUC_METHOD: AucMethod = "delong-logit-t"
"""Chosen by the coverage simulation of benchmarks/coverage.py; see docs/explanation/intervals.md."""
ONE_CLASS = "one class only"


def auc_interval(
    labels: np.ndarray, scores: np.ndarray, *, method: AucMethod = DEFAULT_AUC_METHOD,
    patients: np.ndarray | None = None, alpha: float = 0.05, rng: np.random.Generator | None = None,
) -> Estimate:  # fmt: skip
    """Return the AUC with an interval.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,), higher means class 1.
        method: `delong` (symmetric, as R's pROC prints, cut at 0 and 1), `delong-logit` (the same on the logit
            scale), `delong-logit-t` (that with Student's t for the normal), `newcombe` (score interval), `bootstrap`
            (BCa over patients), `bootstrap-percentile`, or `binomial-exact` (Clopper-Pearson of AUC × n in all n cases;
            no theory behind it, but some papers print it).
        patients: (n,) owner of each case; where one owns several, the DeLong intervals use Obuchowski's variance.
        alpha: 1 - confidence.
        rng: needed by the bootstrap; seeded with 0 by default.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595; logit: Pepe 2003, ISBN 9780198565826, section 5.2.4;
        t: as in `auc_contrast`; Newcombe 2006, doi:10.1002/sim.2324; Obuchowski 1997, doi:10.2307/2533958.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if not has_both_classes(labels):
        return undefined(ONE_CLASS)
    if method in ("bootstrap", "bootstrap-percentile"):
        return _bootstrapped(labels, scores, patients, "bca" if method == "bootstrap" else "percentile", alpha, rng)
    if method in ("newcombe", "binomial-exact"):
        value = auc(labels, scores)
        if method == "newcombe":
            return newcombe_interval(value, *effective_counts(labels, patients), alpha=alpha)
        low, high = clopper_pearson(value * len(labels), len(labels), alpha=alpha)
        return Estimate(value, float(low), float(high), "binomial exact")
    value, variance, df = auc_contrast(labels, scores[None], np.ones(1), patients)
    clustered = ", clustered by patient" if is_clustered(patients) else ""
    if method == "delong" and abs(variance) < SAME**2:
        return Estimate(value, NAN, NAN, "DeLong" + clustered, "all cases count alike: no variance")
    if method == "delong":
        return wald(value, float(np.sqrt(max(variance, 0.0))), "DeLong" + clustered, alpha=alpha, low=0.0, high=1.0)
    if not variance > 0 or value in (0.0, 1.0):
        return newcombe_interval(value, *effective_counts(labels, patients), alpha=alpha)
    if method == "delong-logit":
        return logit_interval(value, variance, "DeLong, logit" + clustered, z_quantile(alpha))
    return logit_interval(value, variance, "DeLong, logit, t" + clustered, t_quantile(df, alpha))


def _bootstrapped(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None, kind: BootstrapMethod, alpha: float,
    rng: np.random.Generator | None,
) -> Estimate:  # fmt: skip
    groups, means, counts = group_cases(labels, scores, patients)
    statistic = auc_statistic(groups, means)
    if counts is not None or is_clustered(patients):
        return bootstrap_interval(statistic, groups, patients, method=kind, alpha=alpha, rng=rng, counts=counts,
                                  value=auc(labels, scores))
    draws, value = bootstrap_aucs(labels, scores, rng=rng), auc(labels, scores)
    v10, v01 = (part[0] for part in placements(labels, scores[None]))
    n_pos, n_neg = len(v10), len(v01)
    with np.errstate(invalid="ignore", divide="ignore"):  # a class of one case cannot lose it
        left_out = np.concatenate([(n_pos * value - v10) / (n_pos - 1), (n_neg * value - v01) / (n_neg - 1)])
    left_out = left_out[np.isfinite(left_out)]
    return interval_from_values(value, draws, statistic, labels, patients, method=kind, alpha=alpha, left_out=left_out)


def bootstrap_aucs(
    labels: np.ndarray, scores: np.ndarray, *, n_resamples: int = N_RESAMPLES, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return the AUC (n_resamples,) of stratified resamples of cases, each in O(n) without sorting again.

    Negatives are drawn as ranks; the running count of those drawn, read off at each drawn positive, is its placement.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (n,).
    """
    rng = np.random.default_rng(0) if rng is None else rng
    pos, neg = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    below, through = np.searchsorted(neg, pos, "left"), np.searchsorted(neg, pos, "right")
    tied, values = bool((through > below).any()), np.empty(n_resamples)
    running = np.zeros(len(neg) + 1, dtype=np.int64)
    for i in range(n_resamples):
        drawn = np.bincount(rng.integers(0, len(neg), len(neg), dtype=np.int32), minlength=len(neg))
        np.cumsum(drawn, out=running[1:])
        taken = np.bincount(rng.integers(0, len(pos), len(pos), dtype=np.int32), minlength=len(pos))
        wins = 2 * int(taken @ running[below]) if not tied else int(taken @ (running[below] + running[through]))
        values[i] = wins / (2 * len(pos) * len(neg))
    return values


def logit_interval(value: float, variance: float, method: str, quantile: float) -> Estimate:
    """Return a value in (0, 1) with the interval that is symmetric on the logit scale."""
    centre, half = np.log(value / (1 - value)), quantile * np.sqrt(variance) / (value * (1 - value))
    with np.errstate(over="ignore"):
        low, high = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    return Estimate(value, float(low), float(high), method)


def effective_counts(labels: np.ndarray, patients: np.ndarray | None) -> tuple[int, int]:
    """Return the positives and negatives, counted as patients where one owns several cases: the careful choice."""
    if patients is None:
        return int((labels == 1).sum()), int((labels == 0).sum())
    owners = np.asarray(patients)
    return len(np.unique(owners[labels == 1])), len(np.unique(owners[labels == 0]))


def newcombe_interval(value: float, n_pos: int, n_neg: int, *, alpha: float = 0.05) -> Estimate:
    """Return the score interval of an AUC: the values from which the observed one is not surprising.

    Unlike DeLong's it has a width at an AUC of 0 or 1 and with a single case of a class.

    Source:
        Newcombe 2006, doi:10.1002/sim.2324 (method 5).
    """
    from scipy.optimize import brentq

    spread, z_squared = (n_pos + n_neg) / 2 - 1, z_quantile(alpha) ** 2

    def surprise(theta: float) -> float:
        inflation = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - value) ** 2 - z_squared * theta * (1 - theta) * inflation / (n_pos * n_neg)

    inner = min(max(value, 1e-9), 1 - 1e-9)  # 0 and 1 are roots themselves, but not the ones meant
    low = 0.0 if value <= 0 else float(brentq(surprise, 0.0, inner, xtol=1e-12))
    high = 1.0 if value >= 1 else float(brentq(surprise, inner, 1.0, xtol=1e-12))
    return Estimate(value, low, high, "Newcombe score")


def pr_auc_interval(
    labels: np.ndarray, scores: np.ndarray, *, method: Literal["logit", "bootstrap", "bootstrap-percentile"] = "logit",
    patients: np.ndarray | None = None, alpha: float = 0.05, rng: np.random.Generator | None = None,
    n_resamples: int = 2000,
) -> Estimate:  # fmt: skip
    """Return the average precision with an interval.

    Args:
        method: `logit` (as if it were a share of the positives; patients count, not cases), or the bootstrap over
            patients, BCa or percentile.

    Source:
        Boyd et al. 2013, doi:10.1007/978-3-642-40994-3_29 (average precision, logit interval).
    """
    labels = np.asarray(labels)
    if not has_both_classes(labels):
        return undefined(ONE_CLASS)
    value = float(pr_auc_statistic(labels, np.asarray(scores))(np.ones((1, len(labels))))[0])
    if method != "logit":
        groups, means, counts = group_cases(labels, np.asarray(scores), patients)
        return bootstrap_interval(
            pr_auc_statistic(groups, means), groups, patients, method="bca" if method == "bootstrap" else "percentile",
            n_resamples=n_resamples, alpha=alpha, rng=rng, counts=counts, value=value,
        )  # fmt: skip
    n_pos, _ = effective_counts(labels, patients)
    inside = min(max(value, 0.25 / n_pos), 1 - 0.25 / n_pos)
    limits = logit_interval(inside, inside * (1 - inside) / n_pos, "", z_quantile(alpha))
    return Estimate(value, min(limits.ci_low, value), max(limits.ci_high, value), "logit")


def partial_auc_interval(
    labels: np.ndarray, scores: np.ndarray, *, focus: Literal["sensitivity", "specificity"], at_least: float = 0.9,
    method: BootstrapMethod | None = None, patients: np.ndarray | None = None, alpha: float = 0.05,
    rng: np.random.Generator | None = None, n_resamples: int = 2000,
) -> Estimate:  # fmt: skip
    """Return the partial AUC where sensitivity or specificity is at least a bound, standardised to 0.5 .. 1.

    Args:
        method: of the bootstrap; by default the one with the better coverage, `logit` for sensitivity and `bca` for
            specificity.

    Source:
        McClish 1989, doi:10.1177/0272989X8900900307; sensitivity: Jiang et al. 1996,
        doi:10.1148/radiology.201.3.8939225.
    """
    if not has_both_classes(labels):
        return undefined(ONE_CLASS)
    value = float(partial_auc_statistic(labels, scores, focus=focus, at_least=at_least)(np.ones((1, len(labels))))[0])
    groups, means, counts = group_cases(labels, scores, patients)
    return bootstrap_interval(
        partial_auc_statistic(groups, means, focus=focus, at_least=at_least), groups, patients, counts=counts,
        method=method or ("logit" if focus == "sensitivity" else "bca"), n_resamples=n_resamples, alpha=alpha, rng=rng,
        bounds=partial_auc_bounds(at_least), value=value,
    )  # fmt: skip


def partial_auc_bounds(at_least: float) -> tuple[float, float]:
    """Return the standardised partial AUC of the worst and of the best model."""
    width = 1 - at_least
    return (1 - (width / 2) / (1 - width / 2)) / 2, 1.0


def roc_points(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ROC curve: false positive rate, true positive rate and threshold, from (0, 0) to (1, 1).

    Returns:
        Three arrays (n_distinct + 1,); the first threshold is infinite (no case is called positive).
    """
    values, group = np.unique(scores, return_inverse=True)
    positives = np.bincount(group, np.asarray(labels) == 1, len(values))[::-1]
    negatives = np.bincount(group, np.asarray(labels) == 0, len(values))[::-1]
    tpr = np.concatenate([[0.0], positives.cumsum() / max(positives.sum(), 1)])
    fpr = np.concatenate([[0.0], negatives.cumsum() / max(negatives.sum(), 1)])
    return fpr, tpr, np.concatenate([[np.inf], values[::-1]])
