"""Out-of-fold predictions come from several models: the AUC within their folds, and whether the pooled one is another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from her2net.evaluate.delong import placements, variance_of_moves
from her2net.evaluate.discrimination import effective_counts, logit_interval, newcombe_interval
from her2net.evaluate.estimate import (
    NAN,
    Estimate,
    is_clustered,
    number_owners,
    t_quantile,
    two_sided_p,
    undefined,
)

N_SHUFFLES, N_SHUFFLES_OF_MANY = 999, 49


def within_folds_auc(
    labels: np.ndarray, scores: np.ndarray, folds: Sequence[str], patients: np.ndarray | None = None, *, alpha: float = 0.05
) -> Estimate:
    """Return the AUC over the pairs of a positive and a negative case of the same fold: the mean over folds, weighted by their pairs.

    A pair of two folds is ranked by two models. Where these are calibrated differently, as after leaving out sites that differ,
    the pooled AUC ranks models as well as cases.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,), higher means class 1.
        folds: (n,) fold of each case.
        patients: (n,) owner of each case.

    Source:
        Forman & Scholz 2010, doi:10.1145/1882471.1882479 (pooled and averaged AUC of cross-validation); interval: as in `auc_contrast`.
    """
    labels, place = np.asarray(labels), np.unique(folds, return_inverse=True)[1]
    wins, pairs = np.zeros(len(labels)), np.zeros(len(labels))
    for fold in range(int(place.max()) + 1):
        own = place == fold
        wins[own], pairs[own] = _wins(labels[own], np.asarray(scores, dtype=np.float64)[own])
    n_pairs = float(pairs[labels == 1].sum())
    if not n_pairs:
        return undefined("no fold holds cases of both classes")
    value = float(wins[labels == 1].sum()) / n_pairs
    variance, df = variance_of_moves(labels, (wins - value * pairs) / n_pairs, patients)
    if not variance > 0 or not 0 < value < 1:
        paired = pairs > 0
        counts = effective_counts(labels[paired], None if patients is None else patients[paired])
        return newcombe_interval(value, *counts, alpha=alpha)
    clustered = ", clustered by patient" if is_clustered(patients) else ""
    return logit_interval(value, variance, f"DeLong, logit, t{clustered}", t_quantile(df, alpha))


def _wins(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each case (n,) how many pairs with a case of the other class are ranked rightly, and how many there are."""
    positive = labels == 1
    if positive.all() or not positive.any():
        return np.zeros(len(labels)), np.zeros(len(labels))
    pairs = np.where(positive, (~positive).sum(), positive.sum()).astype(np.float64)
    share = np.empty(len(labels))
    v10, v01 = placements(labels, scores[None])
    share[positive], share[~positive] = v10[0], v01[0]
    return share * pairs, pairs


def folds_p(
    labels: np.ndarray, scores: np.ndarray, folds: Sequence[str], patients: np.ndarray | None, rng: np.random.Generator,
    *, many: bool = False,
) -> float:  # fmt: skip
    """Return the two-sided p of a within-folds AUC as far from the pooled one as this, if folds made no difference to the scores.

    Folds are shuffled between patients with as many cases of each class, which leaves the pooled AUC and the pairs of every fold as
    they are. NaN where no fold holds cases of both classes, or nothing can be shuffled.

    Args:
        many: cases, for which fewer shuffles give the spread of a normal distribution.

    Source:
        Fisher 1935, The Design of Experiments, section 21 (permutation).
    """
    labels, place = np.asarray(labels), np.unique(folds, return_inverse=True)[1]
    n_folds, group = int(place.max()) + 1, np.unique(scores, return_inverse=True)[1]
    counts = np.bincount(2 * place + labels, minlength=2 * n_folds).reshape(n_folds, 2)
    if not counts.prod(axis=1).any():
        return NAN
    owners = number_owners(patients, len(labels)) * n_folds + place
    _, first, owner = np.unique(owners, return_index=True, return_inverse=True)
    make_up = np.bincount(2 * owner + labels, minlength=2 * len(first)).reshape(-1, 2)
    alike = np.unique(make_up, axis=0, return_inverse=True)[1].ravel()
    of_owner = place[first]
    seen = _right_pairs(labels, group, place, n_folds)
    drawn = np.empty(N_SHUFFLES_OF_MANY if many else N_SHUFFLES)
    members = [np.flatnonzero(alike == kind) for kind in range(int(alike.max()) + 1)]
    for i in range(len(drawn)):
        for own in members:
            of_owner[own] = rng.permutation(of_owner[own])
        drawn[i] = _right_pairs(labels, group, of_owner[owner], n_folds)
    if many:
        return two_sided_p((seen - drawn.mean()) / drawn.std(ddof=1)) if drawn.std() > 0 else NAN
    tail = min(int((drawn <= seen).sum()), int((drawn >= seen).sum()))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def _right_pairs(labels: np.ndarray, group: np.ndarray, place: np.ndarray, n_folds: int) -> float:
    """Count the pairs of one fold in which the positive case has the higher score, ties half.

    Args:
        group: (n,) rank of the score of each case, the same where scores are.
        place: (n,) fold of each case, as a number.
    """
    size, cell, positive = (int(group.max()) + 1) * n_folds, group * n_folds + place, labels == 1
    pos, neg = (np.bincount(cell[side], minlength=size).reshape(-1, n_folds) for side in (positive, ~positive))
    return float((pos * (neg.cumsum(axis=0) - neg / 2)).sum())
