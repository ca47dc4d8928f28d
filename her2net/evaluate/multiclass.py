"""More than two classes: one-vs-rest, macro and Hand-Till areas, and weighted kappa for ordered classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_interval
from her2net.evaluate.discrimination import DEFAULT_AUC_METHOD, AucMethod, auc_interval
from her2net.evaluate.estimate import NAN, Estimate, is_clustered, undefined, wald
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


def macro_auc_statistic(labels: np.ndarray, probs: np.ndarray) -> Statistic:
    """Return the mean one-vs-rest AUC as a function of weights."""
    return _mean_of(_one_vs_rest_statistics(np.asarray(labels), probs))


def absent_classes(labels: np.ndarray, n_classes: int) -> str:
    """Say which classes no case has; "" if none."""
    absent = [str(c) for c in range(n_classes) if not (np.asarray(labels) == c).any()]
    return f"class {', '.join(absent)} is absent" if absent else ""


def _mean_area(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None,
    make: Callable[[np.ndarray, np.ndarray], list[Statistic]], rng: np.random.Generator | None, n_resamples: int,
) -> Estimate:  # fmt: skip
    labels = np.asarray(labels)
    reason = absent_classes(labels, probs.shape[1])
    if reason:
        return undefined(reason)
    mean = _mean_of(make(labels, probs))
    return bootstrap_interval(mean, labels, patients, method="percentile", rng=rng, n_resamples=n_resamples)


def _mean_of(statistics: list[Statistic]) -> Statistic:
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


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
    alpha: float = 0.05, patients: np.ndarray | None = None, rng: np.random.Generator | None = None,
) -> Estimate:  # fmt: skip
    """Return Cohen's weighted kappa of ordered classes, with its large-sample interval.

    Args:
        labels: (n,) class.
        decided: (n,) class decided for.
        patients: (n,) owner of each case; where one owns several, the interval is that of the patient bootstrap.

    Source:
        Cohen 1968, doi:10.1037/h0026256; Fleiss et al. 1969, doi:10.1037/h0028106.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    method = f"Fleiss-Cohen-Everitt, {weights} weights"
    labels, decided = np.asarray(labels), np.asarray(decided)
    table = np.bincount(labels * n_classes + decided, minlength=n_classes**2).reshape(n_classes, n_classes)
    if np.count_nonzero(table.sum(axis=0) + table.sum(axis=1)) < 2:
        return undefined("one class only", method)
    if is_clustered(patients):
        statistic = _kappa_statistic(labels, decided, n_classes, weights)
        found = bootstrap_interval(statistic, labels, patients, method="percentile", alpha=alpha, rng=rng)
        return replace(found, ci_method=f"{found.ci_method}, {weights} weights")
    with np.errstate(invalid="ignore", divide="ignore"):  # of a test of kappa = 0, which is not used
        kappa = cohens_kappa(table, wt=weights)
    if not kappa.std_kappa > 0:
        return Estimate(float(kappa.kappa), NAN, NAN, method, "no variance: all cases are decided alike, or all rightly")
    return wald(float(kappa.kappa), float(kappa.std_kappa), method, alpha=alpha, low=-1.0, high=1.0)


def _kappa_statistic(labels: np.ndarray, decided: np.ndarray, n_classes: int, kind: str) -> Statistic:
    power = 2 if kind == "quadratic" else 1
    disagreement = np.abs(np.subtract.outer(np.arange(n_classes), np.arange(n_classes))) ** float(power)
    of_label, of_decision, seen = np.eye(n_classes)[labels], np.eye(n_classes)[decided], disagreement[labels, decided]

    def statistic(weights: np.ndarray) -> np.ndarray:
        expected = np.einsum("bi,ij,bj->b", weights @ of_label, disagreement, weights @ of_decision)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (weights @ seen) * weights.sum(axis=1) / expected

    return statistic
