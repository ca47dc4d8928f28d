"""More than two classes: one-vs-rest, macro and Hand-Till areas, and weighted kappa for ordered classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_interval
from her2net.evaluate.discrimination import DEFAULT_AUC_METHOD, AucMethod, auc_interval
from her2net.evaluate.estimate import Estimate, undefined, wald
from her2net.evaluate.weighted import Statistic, auc_statistic


def one_vs_rest(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *,
    method: AucMethod = DEFAULT_AUC_METHOD,
) -> list[Estimate]:  # fmt: skip
    """Return the AUC of each class against all others.

    Args:
        labels: (n,) class.
        probs: (n, n_classes).
    """
    return [
        auc_interval((labels == c).astype(int), probs[:, c], patients=patients, method=method)
        for c in range(probs.shape[1])
    ]


def macro_auc(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *,
    rng: np.random.Generator | None = None, n_resamples: int = 2000,
) -> Estimate:  # fmt: skip
    """Return the mean one-vs-rest AUC with a patient-bootstrap interval; undefined if a class is absent.

    Source:
        Provost & Domingos 2000, CeDER working paper IS-00-04 (unweighted form).
    """
    return _mean_area(labels, probs, patients, _one_vs_rest_statistics, rng, n_resamples)


def hand_till(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *,
    rng: np.random.Generator | None = None, n_resamples: int = 2000,
) -> Estimate:  # fmt: skip
    """Return Hand & Till's M, the mean over pairs of classes, with a patient-bootstrap interval.

    Source:
        Hand & Till 2001, doi:10.1023/A:1010920819831.
    """
    return _mean_area(labels, probs, patients, _pairwise_statistics, rng, n_resamples)


def _mean_area(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None,
    make: Callable[[np.ndarray, np.ndarray], list[Statistic]], rng: np.random.Generator | None, n_resamples: int,
) -> Estimate:  # fmt: skip
    labels = np.asarray(labels)
    absent = [str(c) for c in range(probs.shape[1]) if not (labels == c).any()]
    if absent:
        return undefined(f"class {', '.join(absent)} is absent")
    statistics = make(labels, probs)
    mean: Statistic = lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)
    return bootstrap_interval(mean, labels, patients, method="percentile", rng=rng, n_resamples=n_resamples)


def _one_vs_rest_statistics(labels: np.ndarray, probs: np.ndarray) -> list[Statistic]:
    return [auc_statistic((labels == c).astype(int), probs[:, c]) for c in range(probs.shape[1])]


def _pairwise_statistics(labels: np.ndarray, probs: np.ndarray) -> list[Statistic]:
    return [
        _among(np.flatnonzero((labels == i) | (labels == j)), labels, probs[:, k], k)
        for i, j in combinations(range(probs.shape[1]), 2)
        for k in (i, j)
    ]


def _among(rows: np.ndarray, labels: np.ndarray, scores: np.ndarray, positive: int) -> Statistic:
    inner = auc_statistic((labels[rows] == positive).astype(int), scores[rows])
    return lambda weights: inner(weights[:, rows])


def weighted_kappa(
    labels: np.ndarray, decided: np.ndarray, n_classes: int, *, weights: Literal["linear", "quadratic"] = "quadratic",
    alpha: float = 0.05,
) -> Estimate:  # fmt: skip
    """Return Cohen's weighted kappa of ordered classes, with its large-sample interval.

    Args:
        labels: (n,) class.
        decided: (n,) class decided for.

    Source:
        Cohen 1968, doi:10.1037/h0026256; Fleiss et al. 1969, doi:10.1037/h0028106.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    method = f"Fleiss-Cohen-Everitt, {weights} weights"
    table = np.bincount(np.asarray(labels) * n_classes + np.asarray(decided), minlength=n_classes**2)
    table = table.reshape(n_classes, n_classes)
    if np.count_nonzero(table.sum(axis=0) + table.sum(axis=1)) < 2:
        return undefined("one class only", method)
    found = cohens_kappa(table, wt=weights)
    return wald(float(found.kappa), float(found.std_kappa), method, alpha=alpha, low=-1.0, high=1.0)
