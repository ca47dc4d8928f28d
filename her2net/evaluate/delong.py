"""DeLong's variance of areas under the ROC curve, and of their differences.

The structural components come from one sort per model, so a million cases take a fraction of a second, not a day.
Several models share one call, which is what paired tests need.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from her2net.evaluate.estimate import has_both_classes, is_clustered, number_owners


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components in O(n log n), ties counted half.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (n_models, n), higher means class 1.

    Returns:
        (n_models, n_positive): share of negatives below each positive; and
        (n_models, n_negative): share of positives above each negative.

    Source:
        Sun & Xu 2014, doi:10.1109/LSP.2014.2337313 (ranks instead of all pairs).
    """
    positive = np.asarray(labels) == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    v10, v01 = np.empty((len(scores), n_pos)), np.empty((len(scores), n_neg))
    for model, row in enumerate(scores):
        order = np.argsort(row)
        negatives_below = np.concatenate([[0], np.cumsum(~positive[order])])
        first = np.flatnonzero(np.concatenate([[True], np.diff(row[order]) != 0]))
        end = np.append(first[1:], len(row))
        tie_size = end - first
        below = np.repeat((negatives_below[first] + negatives_below[end]) / 2, tie_size)
        through = np.repeat((first + end) / 2, tie_size)
        share = np.empty(len(row))
        share[order] = below
        v10[model] = share[positive] / n_neg
        share[order] = through - below
        v01[model] = 1 - share[~positive] / n_pos
    return v10, v01


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve, P(positive > negative) + P(equal) / 2; NaN with one class only.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,), higher means class 1.

    Source:
        Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747 (equality with the Mann-Whitney statistic).
    """
    if not has_both_classes(labels):
        return float("nan")
    return float(placements(labels, np.asarray(scores)[None])[0].mean())


def auc_covariance(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUCs (n_models,) and their covariance (n_models, n_models); NaN with one case of a class.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (n_models, n), higher means class 1.
        patients: (n,) owner of each case; where one owns several, the variance allows for their likeness.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595; clustered: Obuchowski 1997, doi:10.2307/2533958.
    """
    aucs, positives, negatives, cross, _ = _variance_parts(labels, scores, patients)
    return aucs, positives + negatives + cross


def auc_contrast(
    labels: np.ndarray, scores: np.ndarray, contrast: np.ndarray, patients: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return a weighted sum of AUCs, its variance and the degrees of freedom of that variance.

    The variance is a sum of one part from the positives and one from the negatives, like that of Welch's t: with few
    cases of a class it is known poorly, and the degrees of freedom are few.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (n_models, n), higher means class 1.
        contrast: (n_models,) weights, such as (1, -1) for a difference.
        patients: (n,) owner of each case.

    Source:
        Satterthwaite 1946, doi:10.2307/3002019; for areas under the curve: Brunner et al. 2002,
        doi:10.1016/S0167-9473(01)00060-0 and Konietschke & Brunner 2009, doi:10.1016/j.csda.2008.08.002.
    """
    aucs, positives, negatives, cross, (n_pos, n_neg) = _variance_parts(labels, scores, patients)
    one, two, both = (float(contrast @ part @ contrast) for part in (positives, negatives, positives + negatives + cross))
    spread = one**2 / max(n_pos - 1, 1) + two**2 / max(n_neg - 1, 1)
    return float(contrast @ aucs), both, (one + two) ** 2 / spread if spread > 0 else float("nan")


def mean_auc_contrast(
    labels: np.ndarray, probs: np.ndarray, contrast: np.ndarray, patients: np.ndarray | None = None, *, pairs: bool = False
) -> tuple[float, float, float]:
    """Return what `auc_contrast` does of mean AUCs over classes: value, variance and the degrees of freedom of that.

    What a case moves each AUC by is summed over the AUCs that it takes part in; the variance is a sum of one part from each class.

    Args:
        labels: (n,) class, every one present.
        probs: (n_models, n, n_classes).
        contrast: (n_models,) weights.
        patients: (n,) owner of each case.
        pairs: mean over ordered pairs of classes, instead of over classes against all others.

    Source:
        DeLong et al. 1988, doi:10.2307/2531595, of a sum of AUCs that share cases; t: as in `auc_contrast`.
    """
    labels, classes = np.asarray(labels), range(probs.shape[2])
    sides = list(permutations(classes, 2)) if pairs else [(c, None) for c in classes]
    value, moved = 0.0, np.zeros(len(labels))
    for one, other in sides:
        positive = labels == one
        negative = ~positive if other is None else labels == other
        rows = positive | negative
        for side, parts in zip((positive, negative), placements(positive[rows], probs[:, rows, one]), strict=True):
            means = parts.mean(axis=1)
            moved[side] += contrast @ (parts - means[:, None]) / (side.sum() * len(sides))
        value += float(contrast @ means) / len(sides)
    return value, *variance_of_moves(labels, moved, patients)


def variance_of_moves(labels: np.ndarray, moved: np.ndarray, patients: np.ndarray | None) -> tuple[float, float]:
    """Return the variance of a figure, and the degrees of freedom of that, from what each case (n,) moves it by.

    Args:
        labels: (n,) class; the variance is a sum of one part from each.
        patients: (n,) owner of each case.
    """
    owners = number_owners(patients, len(labels))
    n_owners, sums, variances, spread = int(owners.max()) + 1, [], [], 0.0
    for c in np.unique(labels):
        own, n_own = labels == c, len(np.unique(owners[labels == c]))
        sums.append(np.bincount(owners[own], moved[own] - moved[own].mean(), n_owners))
        variances.append(float((sums[-1] ** 2).sum()) * _unbiased(n_own))
        spread += variances[-1] ** 2 / max(n_own - 1, 1)
    between = sum(float(one @ other) for one, other in permutations(sums, 2))  # patients with cases of several classes
    total = sum(variances)
    return total + between * (_unbiased(n_owners) if between else 0.0), total**2 / spread if spread > 0 else float("nan")


def _variance_parts(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | float, tuple[int, int]]:
    """Return the AUCs, the parts of their covariance (positives, negatives, between), and the owners of each class."""
    v10, v01 = placements(labels, scores)
    aucs = v10.mean(axis=1)
    d10, d01 = v10 - aucs[:, None], v01 - aucs[:, None]
    n_pos, n_neg = d10.shape[1], d01.shape[1]
    cross: np.ndarray | float = 0.0
    if is_clustered(patients):
        _, owner = np.unique(np.asarray(patients), return_inverse=True)
        positive, n_owners = np.asarray(labels) == 1, int(owner.max()) + 1
        with_pos, with_neg = len(np.unique(owner[positive])), len(np.unique(owner[~positive]))
        d10 = np.stack([np.bincount(owner[positive], row, n_owners) for row in d10])
        d01 = np.stack([np.bincount(owner[~positive], row, n_owners) for row in d01])
        cross = (d10 @ d01.T + d01 @ d10.T) * _unbiased(n_owners) / (n_pos * n_neg)
    else:
        with_pos, with_neg = n_pos, n_neg
    positives, negatives = d10 @ d10.T * _unbiased(with_pos) / n_pos**2, d01 @ d01.T * _unbiased(with_neg) / n_neg**2
    return aucs, positives, negatives, cross, (with_pos, with_neg)


def _unbiased(n: int) -> float:
    return n / (n - 1) if n > 1 else float("nan")
