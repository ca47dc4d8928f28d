"""Who it works for: the AUC in each level of a covariate, and whether the levels differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from her2net.evaluate.delong import auc_contrast, mean_auc_contrast
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.estimate import NAN, Estimate, z_quantile
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
        Welch 1951, doi:10.1093/biomet/38.3-4.330; degrees of freedom as in `auc_contrast`.
    """
    groups, tested = [], []
    for level in sorted(set(levels.tolist()), key=level_order):
        rows = levels == level
        own, owners = labels[rows], patients[rows]
        estimate, variance, df = _auc_and_variance(own, scores[rows], owners)
        if level and variance > 0:
            tested.append((estimate.value, variance, df))
        groups.append(Subgroup(level or MISSING, int(rows.sum()), int((own > 0).sum()), estimate))
    values, variances, dfs = np.array(tested).reshape(-1, 3).T
    return Subgroups(tuple(groups), equality_p(values, variances, dfs))


def _auc_and_variance(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> tuple[Estimate, float, float]:
    """Return the AUC, its variance and the degrees of freedom of that.

    Where DeLong's variance is 0 (all or none in order) or does not exist (one case of a class), the variance is read off
    the interval.
    """
    several = scores.ndim == 2
    estimate = macro_auc(labels, scores, patients) if several else auc_interval(labels, scores, patients=patients)
    if not estimate.defined:
        return estimate, NAN, NAN
    _, variance, df = (mean_auc_contrast if several else auc_contrast)(labels, scores[None], np.ones(1), patients)
    if variance > 0 and math.isfinite(df):
        return estimate, variance, df
    width = (estimate.ci_high - estimate.ci_low) / (2 * z_quantile())
    return estimate, width**2, max(len(np.unique(patients)) - 2, 1)


def equality_p(values: np.ndarray, variances: np.ndarray, dfs: np.ndarray | None = None) -> float:
    """Return the p-value of the hypothesis that independent estimates (k,) with variances (k,) are of one value.

    Args:
        dfs: (k,) degrees of freedom of the variances; without them, they are taken for known (Cochran's Q).

    Source:
        Welch 1951, doi:10.1093/biomet/38.3-4.330; Cochran 1954, doi:10.2307/3001666.
    """
    from scipy.special import chdtrc, fdtrc

    k = len(values)
    if k < 2:
        return NAN
    weights = 1 / variances
    share = weights / weights.sum()
    q = float(weights @ (values - share @ values) ** 2)
    if dfs is None:
        return float(chdtrc(k - 1, q))
    doubt = float(((1 - share) ** 2 / dfs).sum())
    f = q / (k - 1) / (1 + 2 * (k - 2) / (k * k - 1) * doubt)
    return float(fdtrc(k - 1, (k * k - 1) / (3 * doubt), f))


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
