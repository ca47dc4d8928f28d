"""Who it works for: the AUC in each level of a covariate, and whether the levels differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from her2net.evaluate.discrimination import auc_covariance, auc_interval
from her2net.evaluate.estimate import NAN, Estimate, has_both_classes, is_clustered, undefined, z_quantile
from her2net.evaluate.multiclass import macro_auc

MISSING = "(missing)"


@dataclass(frozen=True)
class Subgroup:
    """The cases of one level."""

    level: str
    n: int
    n_positive: int
    auc: Estimate


@dataclass(frozen=True)
class Subgroups:
    """All levels of a covariate; `interaction_p` is NaN with fewer than two levels that have a variance."""

    groups: tuple[Subgroup, ...]
    interaction_p: float


def subgroup_aucs(labels: np.ndarray, scores: np.ndarray, levels: np.ndarray, patients: np.ndarray) -> Subgroups:
    """Return the AUC of each level with its interval, and a test of their equality.

    Args:
        labels: (n,) class.
        scores: (n,) for two classes, (n, n_classes) for more (their macro AUC is given).
        levels: (n,) level of each case, "" where unknown (shown, not tested).
        patients: (n,) owner of each case; one whose cases are in several levels makes the test a little careful.

    Source:
        Cochran's Q of independent AUCs: DeLong et al. 1988, doi:10.2307/2531595 (L = contrasts between groups).
    """
    groups, aucs, variances = [], [], []
    for level in sorted(set(levels.tolist()), key=level_order):
        rows = levels == level
        own, owners = labels[rows], patients[rows]
        estimate, variance = _auc_and_variance(own, scores[rows], owners)
        if level and variance > 0:
            aucs.append(estimate.value)
            variances.append(variance)
        groups.append(Subgroup(level or MISSING, int(rows.sum()), int((own > 0).sum()), estimate))
    return Subgroups(tuple(groups), equality_p(np.array(aucs), np.array(variances)))


def _auc_and_variance(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> tuple[Estimate, float]:
    """Return the AUC and its variance; that of several classes is read off the interval of the bootstrap."""
    if scores.ndim == 2:
        estimate = macro_auc(labels, scores, patients if is_clustered(patients) else None)
        return estimate, ((estimate.ci_high - estimate.ci_low) / (2 * z_quantile())) ** 2
    if not has_both_classes(labels):
        return undefined("one class only"), NAN
    return auc_interval(labels, scores, patients=patients), float(auc_covariance(labels, scores[None], patients)[1][0, 0])


def equality_p(values: np.ndarray, variances: np.ndarray) -> float:
    """Return the p-value of Cochran's Q of independent estimates (k,) with variances (k,).

    Source:
        Cochran 1954, doi:10.2307/3001666.
    """
    from scipy.special import chdtrc

    if len(values) < 2:
        return NAN
    weights = 1 / variances
    centre = (weights @ values) / weights.sum()
    return float(chdtrc(len(values) - 1, weights @ (values - centre) ** 2))


def numeric_levels(values: np.ndarray, cut: float | None = None) -> np.ndarray:
    """Split a continuous covariate (n,): levels such as "< 4.5" and ">= 4.5", "" for NaN.

    Args:
        cut: where; the median by default.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(values), "", dtype=object)
    cut = float(np.median(known)) if cut is None else cut
    named = np.where(values < cut, f"< {cut:g}", f">= {cut:g}").astype(object)
    named[~np.isfinite(values)] = ""
    return named


def level_order(level: str) -> tuple[bool, bool, float, str]:
    """Key that sorts levels: numbers by size, then words, then the missing."""
    try:
        return level == "", False, float(level), level
    except ValueError:
        return level == "", True, 0.0, level
