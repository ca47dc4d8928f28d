"""Discrimination: the area under the ROC curve, its interval, and paired comparison.

The covariance of several AUCs on the same cases is computed from mid-ranks in
O(n log n), so a million cases take a second, not a day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; NaN with a reason where it is undefined."""

    value: float
    ci_low: float
    ci_high: float
    ci_method: str
    reason: str = ""


def undefined(reason: str, ci_method: str = "") -> Estimate:
    """Return an estimate that is not defined, and why."""
    return Estimate(float("nan"), float("nan"), float("nan"), ci_method, reason)


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (n_models, n), higher means class 1.

    Returns:
        (n_models, n_positive): share of negatives below each positive, ties half; and
        (n_models, n_negative): share of positives above each negative.

    Source:
        Sun & Xu 2014, doi:10.1109/LSP.2014.2337313, algorithm 2 (mid-ranks instead of all pairs).
    """
    positive = labels == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    overall = rankdata(scores, axis=1)
    within_pos, within_neg = rankdata(scores[:, positive], axis=1), rankdata(scores[:, ~positive], axis=1)
    v10 = (overall[:, positive] - within_pos) / n_neg
    v01 = 1 - (overall[:, ~positive] - within_neg) / n_pos
    return v10, v01


def auc_covariance(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUCs (n_models,) and their covariance (n_models, n_models).

    Args:
        patients: (n,) owner of each case; where one owns several, the variance allows for their likeness.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595; clustered: Obuchowski 1997, doi:10.2307/2533958.
    """
    v10, v01 = placements(labels, scores)
    aucs = v10.mean(axis=1)
    if patients is None or len(np.unique(patients)) == len(patients):
        cov10 = np.atleast_2d(np.cov(v10)) if v10.shape[1] > 1 else np.full((len(scores),) * 2, np.nan)
        cov01 = np.atleast_2d(np.cov(v01)) if v01.shape[1] > 1 else np.full((len(scores),) * 2, np.nan)
        return aucs, cov10 / v10.shape[1] + cov01 / v01.shape[1]
    _, group = np.unique(patients, return_inverse=True)
    positive, n_groups = labels == 1, int(group.max()) + 1
    d10 = np.stack([np.bincount(group[positive], row, n_groups) for row in v10 - aucs[:, None]])
    d01 = np.stack([np.bincount(group[~positive], row, n_groups) for row in v01 - aucs[:, None]])
    total = d10 / v10.shape[1] + d01 / v01.shape[1]
    with_pos = len(np.unique(group[positive]))
    with_neg = len(np.unique(group[~positive]))
    factor = min(with_pos, with_neg)
    return aucs, total @ total.T * factor / max(factor - 1, 1)


def auc_estimate(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> Estimate:
    """Return the AUC with its DeLong interval, on the logit scale where the plain one leaves [0, 1].

    The plain interval is symmetric, and is what R's pROC prints; it is cut at 0 and 1.
    """
    if len(np.unique(labels)) < 2:
        return undefined("one class only")
    aucs, covariance = auc_covariance(labels, scores[None], patients)
    value, variance = float(aucs[0]), float(covariance[0, 0])
    clustered = patients is not None and len(np.unique(patients)) < len(patients)
    method = "DeLong, clustered by patient" if clustered else "DeLong"
    if not np.isfinite(variance):
        return Estimate(value, float("nan"), float("nan"), method, "fewer than two cases of a class")
    half = norm.ppf(0.975) * np.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), method)


@dataclass(frozen=True)
class Comparison:
    """Difference of two models on the same cases."""

    difference: float
    ci_low: float
    ci_high: float
    statistic: float
    p_value: float
    test: str


def compare_aucs(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: np.ndarray | None = None
) -> Comparison:
    """Compare two AUCs on the same cases with DeLong's paired test.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595.
    """
    nan = float("nan")
    clustered = patients is not None and len(np.unique(patients)) < len(patients)
    test = "DeLong paired, clustered by patient" if clustered else "DeLong paired"
    if len(np.unique(labels)) < 2:
        return Comparison(nan, nan, nan, nan, nan, test)
    aucs, cov = auc_covariance(labels, np.stack([scores_a, scores_b]), patients)
    difference = float(aucs[0] - aucs[1])
    error = float(np.sqrt(max(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1], 0.0)))
    if not error > 0:
        return Comparison(difference, nan, nan, nan, 1.0 if difference == 0 else nan, test)
    z = difference / error
    half = norm.ppf(0.975) * error
    return Comparison(difference, difference - half, difference + half, z, float(2 * norm.sf(abs(z))), test)


def macro_auc(labels: np.ndarray, probs: np.ndarray) -> float:
    """Return the mean one-vs-rest AUC over the classes; NaN if a class is absent.

    Args:
        probs: (n, n_classes).
    """
    values = []
    for c in range(probs.shape[1]):
        binary = (labels == c).astype(int)
        values.append(auc_estimate(binary, probs[:, c]).value)
    return float(np.mean(values))
