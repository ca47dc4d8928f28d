"""More than two classes: one-vs-rest, macro and Hand-Till areas, and weighted kappa for ordered classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_interval
from her2net.evaluate.delong import mean_auc_contrast
from her2net.evaluate.discrimination import (
    DEFAULT_AUC_METHOD,
    AucMethod,
    auc_interval,
    logit_interval,
    newcombe_interval,
)
from her2net.evaluate.estimate import NAN, Estimate, is_clustered, number_owners, t_quantile, undefined, wald
from her2net.evaluate.weighted import Statistic


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


def macro_auc(labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None) -> Estimate:
    """Return the mean one-vs-rest AUC with its interval; undefined if a class is absent.

    Source:
        Provost & Domingos 2000, CeDER working paper IS-00-04 (unweighted form); interval: as in `mean_auc_contrast`.
    """
    return _mean_area(labels, probs, patients, pairs=False)


def hand_till(labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None) -> Estimate:
    """Return Hand & Till's M, the mean over pairs of classes, with its interval.

    Source:
        Hand & Till 2001, doi:10.1023/A:1010920819831; interval: as in `mean_auc_contrast`.
    """
    return _mean_area(labels, probs, patients, pairs=True)


def absent_classes(labels: np.ndarray, n_classes: int) -> str:
    """Say which classes no case has; "" if none. Numbers; see `name_classes`."""
    absent = [str(c) for c in range(n_classes) if not (np.asarray(labels) == c).any()]
    return f"no case of class {', '.join(absent)}" if absent else ""


def name_classes(reason: str, class_names: Sequence[str]) -> str:
    """Return a reason that ends with the numbers of classes with their names instead: a class may be named after another number."""
    stem, of_class, numbers = reason.rpartition("of class ")
    return f"{stem}{of_class}{', '.join(class_names[int(n)] for n in numbers.split(', '))}" if of_class else reason


def patients_of_classes(labels: np.ndarray, patients: np.ndarray | None, n_classes: int) -> list[int]:
    """Return how many patients have a case of each class."""
    owners = number_owners(patients, len(labels))
    return [len(np.unique(owners[labels == c])) for c in range(n_classes)]


def _mean_area(labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None, *, pairs: bool) -> Estimate:
    """Where there is no variance (all in order, or one patient of a class) the score interval of the smallest class steps in."""
    labels = np.asarray(labels)
    reason = absent_classes(labels, probs.shape[1])
    if reason:
        return undefined(reason)
    value, variance, df = mean_auc_contrast(labels, probs[None], np.ones(1), patients, pairs=pairs)
    if not variance > 0 or not 0 < value < 1:
        counts = patients_of_classes(labels, patients, probs.shape[1])
        return newcombe_interval(min(value, 1.0), min(counts), sum(counts) - min(counts))
    clustered = ", clustered by patient" if is_clustered(patients) else ""
    return logit_interval(value, variance, f"DeLong, logit, t{clustered}", t_quantile(df))


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
