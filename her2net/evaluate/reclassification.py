"""Does the second model move patients the right way? Net reclassification and integrated discrimination improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from her2net.evaluate.estimate import (
    NAN,
    Estimate,
    has_both_classes,
    mean_by_patient,
    number_owners,
    t_quantile,
    undefined,
    z_quantile,
)

NRI_METHOD = "score test, Agresti-Min interval"


@dataclass(frozen=True)
class Reclassified:
    """A mean move with its interval, and what it is tested with.

    Attributes:
        error: standard error if nothing moved one way more than the other (NRI), or of the move (IDI); NaN where there is none.
        df: degrees of freedom of that error, infinite for a normal test.
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

    Where all cases of a small class move the same way, the variance about their mean is 0. So the test takes the variance
    about no move, and the interval counts two more cases in each class: half a case up, half a case down, one unmoved.

    Args:
        labels: (n,) 0 or 1.
        probs_old: (n,) probability of class 1 by the old model.
        probs_new: (n,) the same by the new one.
        cuts: limits of risk categories; `None` for the category-free form, in which any move counts.
        patients: (n,) owner of each case; the variance is summed by patient.

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929; category-free: Pencina et al. 2011, doi:10.1002/sim.4085; interval:
        Agresti & Min 2005, doi:10.1002/sim.1781.
    """
    if cuts is None:
        move = np.sign(np.asarray(probs_new) - np.asarray(probs_old))
    else:
        edges = np.asarray(sorted(cuts))
        move = np.sign(np.searchsorted(edges, probs_new, "right") - np.searchsorted(edges, probs_old, "right"))
    keys = ("nri_positive", "nri_negative", "nri")
    if not has_both_classes(labels):
        return dict.fromkeys(keys, Reclassified(undefined("one class only", NRI_METHOD), NAN, NAN))
    owners = number_owners(patients, len(move))
    one, two = (_moves(sign * move, np.asarray(labels) == c, owners) for c, sign in ((1, 1.0), (0, -1.0)))
    return dict(zip(keys, (_net([one], alpha), _net([two], alpha), _net([one, two], alpha)), strict=True))


@dataclass(frozen=True)
class _Moves:
    """Moves of one class, 1 the right way and -1 the wrong way.

    Attributes:
        mean: of its cases.
        by_patient: (n_patients,) their sum over the number of cases.
        centre: mean with the two cases more.
        deviations: (n_patients,) sums of the moves' distances from `centre`, over the number of cases with these two.
        added: what the two cases add to the sum of their squares.
    """

    mean: float
    by_patient: np.ndarray
    centre: float
    deviations: np.ndarray
    added: float
    n_patients: int


def _moves(move: np.ndarray, rows: np.ndarray, owners: np.ndarray) -> _Moves:
    own, n, n_owners = move[rows].astype(np.float64), int(rows.sum()), int(owners.max()) + 1
    centre = float(own.sum()) / (n + 2)
    added = (centre**2 + (1 - centre) ** 2 / 2 + (1 + centre) ** 2 / 2) / (n + 2) ** 2
    sums = lambda values: np.bincount(owners[rows], values, n_owners)
    return _Moves(float(own.mean()), sums(own) / n, centre, sums(own - centre) / (n + 2), added, len(np.unique(owners[rows])))


def _net(classes: list[_Moves], alpha: float) -> Reclassified:
    """Return the sum of the mean moves; what patients with cases of both classes have in common is in it."""
    value, centre = sum(c.mean for c in classes), sum(c.centre for c in classes)
    if min(c.n_patients for c in classes) < 2:
        return Reclassified(Estimate(value, NAN, NAN, NRI_METHOD, "fewer than two patients of a class"), NAN, NAN)
    square = lambda parts: float((np.sum(parts, axis=0) ** 2).sum())
    half = z_quantile(alpha) * math.sqrt(square([c.deviations for c in classes]) + sum(c.added for c in classes))
    limit = float(len(classes))
    low, high = max(-limit, min(value, centre - half)), min(limit, max(value, centre + half))
    error = math.sqrt(square([c.by_patient for c in classes]))
    reason = "" if error > 0 else "no case moved, so there is nothing to test"
    return Reclassified(Estimate(value, low, high, NRI_METHOD, reason), error, math.inf)


def integrated_discrimination(
    labels: np.ndarray, probs_old: np.ndarray, probs_new: np.ndarray, *, patients: np.ndarray | None = None,
    alpha: float = 0.05,
) -> dict[str, Reclassified]:  # fmt: skip
    """Return the IDI of positives, of negatives and their sum (change of the discrimination slope).

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929; t: Satterthwaite 1946, doi:10.2307/3002019.
    """
    change = np.asarray(probs_new, dtype=np.float64) - np.asarray(probs_old, dtype=np.float64)
    keys = ("idi_positive", "idi_negative", "idi")
    if not has_both_classes(labels):
        return dict.fromkeys(keys, Reclassified(undefined("one class only", "t"), NAN, NAN))
    positive = np.asarray(labels) == 1
    owners = number_owners(patients, len(positive))
    n_owners = int(owners.max()) + 1
    parts, deviations, variances, spread = [], [], [], 0.0
    for rows, sign in ((positive, 1.0), (~positive, -1.0)):
        mean = mean_by_patient(sign * change[rows], owners[rows], n_owners)
        deviations.append(mean.deviations)
        variances.append(mean.variance)
        spread += mean.variance**2 / max(mean.n_patients - 1, 1)
        parts.append(_interval(mean.value, mean.variance, mean.n_patients - 1.0, alpha, 1.0))
    both = 2 * float(deviations[0] @ deviations[1]) * n_owners / max(n_owners - 1, 1)  # patients with cases of either class
    one, two = variances
    whole = _interval(parts[0].estimate.value + parts[1].estimate.value, one + two + both,
                      (one + two) ** 2 / spread if spread > 0 else NAN, alpha, 2.0)  # fmt: skip
    return dict(zip(keys, (*parts, whole), strict=True))


def _interval(value: float, variance: float, df: float, alpha: float, limit: float) -> Reclassified:
    if not (math.isfinite(variance) and math.isfinite(df) and variance > 0):
        reason = "fewer than two patients of a class, or no variance"
        return Reclassified(Estimate(value, NAN, NAN, "t", reason), NAN, NAN)
    error = math.sqrt(variance)
    half = t_quantile(df, alpha) * error
    found = Estimate(value, max(-limit, value - half), min(limit, value + half), f"t with {df:.1f} df")
    return Reclassified(found, error, df)
