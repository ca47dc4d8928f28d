"""Proportions at a threshold, with exact intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from her2net.evaluate.discrimination import Estimate, undefined

EXACT = "Clopper-Pearson"


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold; class 1 is positive."""

    tp: int
    fn: int
    tn: int
    fp: int


def count_confusion(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Confusion:
    """Count, calling a case positive when its score is at least the threshold."""
    called, positive = scores >= threshold, labels == 1
    return Confusion(
        int((called & positive).sum()), int((~called & positive).sum()),
        int((~called & ~positive).sum()), int((called & ~positive).sum()),
    )  # fmt: skip


def exact_proportion(k: int, n: int) -> Estimate:
    """Return k / n with the Clopper-Pearson 95 % interval; undefined for n = 0.

    Source:
        Clopper & Pearson 1934, doi:10.2307/2331986.
    """
    if n == 0:
        return undefined("no case to count", EXACT)
    low = float(beta.ppf(0.025, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Estimate(k / n, low, high, EXACT)


def f1_estimate(c: Confusion) -> Estimate:
    """Return F1 = 2 TP / (2 TP + FP + FN); its interval transforms that of the share TP / (TP + FP + FN).

    F1 = 2 s / (1 + s) rises with the share s, a plain proportion of the cases that are positive or called so.
    """
    n = c.tp + c.fp + c.fn
    if n == 0:
        return undefined("no case is positive or called so", f"{EXACT}, transformed")
    share = exact_proportion(c.tp, n)
    to_f1: Callable[[float], float] = lambda s: 2 * s / (1 + s)
    return Estimate(to_f1(share.value), to_f1(share.ci_low), to_f1(share.ci_high), f"{EXACT}, transformed")


def threshold_metrics(c: Confusion) -> dict[str, Estimate]:
    """Return accuracy, sensitivity, specificity, PPV, NPV and F1, in this order."""
    n = c.tp + c.fn + c.tn + c.fp
    return {
        "accuracy": exact_proportion(c.tp + c.tn, n),
        "sensitivity": exact_proportion(c.tp, c.tp + c.fn),
        "specificity": exact_proportion(c.tn, c.tn + c.fp),
        "ppv": exact_proportion(c.tp, c.tp + c.fp),
        "npv": exact_proportion(c.tn, c.tn + c.fn),
        "f1": f1_estimate(c),
    }
