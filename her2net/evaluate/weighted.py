"""Metrics as functions of case weights, so that one sort serves every bootstrap resample.

Each factory sorts once and returns a statistic: weights (n_resamples, n) → values (n_resamples,).
A weight is how often a case stands in the resample; NaN where the resample leaves the metric undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


def _by_tie(
    labels: np.ndarray, scores: np.ndarray, *, descending: bool
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function: weights (b, n) → weight of the positives and of the negatives per distinct score (b, ties)."""
    keys = -np.asarray(scores, dtype=np.float64) if descending else np.asarray(scores, dtype=np.float64)
    order = np.argsort(keys, kind="stable")
    positive = np.asarray(labels)[order] == 1
    first = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
    has_ties = len(first) < len(keys)

    def split(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ordered = weights[:, order]
        of_positives = ordered * positive
        of_negatives = ordered - of_positives
        if not has_ties:
            return of_positives, of_negatives
        return np.add.reduceat(of_positives, first, axis=1), np.add.reduceat(of_negatives, first, axis=1)

    return split


def auc_statistic(labels: np.ndarray, scores: np.ndarray) -> Statistic:
    """Return the AUC as a function of weights."""
    split = _by_tie(labels, scores, descending=False)

    def statistic(weights: np.ndarray) -> np.ndarray:
        pos, neg = split(weights)
        below = np.cumsum(neg, axis=1)
        total_neg = below[:, -1]
        below = below - neg / 2
        with np.errstate(invalid="ignore"):
            return np.einsum("bt,bt->b", pos, below) / (pos.sum(axis=1) * total_neg)

    return statistic


def pr_auc_statistic(labels: np.ndarray, scores: np.ndarray) -> Statistic:
    """Return the average precision as a function of weights."""
    split = _by_tie(labels, scores, descending=True)

    def statistic(weights: np.ndarray) -> np.ndarray:
        pos, neg = split(weights)
        hits = np.cumsum(pos, axis=1)
        called = hits + np.cumsum(neg, axis=1)
        with np.errstate(invalid="ignore"):
            precision = np.where(called > 0, hits / called, 0.0)
            return (pos * precision).sum(axis=1) / hits[:, -1]

    return statistic


def partial_auc_statistic(
    labels: np.ndarray, scores: np.ndarray, *, focus: Literal["sensitivity", "specificity"], at_least: float
) -> Statistic:
    """Return the standardised partial AUC as a function of weights.

    High sensitivity is high specificity of the mirrored problem: classes exchanged, scores negated.
    """
    if focus == "sensitivity":
        labels, scores = 1 - np.asarray(labels), -np.asarray(scores, dtype=np.float64)
    split, width = _by_tie(labels, scores, descending=True), 1 - at_least

    def statistic(weights: np.ndarray) -> np.ndarray:
        pos, neg = split(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = (np.cumsum(part, axis=1) / part.sum(axis=1, keepdims=True) for part in (pos, neg))
            start = np.zeros((len(weights), 1))
            x0, y0 = np.hstack([start, fpr[:, :-1]]), np.hstack([start, tpr[:, :-1]])
            step = np.minimum(fpr, width) - np.minimum(x0, width)
            slope = np.where(fpr > x0, (tpr - y0) / (fpr - x0), 0.0)
            area = (step * (y0 + slope * step / 2)).sum(axis=1)
        least, most = width**2 / 2, width
        return (1 + (area - least) / (most - least)) / 2

    return statistic


def mean_statistic(values: np.ndarray) -> Statistic:
    """Return the weighted mean of one value per case (the Brier score is one)."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return weights @ values / weights.sum(axis=1)

    return statistic


def confusion_statistic(
    labels: np.ndarray, called: np.ndarray,
    formula: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Statistic:  # fmt: skip
    """Return a formula of (tp, fn, tn, fp) as a function of weights."""
    positive, called = np.asarray(labels) == 1, np.asarray(called, dtype=bool)
    cells = np.stack([positive & called, positive & ~called, ~positive & ~called, ~positive & called]).astype(float)

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return formula(*(weights @ cells.T).T)

    return statistic
