"""How sure an AUC is: its permutation p-value, and how many cases a narrower interval would need."""

from __future__ import annotations

import math

import numpy as np

from her2net.evaluate.estimate import NAN, has_both_classes, is_clustered, z_quantile

PERMUTATION_BLOCK = 4_000_000


def hanley_mcneil_error(auc: float, n_pos: float, n_neg: float) -> float:
    """Return the standard error of an AUC that a study of this size would have.

    Source:
        Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    excess = (n_pos - 1) * (q1 - auc * auc) + (n_neg - 1) * (q2 - auc * auc)
    return math.sqrt(max(auc * (1 - auc) + excess, 0.0) / (n_pos * n_neg))


def half_width(auc: float, n: float, prevalence: float, *, alpha: float = 0.05) -> float:
    """Return half the width of the AUC interval expected in n cases."""
    n_pos = n * prevalence
    return z_quantile(alpha) * hanley_mcneil_error(auc, max(n_pos, 1.0), max(n - n_pos, 1.0))


def cases_for_half_width(auc: float, prevalence: float, target: float, *, alpha: float = 0.05) -> int:
    """Return the fewest cases whose AUC interval is expected to be at most ± target."""
    low, high = 2, 4
    while half_width(auc, high, prevalence, alpha=alpha) > target and high < 1 << 40:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if half_width(auc, middle, prevalence, alpha=alpha) > target else (low, middle)
    return high


def size_advice(auc: float, n_pos: int, n_neg: int, *, target: float = 0.05, patients: int = 0) -> str:
    """Say how wide the interval is expected to be by design, and how many cases a narrower one needs.

    Args:
        patients: where some have several cases, how many there are; `n_pos` and `n_neg` then count those with a case of the
            class, and one with cases of both counts in each.
    """
    if not math.isfinite(auc) or n_pos == 0 or n_neg == 0:
        return ""
    n, planned = patients or n_pos + n_neg, min(max(auc, 0.5), 0.99)
    width, needed = half_width(planned, n_pos + n_neg, n_pos / (n_pos + n_neg)), needed_for(planned, n_pos, n_neg, target, patients)
    found, unit = f"{planned:.2f}" + ("" if auc == planned else f" (found: {auc:.2f})"), "patients" if patients else "cases"
    overlap = patients and n_pos + n_neg > patients
    of_class = f"{n_pos} with a positive case, {n_neg} with a negative one" if overlap else f"{n_pos} positive"
    text = f"With {n} {unit} ({of_class}) and an AUC of {found} an interval of about ±{width:.2f} is expected"
    return f"{text}; ±{target:g} needs about {needed} {unit}." if needed > n else f"{text}."


def needed_for(auc: float, n_pos: int, n_neg: int, target: float, patients: int = 0) -> int:
    """Return the fewest cases, or patients as in `size_advice`, whose AUC interval is expected to be at most ± target."""
    counted = n_pos + n_neg
    needed = cases_for_half_width(auc, n_pos / counted, target)
    return math.ceil(needed * patients / counted) if patients else needed


def auc_permutation_p(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None, *, n_permutations: int = 9999,
    rng: np.random.Generator | None = None,
) -> float:  # fmt: skip
    """Return the one-sided p-value of an AUC above 0.5: labels are exchanged between patients.

    Patients with several cases exchange their labels as a block with patients of as many cases.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).

    Source:
        Phipson & Smyth 2010, doi:10.2202/1544-6115.1585 (the observed labelling counts as one).
    """
    from scipy.stats import rankdata

    labels = np.asarray(labels)
    if not has_both_classes(labels):
        return NAN
    rng = np.random.default_rng(0) if rng is None else rng
    ranks = rankdata(scores)
    blocks = _exchangeable(labels, patients)
    observed, beaten = float(ranks @ labels), 0
    for start in range(0, n_permutations, step := max(1, PERMUTATION_BLOCK // len(labels))):
        size = min(step, n_permutations - start)
        sums = np.zeros(size)
        for rows in blocks:
            drawn = rng.permuted(np.tile(np.arange(len(rows)), (size, 1)), axis=1)
            moved = labels[rows][drawn].reshape(size, -1).astype(np.float64)
            sums += moved @ ranks[rows].ravel()
        beaten += int((sums >= observed - 1e-9 * max(observed, 1.0)).sum())
    return (beaten + 1) / (n_permutations + 1)


def auc_permutation_p_of_many(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> float:
    """Return the same p-value in many cases, from the normal distribution that the rank sum then has.

    Source:
        Pitman 1937, doi:10.2307/2984124 (moments of a permuted sum of products).
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    labels = np.asarray(labels)
    if not has_both_classes(labels):
        return NAN
    ranks, excess, variance = rankdata(scores), 0.0, 0.0
    for rows in _exchangeable(labels, patients):
        moved, fixed = labels[rows].astype(np.float64), ranks[rows]  # (patients, cases per patient)
        moved, fixed = moved - moved.mean(axis=0), fixed - fixed.mean(axis=0)
        excess += float((moved * fixed).sum())
        products = (moved.T @ moved) * (fixed.T @ fixed)
        variance += float(products.sum()) / max(len(rows) - 1, 1)
    return float(ndtr(-excess / math.sqrt(variance))) if variance > 0 else 1.0


def _exchangeable(labels: np.ndarray, patients: np.ndarray | None) -> list[np.ndarray]:
    """Return row indices (n_patients, cases per patient) for each number of cases per patient."""
    if not is_clustered(patients):
        return [np.arange(len(labels))[:, None]]
    _, owner, count = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    order = np.argsort(owner, kind="stable")
    return [order[count[owner[order]] == size].reshape(-1, size) for size in np.unique(count)]
