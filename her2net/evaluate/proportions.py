"""Metrics at a threshold: counts, rates and what follows from them, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from her2net.evaluate.estimate import NAN, Estimate, is_clustered, undefined, z_quantile

ProportionMethod = Literal["wilson", "clopper-pearson"]
INFINITE = "infinite"
METHOD_NAMES = {"wilson": "Wilson", "clopper-pearson": "Clopper-Pearson"}
DEFAULT_PROPORTION_METHOD: ProportionMethod = "wilson"
"""Chosen by the coverage simulation of benchmarks/coverage.py; see docs/explanation/intervals.md."""


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold; class 1 is positive."""

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def n(self) -> int:
        return self.tp + self.fn + self.tn + self.fp


def clopper_pearson(k: Any, n: Any, *, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact limits of k successes in n, elementwise; k may be fractional; NaN for n = 0.

    Source:
        Clopper & Pearson 1934, doi:10.2307/2331986.
    """
    from scipy.special import betaincinv

    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    low = np.where(k > 0, betaincinv(np.maximum(k, 1e-300), n - k + 1, alpha / 2), 0.0)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1e-300), 1 - alpha / 2), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def wilson(k: Any, n: Any, *, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return the score limits of k successes in n, elementwise; NaN for n = 0.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    z2 = z_quantile(alpha) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + z2 / 2) / (n + z2)
        half = np.sqrt(z2) / (n + z2) * np.sqrt(k * (n - k) / n + z2 / 4)
        low, high = np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def proportion(
    k: float, n: float, *, method: ProportionMethod = DEFAULT_PROPORTION_METHOD, alpha: float = 0.05
) -> Estimate:
    """Return k / n with its interval; undefined for n = 0."""
    if n == 0:
        return undefined("no case to count", METHOD_NAMES[method])
    low, high = (wilson if method == "wilson" else clopper_pearson)(k, n, alpha=alpha)
    return Estimate(k / n, float(low), float(high), METHOD_NAMES[method])


def clustered_proportion(
    success: np.ndarray, patients: np.ndarray | None, *, method: ProportionMethod = DEFAULT_PROPORTION_METHOD,
    alpha: float = 0.05,
) -> Estimate:  # fmt: skip
    """Return the share of successes among cases that patients own, for the number of cases that they are worth.

    The design effect is at least 1; where it cannot be estimated (all alike) each patient counts as one case.

    Args:
        success: (n,) bool.
        patients: (n,) owner of each case; `None` if each case is its own patient.

    Source:
        Rao & Scott 1992, doi:10.2307/2532311.
    """
    n = len(success)
    if patients is None or n == 0 or not is_clustered(patients):
        return proportion(int(np.sum(success)), n, method=method, alpha=alpha)
    _, owner = np.unique(patients, return_inverse=True)
    share, owners = float(np.mean(success)), int(owner.max()) + 1
    residual = np.bincount(owner, np.asarray(success, dtype=float) - share, owners)
    variance = float((residual**2).sum()) / n**2 * owners / (owners - 1) if owners > 1 else NAN
    simple = share * (1 - share) / n
    effect = max(1.0, variance / simple) if simple > 0 and np.isfinite(variance) else n / owners
    worth = n / effect
    found = proportion(share * worth, worth, method=method, alpha=alpha)
    return Estimate(share, found.ci_low, found.ci_high, f"{METHOD_NAMES[method]}, clustered by patient")


def f1_from_share(share: Estimate) -> Estimate:
    """Return F1 = 2 s / (1 + s) from the share s = TP / (TP + FP + FN), a plain proportion; F1 rises with it."""
    if not share.defined:
        return undefined("no case is positive or called so", f"{share.ci_method}, transformed")
    to_f1: Callable[[float], float] = lambda s: 2 * s / (1 + s)
    return Estimate(to_f1(share.value), to_f1(share.ci_low), to_f1(share.ci_high), f"{share.ci_method}, transformed")


def balanced_accuracy(*rates: Estimate) -> Estimate:
    """Return the mean of the rates of the classes; the interval recovers their variances from their limits.

    Source:
        Zou & Donner 2008, doi:10.1002/sim.3095 (MOVER).
    """
    method = f"MOVER of {max((rate.ci_method for rate in rates), key=len)}"  # the longest says that some are clustered
    if not all(rate.defined for rate in rates):
        return undefined("one class only", method)
    value = sum(rate.value for rate in rates) / len(rates)
    below = math.hypot(*(rate.value - rate.ci_low for rate in rates)) / len(rates)
    above = math.hypot(*(rate.ci_high - rate.value for rate in rates)) / len(rates)
    return Estimate(value, value - below, value + above, method)


def mcc_formula(tp: np.ndarray, fn: np.ndarray, tn: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation of counts, elementwise; NaN where a margin is empty.

    Source:
        Matthews 1975, doi:10.1016/0005-2795(75)90109-9.
    """
    tp, fn, tn, fp = (np.asarray(part, dtype=np.float64) for part in (tp, fn, tn, fp))
    with np.errstate(invalid="ignore", divide="ignore"):
        # one root of a product in this order: a perfect and an all-wrong table give a square under it, and so 1 and -1 exactly
        return (tp * tn - fp * fn) / np.sqrt(((tp + fp) * (tn + fn)) * ((tp + fn) * (tn + fp)))


def f1_formula(tp: np.ndarray, fn: np.ndarray, tn: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return F1 of counts, elementwise; NaN where no case is positive or called so."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def balanced_accuracy_formula(tp: np.ndarray, fn: np.ndarray, tn: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return the mean of sensitivity and specificity of counts, elementwise; NaN where a class is absent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (tp / (tp + fn) + tn / (tn + fp)) / 2


def mcc(c: Confusion, *, alpha: float = 0.05, worth: float = 1.0) -> Estimate:
    """Return Matthews' correlation with a delta interval on Fisher's z scale.

    The standard error is that of two binomial rates at a fixed prevalence, with half a case added to each cell so
    that a perfect table has a width too.

    Args:
        worth: independent cases that one case is worth, at most 1 (patients with several cases).
    """
    method = "delta, Fisher z"
    value = float(mcc_formula(*(np.array(x) for x in (c.tp, c.fn, c.tn, c.fp))))
    if not np.isfinite(value):
        return undefined("a class, or a decision, does not occur", method)
    cells = np.array([c.tp, c.fn, c.tn, c.fp], dtype=float) + 0.5
    n_pos, n_neg = cells[:2].sum(), cells[2:].sum()
    sens, spec = cells[0] / n_pos, cells[2] / n_neg
    step, gradient = 1e-5, []
    for d_sens, d_spec in ((step, 0.0), (0.0, step)):
        ends = [
            np.arctanh(mcc_formula(*_cells(sens + s * d_sens, spec + s * d_spec, n_pos, n_neg))) for s in (1.0, -1.0)
        ]
        gradient.append((ends[0] - ends[1]) / (2 * step))
    variance = gradient[0] ** 2 * sens * (1 - sens) / n_pos + gradient[1] ** 2 * spec * (1 - spec) / n_neg
    centre = np.arctanh(mcc_formula(*cells))
    half = z_quantile(alpha) * np.sqrt(variance / worth)
    low, high = np.tanh(centre - half), np.tanh(centre + half)
    return Estimate(value, float(min(low, value)), float(max(high, value)), method)


def _cells(sens: float, spec: float, n_pos: float, n_neg: float) -> tuple[np.ndarray, ...]:
    return tuple(np.array(x) for x in (sens * n_pos, (1 - sens) * n_pos, spec * n_neg, (1 - spec) * n_neg))


def likelihood_ratios(c: Confusion, *, alpha: float = 0.05, worth: float = 1.0) -> tuple[Estimate, Estimate]:
    """Return the positive and the negative likelihood ratio with log-scale intervals.

    Args:
        worth: independent cases that one case is worth, at most 1 (patients with several cases).

    Source:
        Simel et al. 1991, doi:10.1016/0895-4356(91)90128-V.
    """
    n_pos, n_neg = c.tp + c.fn, c.tn + c.fp
    return _ratio(c.tp, n_pos, c.fp, n_neg, alpha, worth), _ratio(c.fn, n_pos, c.tn, n_neg, alpha, worth)


def _ratio(a: int, n_a: int, b: int, n_b: int, alpha: float, worth: float) -> Estimate:
    """Return (a / n_a) / (b / n_b); with an empty cell, or two rates of 1, the interval adds half a case to each."""
    method = "log (Simel)"
    if n_a == 0 or n_b == 0:
        return undefined("one class only", method)
    corrected = a == 0 or b == 0 or (a == n_a and b == n_b)
    half_case = 0.5 if corrected else 0.0
    share_a, share_b = (a + half_case) / (n_a + 2 * half_case), (b + half_case) / (n_b + 2 * half_case)
    variance = (1 - share_a) / (a + half_case) + (1 - share_b) / (b + half_case)
    half = z_quantile(alpha) * np.sqrt(variance / worth)
    low, high = (float(share_a / share_b * np.exp(sign * half)) for sign in (-1, 1))
    method += ", half a case added" if corrected else ""
    if b == 0:
        reason = "0 / 0" if a == 0 else f"{INFINITE}: its denominator is a rate of 0; the lower limit holds"
        return Estimate(NAN, NAN if a == 0 else low, NAN, method, reason)
    ratio = a / n_a * n_b / b
    return Estimate(ratio, min(low, ratio), max(high, ratio), method)


def threshold_metrics(
    labels: np.ndarray, called: np.ndarray, patients: np.ndarray | None = None, *,
    method: ProportionMethod = DEFAULT_PROPORTION_METHOD, alpha: float = 0.05,
) -> dict[str, Estimate]:  # fmt: skip
    """Return every metric of a yes/no decision.

    Args:
        labels: (n,) 0 or 1.
        called: (n,) whether the case is called positive.
        patients: (n,) owner of each case; where one owns several, the intervals allow for it.
    """
    positive, called = np.asarray(labels) == 1, np.asarray(called, dtype=bool)
    owners = np.asarray(patients) if is_clustered(patients) else None
    c = Confusion(int((positive & called).sum()), int((positive & ~called).sum()),
                  int((~positive & ~called).sum()), int((~positive & called).sum()))  # fmt: skip

    def rate(success: np.ndarray, among: np.ndarray) -> Estimate:
        own = None if owners is None else owners[among]
        return clustered_proportion(success[among], own, method=method, alpha=alpha)

    right, everyone = positive == called, np.ones(len(positive), dtype=bool)
    sensitivity, specificity = rate(called, positive), rate(~called, ~positive)
    worth = 1.0 if owners is None else len(np.unique(owners)) / c.n
    plus, minus = likelihood_ratios(c, alpha=alpha, worth=worth)
    return {
        "accuracy": rate(right, everyone),
        "balanced_accuracy": balanced_accuracy(sensitivity, specificity),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": rate(positive, called),
        "npv": rate(~positive, ~called),
        "f1": f1_from_share(rate(positive & called, positive | called)),
        "mcc": mcc(c, alpha=alpha, worth=worth),
        "lr_positive": plus,
        "lr_negative": minus,
    }


def predictive_values_at(prevalence: float, positive_ratio: Estimate, negative_ratio: Estimate) -> dict[str, Estimate]:
    """Re-express PPV and NPV at another prevalence, with the intervals of the likelihood ratios.

    Args:
        prevalence: share of positives in the population meant, in (0, 1).

    Source:
        Bayes' theorem; intervals: Mercaldo et al. 2007, doi:10.1002/sim.2677 (logit scale, likelihood ratios).
    """
    odds = prevalence / (1 - prevalence)
    to_ppv: Callable[[float], float] = lambda ratio: odds * ratio / (1 + odds * ratio)
    to_npv: Callable[[float], float] = lambda ratio: 1 / (1 + odds * ratio)
    p, n, method = positive_ratio, negative_ratio, "from the likelihood ratio"
    ppv = Estimate(to_ppv(p.value), to_ppv(p.ci_low), to_ppv(p.ci_high), method, p.reason)
    npv = Estimate(to_npv(n.value), to_npv(n.ci_high), to_npv(n.ci_low), method, n.reason)
    if p.reason.startswith(INFINITE):
        ppv = Estimate(1.0, to_ppv(p.ci_low), 1.0, method)
    if n.reason.startswith(INFINITE):
        npv = Estimate(0.0, 0.0, to_npv(n.ci_low), method)
    return {"ppv": ppv, "npv": npv}
