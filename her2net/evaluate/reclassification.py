"""Does the second model move patients the right way? Net reclassification and integrated discrimination improvement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from her2net.evaluate.estimate import Estimate, has_both_classes, undefined, wald


def net_reclassification(
    labels: np.ndarray, probs_old: np.ndarray, probs_new: np.ndarray, *, cuts: Sequence[float] | None = None,
    patients: np.ndarray | None = None, alpha: float = 0.05,
) -> dict[str, Estimate]:  # fmt: skip
    """Return the NRI of positives, of negatives and their sum.

    Args:
        labels: (n,) 0 or 1.
        probs_old: (n,) probability of class 1 by the old model.
        probs_new: (n,) the same by the new one.
        cuts: limits of risk categories; `None` for the category-free form, in which any move counts.
        patients: (n,) owner of each case; the variance is summed by patient.

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929; category-free: Pencina et al. 2011, doi:10.1002/sim.4085.
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
) -> dict[str, Estimate]:  # fmt: skip
    """Return the IDI of positives, of negatives and their sum (change of the discrimination slope).

    Source:
        Pencina et al. 2008, doi:10.1002/sim.2929.
    """
    change = np.asarray(probs_new, dtype=np.float64) - np.asarray(probs_old, dtype=np.float64)
    return _by_class("idi", labels, change, patients, alpha, limit=1.0)


def _by_class(
    name: str, labels: np.ndarray, change: np.ndarray, patients: np.ndarray | None, alpha: float, *, limit: float
) -> dict[str, Estimate]:
    """Return mean change among positives, minus that among negatives, and their sum, with normal intervals."""
    keys = (f"{name}_positive", f"{name}_negative", name)
    if not has_both_classes(labels):
        return {key: undefined("one class only", "normal") for key in keys}
    positive = np.asarray(labels) == 1
    owners = np.arange(len(positive)) if patients is None else np.unique(patients, return_inverse=True)[1]
    n_owners = int(owners.max()) + 1
    parts, totals = [], np.zeros(n_owners)
    for rows, sign in ((positive, 1.0), (~positive, -1.0)):
        mean = float(change[rows].mean())
        deviation = sign * np.bincount(owners[rows], change[rows] - mean, n_owners) / rows.sum()
        totals += deviation
        present = len(np.unique(owners[rows]))
        error = float(np.sqrt((deviation**2).sum() * present / (present - 1))) if present > 1 else float("nan")
        parts.append(wald(sign * mean, error, "normal", alpha=alpha, low=-limit, high=limit))
    error = float(np.sqrt((totals**2).sum() * n_owners / (n_owners - 1)))
    whole = wald(parts[0].value + parts[1].value, error, "normal", alpha=alpha, low=-2 * limit, high=2 * limit)
    return dict(zip(keys, (*parts, whole), strict=True))
