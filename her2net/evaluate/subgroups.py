"""Who it works for: the AUC in each level of a covariate, and whether the levels differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from her2net.evaluate.discrimination import auc_covariance, auc_interval
from her2net.evaluate.estimate import NAN, Estimate, has_both_classes, undefined

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
        labels: (n,) 0 or 1.
        scores: (n,).
        levels: (n,) level of each case, "" where unknown (shown, not tested).
        patients: (n,) owner of each case; one whose cases are in several levels makes the test a little careful.

    Source:
        Cochran's Q of independent AUCs: DeLong et al. 1988, doi:10.2307/2531595 (L = contrasts between groups).
    """
    groups, aucs, variances = [], [], []
    for level in sorted(set(levels.tolist()), key=lambda text: (text == "", text)):
        rows = levels == level
        own, owners = labels[rows], patients[rows]
        if not has_both_classes(own):
            estimate = undefined("one class only")
        else:
            estimate = auc_interval(own, scores[rows], patients=owners)
            value, covariance = auc_covariance(own, scores[rows][None], owners)
            if level and covariance[0, 0] > 0:
                aucs.append(float(value[0]))
                variances.append(float(covariance[0, 0]))
        groups.append(Subgroup(level or MISSING, int(rows.sum()), int((own == 1).sum()), estimate))
    return Subgroups(tuple(groups), equality_p(np.array(aucs), np.array(variances)))


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


def numeric_levels(values: np.ndarray) -> np.ndarray:
    """Split a continuous covariate (n,) at its median: levels such as "< 4.5" and ">= 4.5", "" for NaN."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(values), "", dtype=object)
    cut = float(np.median(known))
    named = np.where(values < cut, f"< {cut:g}", f">= {cut:g}").astype(object)
    named[~np.isfinite(values)] = ""
    return named
