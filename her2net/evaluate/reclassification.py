"""Does the second model move patients the right way? Net reclassification and integrated discrimination improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from her2net.evaluate.estimate import NAN, Estimate, has_both_classes, t_quantile, undefined


@dataclass(frozen=True)
class Reclassified:
    """A mean move with its interval, its standard error, and the degrees of freedom of that (NaN where there are none).

    With few cases of a class the variance is known poorly: the normal distribution would then reject up to 20 % at 0.05.
    """

    estimate: Estimate
    error: float
    df: float

    @property
    def p_value(self) -> float:
        """Two-sided, of no move; NaN where there is no standard error."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.df, -abs(self.estimate.value / self.error))) if self.error > 0 else NAN


def net_reclassification(
    labels: np.ndarray, probs_old: np.ndarray, probs_new: np.ndarray, *, cuts: Sequence[float] | None = None,
    patients: np.ndarray | None = None, alpha: float = 0.05,
) -> dict[str, Reclassified]:  # fmt: skip
    """Return the NRI of positives, of negatives and their sum.

    Args:
        labels: (n,) 0 or 1.
        probs_old: (n,) probability of class 1 by the old model.
        probs_new: (n,) the same by the new one.
        cuts: limits of risk categories; `None` for the category-free form, in which any move counts.
        patients: (n,) owner of each case; the variance is summed by patient.

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929; category-free: Pencina et al. 2011, doi:10.1002/sim.4085; t:
        Satterthwaite 1946, doi:10.2307/3002019.
    """
    if cuts is None:
        move = np.sign(np.asarray(probs_new) - np.asarray(probs_old))
    else:
        edges = np.asarray(sorted(cuts))
        move = np.sign(np.searchsorted(edges, probs_new, "right") - np.searchsorted(edges, probs_old, "right"))
    return _by_class("nri", labels, move.astype(np.float64), patients, alpha, limit=1.0)


def integrated_discrimination(
    labels: np.ndarray, probs_old: np.ndarray, probs_new: np.ndarray, *, patients: np.ndarray | None = None,
    alpha: float = 0.05,
) -> dict[str, Reclassified]:  # fmt: skip
    """Return the IDI of positives, of negatives and their sum (change of the discrimination slope).

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929.
    """
    change = np.asarray(probs_new, dtype=np.float64) - np.asarray(probs_old, dtype=np.float64)
    return _by_class("idi", labels, change, patients, alpha, limit=1.0)


def _by_class(
    name: str, labels: np.ndarray, change: np.ndarray, patients: np.ndarray | None, alpha: float, *, limit: float
) -> dict[str, Reclassified]:
    """Return mean change among positives, minus that among negatives, and their sum."""
    keys = (f"{name}_positive", f"{name}_negative", name)
    if not has_both_classes(labels):
        return {key: Reclassified(undefined("one class only", "t"), NAN, NAN) for key in keys}
    positive = np.asarray(labels) == 1
    owners = np.arange(len(positive)) if patients is None else np.unique(patients, return_inverse=True)[1]
    n_owners = int(owners.max()) + 1
    parts, deviations, variances, spread = [], [], [], 0.0
    for rows, sign in ((positive, 1.0), (~positive, -1.0)):
        mean = float(change[rows].mean())
        deviation = sign * np.bincount(owners[rows], change[rows] - mean, n_owners) / rows.sum()
        deviations.append(deviation)
        present = len(np.unique(owners[rows]))
        variance = float((deviation**2).sum()) * present / (present - 1) if present > 1 else NAN
        variances.append(variance)
        spread += variance**2 / max(present - 1, 1)
        parts.append(_interval(sign * mean, variance, present - 1.0, alpha, limit))
    both = 2 * float(deviations[0] @ deviations[1]) * n_owners / max(n_owners - 1, 1)  # patients with cases of either class
    one, two = variances
    whole = _interval(parts[0].estimate.value + parts[1].estimate.value, one + two + both,
                      (one + two) ** 2 / spread if spread > 0 else NAN, alpha, 2 * limit)  # fmt: skip
    return dict(zip(keys, (*parts, whole), strict=True))


def _interval(value: float, variance: float, df: float, alpha: float, limit: float) -> Reclassified:
    if not (math.isfinite(variance) and math.isfinite(df) and variance > 0):
        reason = "fewer than two patients of a class, or no variance"
        return Reclassified(Estimate(value, NAN, NAN, "t", reason), NAN, NAN)
    error = math.sqrt(variance)
    half = t_quantile(df, alpha) * error
    found = Estimate(value, max(-limit, value - half), min(limit, value + half), f"t with {df:.1f} df")
    return Reclassified(found, error, df)
