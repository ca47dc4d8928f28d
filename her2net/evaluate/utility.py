"""Utility: decision curves against treating all and none, and what acting on the model would mean per 1,000."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from her2net.evaluate.estimate import is_clustered, z_quantile
from her2net.evaluate.proportions import clustered_proportion, wilson

DEFAULT_GRID = tuple(np.round(np.arange(0.01, 1.0, 0.01), 2))


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold probability, in true positives per case.

    Attributes:
        thresholds: (k,).
        model: (k,) net benefit of acting at or above the threshold.
        model_low: (k,) lower 95 % limit.
        model_high: (k,) upper 95 % limit.
        treat_all: (k,); that of treating none is 0.
        gain: (k,) model minus the better of the two defaults.
    """

    thresholds: np.ndarray
    model: np.ndarray
    model_low: np.ndarray
    model_high: np.ndarray
    treat_all: np.ndarray
    gain: np.ndarray


def decision_curve(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *,
    thresholds: np.ndarray | None = None, alpha: float = 0.05,
) -> DecisionCurve:  # fmt: skip
    """Return the decision curve with pointwise intervals; net benefit is a mean over cases, so they are normal.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) probability of class 1.
        patients: (n,) owner of each case; the variance is summed by patient.
        thresholds: (k,) in (0, 1); 0.01 .. 0.99 by default.

    Source:
        Vickers & Elkin 2006, doi:10.1177/0272989X06295361; intervals: Sande et al. 2020, doi:10.1177/0962280220907100.
    """
    grid = np.asarray(DEFAULT_GRID if thresholds is None else thresholds, dtype=np.float64)
    labels, probs = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    n, odds, half = len(labels), grid / (1 - grid), np.empty(len(grid))
    called, hits = _counts_above(labels, probs, grid)
    model = (hits - odds * (called - hits)) / n
    if is_clustered(patients):
        owner = np.unique(np.asarray(patients), return_inverse=True)[1]
        owners = int(owner.max()) + 1
        for k, (cut, weight) in enumerate(zip(grid, odds, strict=True)):
            residual = np.bincount(owner, (probs >= cut) * np.where(labels == 1, 1.0, -weight) - model[k], owners)
            half[k] = np.sqrt((residual**2).sum() * owners / max(owners - 1, 1)) / n
    else:
        squares = (hits + odds**2 * (called - hits)) / n
        half = np.sqrt(np.maximum(squares - model**2, 0.0) / max(n - 1, 1))
    prevalence, half = float((labels == 1).mean()), z_quantile(alpha) * half
    treat_all = prevalence - (1 - prevalence) * odds
    return DecisionCurve(grid, model, model - half, model + half, treat_all, model - np.maximum(treat_all, 0.0))


def _counts_above(labels: np.ndarray, probs: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many cases, and how many positive ones, are at or above each threshold (k,)."""
    everyone, positive = np.sort(probs), np.sort(probs[labels == 1])
    called = len(everyone) - np.searchsorted(everyone, grid, side="left")
    return called, len(positive) - np.searchsorted(positive, grid, side="left")


@dataclass(frozen=True)
class ClinicalImpact:
    """Out of 1,000 patients like these: called positive, and truly positive among them, with 95 % limits (2, k)."""

    thresholds: np.ndarray
    called: np.ndarray
    called_limits: np.ndarray
    true_positive: np.ndarray
    true_positive_limits: np.ndarray


def clinical_impact(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *,
    thresholds: np.ndarray | None = None, alpha: float = 0.05,
) -> ClinicalImpact:  # fmt: skip
    """Return how many of 1,000 would be called positive at each threshold, and how many of those rightly.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) probability of class 1.
        patients: (n,) owner of each case; where one owns several, the intervals allow for it.
        thresholds: (k,) in (0, 1); 0.01 .. 0.99 by default.

    Source:
        Kerr et al. 2016, doi:10.1200/JCO.2015.65.5654.
    """
    grid = np.asarray(DEFAULT_GRID if thresholds is None else thresholds, dtype=np.float64)
    labels, probs = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    n, (called, hits) = len(labels), _counts_above(labels, probs, grid)
    if is_clustered(patients):
        found = [[clustered_proportion((probs >= cut) & among, patients) for cut in grid]
                 for among in (np.ones(n, dtype=bool), labels == 1)]  # fmt: skip
        limits = [1000 * np.array([[e.ci_low for e in row], [e.ci_high for e in row]]) for row in found]
    else:
        limits = [1000 * np.stack(wilson(count, n, alpha=alpha)) for count in (called, hits)]
    return ClinicalImpact(grid, 1000 * called / n, limits[0], 1000 * hits / n, limits[1])
