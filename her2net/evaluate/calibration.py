"""Calibration: do probabilities mean what they say? Slope, intercept, Brier score, ECE, ICI, reliability curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_values, group_cases, interval_from_values
from her2net.evaluate.estimate import Estimate, has_both_classes, is_clustered, undefined, wald, z_quantile
from her2net.evaluate.loess import SPAN, Smoother
from her2net.evaluate.weighted import Statistic

CLIP = 1e-7
N_BINS = 10
DIVERGED = 50.0
ErrorMethod = Literal["basic", "wider"]
ERROR_METHOD_NAMES = {"basic": "basic", "wider": "wider of basic and percentile"}
ERROR_METHODS: dict[str, ErrorMethod] = {
    "ece": "wider", "ici": "wider", "brier_reliability": "basic", "brier_resolution": "basic"
}  # fmt: skip
"""Chosen by the coverage simulation of benchmarks/coverage.py; see docs/explanation/intervals.md."""


def logit(probs: np.ndarray) -> np.ndarray:
    """Return log-odds of probabilities (n,), those of 0 and 1 moved in by 1e-7."""
    inside = np.clip(np.asarray(probs, dtype=np.float64), CLIP, 1 - CLIP)
    return np.log(inside) - np.log1p(-inside)


def fit_logistic(
    x: np.ndarray, y: np.ndarray, *, offset: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression without penalty by Newton's method.

    Args:
        x: (n, p) design, the constant included.
        y: (n,) in [0, 1].
        offset: (n,) added to the linear predictor.
        weights: (n,) case weights.

    Returns:
        (p,) coefficients and (p, p) inverse information; NaN where the classes are separated or x is constant.
    """
    n, p = x.shape
    offset = np.zeros(n) if offset is None else offset
    weights = np.ones(n) if weights is None else weights
    beta, lost = np.zeros(p), (np.full(p, np.nan), np.full((p, p), np.nan))
    for _ in range(50):
        mean = _sigmoid(x @ beta + offset)
        information = (x * (weights * mean * (1 - mean))[:, None]).T @ x
        try:
            step = np.linalg.solve(information, x.T @ (weights * (y - mean)))
        except np.linalg.LinAlgError:
            return lost
        beta = beta + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-300))
        if not np.isfinite(beta).all() or np.abs(beta).max() > DIVERGED * 1e3:
            return lost
        if np.abs(step).max() < 1e-11:
            break
    if np.linalg.cond(information) > 1e12 or np.abs(x @ beta + offset).min() > DIVERGED / 2:
        return lost
    return beta, np.linalg.inv(information)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def _separate(score: np.ndarray, y: np.ndarray) -> bool:
    """Whether a threshold parts the classes, ties at it allowed."""
    positive, negative = score[y == 1], score[y == 0]
    return bool(positive.min() >= negative.max() or negative.min() >= positive.max())


def calibration_slope_intercept(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *, alpha: float = 0.05
) -> tuple[Estimate, Estimate]:
    """Return the calibration slope (ideal 1) and calibration-in-the-large (intercept at slope 1, ideal 0).

    Wald intervals; where a patient owns several cases, from the sandwich variance summed by patient.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) probability of class 1.

    Source:
        Cox 1958, doi:10.1093/biomet/45.3-4.562; Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7.
    """
    if not has_both_classes(labels):
        return undefined("one class only"), undefined("one class only")
    y, score, found = np.asarray(labels, dtype=np.float64), logit(probs), []
    designs = ((np.column_stack([score, np.ones_like(score)]), None), (np.ones((len(y), 1)), score))
    for x, offset in designs:
        beta, covariance = fit_logistic(x, y, offset=offset)
        method = "Wald"
        if is_clustered(patients):
            mean = _sigmoid(x @ beta + (0 if offset is None else offset))
            covariance, method = _sandwich(x * (y - mean)[:, None], covariance, patients), "Wald, clustered by patient"
        separated = offset is None and _separate(score, y)  # a fit may stop at a large finite slope
        if np.isfinite(beta).all() and not separated:
            found.append(wald(float(beta[0]), float(np.sqrt(covariance[0, 0])), method, alpha=alpha))
        else:
            found.append(undefined("the probabilities separate the classes, or are all alike", method))
    return found[0], found[1]


def _sandwich(scores: np.ndarray, bread: np.ndarray, patients: np.ndarray | None) -> np.ndarray:
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    owners = int(owner.max()) + 1
    summed = np.stack([np.bincount(owner, column, owners) for column in scores.T], axis=1)
    return bread @ (summed.T @ summed) @ bread * owners / max(owners - 1, 1)


def brier(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *, alpha: float = 0.05
) -> Estimate:
    """Return the Brier score with an interval from its variance over patients, on the log scale.

    With several classes it is the sum over classes halved, so that two classes give the usual score.

    Args:
        labels: (n,) class.
        probs: (n,) of class 1, or (n, n_classes).

    Source:
        Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; Bradley et al. 2008,
        doi:10.1175/2007WAF2007049.1.
    """
    squares = squared_errors(labels, probs)
    n = len(squares)
    if n == 0:
        return undefined("no case")
    value, method = float(squares.mean()), "normal, log scale"
    owner = np.arange(n) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    owners = int(owner.max()) + 1
    if owners < 2 or value == 0:
        return Estimate(value, float("nan"), float("nan"), method, "no variance: one patient, or a perfect score")
    residual = np.bincount(owner, squares - value, owners)
    error = float(np.sqrt((residual**2).sum() * owners / (owners - 1))) / n
    if error < 1e-12 * value:
        return Estimate(value, float("nan"), float("nan"), method, "no variance: all cases are equally far off")
    factor = float(np.exp(z_quantile(alpha) * error / value))
    return Estimate(value, value / factor, min(1.0, value * factor), method)


def squared_errors(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return each case's contribution (n,) to the Brier score."""
    labels, probs = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    if probs.ndim == 1:
        return (probs - labels) ** 2
    return ((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(axis=1) / 2


@dataclass(frozen=True)
class BrierParts:
    """Decomposition: brier = reliability - resolution + uncertainty + within_bins."""

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def decompose_brier(labels: np.ndarray, probs: np.ndarray, *, n_bins: int = N_BINS) -> BrierParts:
    """Split the Brier score over equal-width bins; exact, the part within bins included.

    Source:
        Murphy 1973, doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2; within bins: Stephenson et al. 2008,
        doi:10.1175/2007WAF2006116.1.
    """
    once = np.ones((1, len(labels)))
    parts = {name: float(part(once)[0]) for name, part in brier_part_statistics(labels, probs, n_bins=n_bins).items()}
    whole = float(squared_errors(labels, probs).mean())
    return BrierParts(**parts, within_bins=whole - parts["reliability"] + parts["resolution"] - parts["uncertainty"])


def brier_part_statistics(labels: np.ndarray, probs: np.ndarray, *, n_bins: int = N_BINS) -> dict[str, Statistic]:
    """Return reliability, resolution and uncertainty of the Brier score as functions of weights."""
    labels, probs = np.asarray(labels, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    member = np.eye(n_bins)[assign_bins(probs, n_bins)]
    gap, events = member * (probs - labels)[:, None], member * labels[:, None]

    def of_bins(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Return the sum over bins of n_bin x (mean in the bin)^2, over n."""
        count, total = weights @ member, weights @ sums
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count > 0, total**2 / count, 0.0).sum(axis=1) / weights.sum(axis=1)

    def base(weights: np.ndarray) -> np.ndarray:
        return weights @ labels / weights.sum(axis=1)

    return {
        "reliability": lambda weights: of_bins(weights, gap),
        "resolution": lambda weights: of_bins(weights, events) - base(weights) ** 2,
        "uncertainty": lambda weights: base(weights) * (1 - base(weights)),
    }


def assign_bins(probs: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Return the equal-width bin (n,) of each probability; 1 belongs to the last."""
    return np.minimum((np.asarray(probs) * n_bins).astype(np.int64), n_bins - 1)


def ece_statistic(labels: np.ndarray, probs: np.ndarray, *, n_bins: int = N_BINS) -> Statistic:
    """Return the expected calibration error over equal-width bins as a function of weights.

    Source:
        Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602.
    """
    member = np.eye(n_bins)[assign_bins(probs, n_bins)]
    gap = member * (np.asarray(probs, dtype=np.float64) - np.asarray(labels))[:, None]
    return lambda weights: np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)


def ici_statistic(labels: np.ndarray, probs: np.ndarray, *, span: float = SPAN) -> Statistic:
    """Return the integrated calibration index, mean |probability - smoothed outcome|, as a function of weights.

    The smoother is loess of degree 1; its bandwidths are those of the original sample in every resample. Beyond
    5,000 cases the probabilities are rounded to 1/1000 for it.

    Source:
        Austin & Steyerberg 2019, doi:10.1002/sim.8281; Cleveland 1979, doi:10.1080/01621459.1979.10481038.
    """
    smoother = Smoother(labels, probs, span)
    x = smoother.x
    right = np.clip(np.searchsorted(smoother.knots, x), 1, max(len(smoother.knots) - 1, 1))
    left = right - 1 if len(smoother.knots) > 1 else right * 0
    right = right if len(smoother.knots) > 1 else left
    gap = smoother.knots[right] - smoother.knots[left]
    part = np.divide(x - smoother.knots[left], gap, out=np.zeros_like(x), where=gap > 0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        amount, smooth = smoother(weights)
        fitted = smooth[:, left] * (1 - part) + smooth[:, right] * part
        return (amount * np.abs(fitted - x)).sum(axis=1) / amount.sum(axis=1)

    return statistic


def smooth_outcome(
    labels: np.ndarray, probs: np.ndarray, *, span: float = SPAN, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the reliability curve: knots (k,) and smoothed outcome (k,), or (b, k) for weights (b, n)."""
    smoother = Smoother(labels, probs, span)
    _, smooth = smoother(np.ones((1, len(labels))) if weights is None else weights)
    return smoother.knots, smooth[0] if weights is None else smooth


def calibration_errors(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None = None, *, n_resamples: int = 1000,
    alpha: float = 0.05, rng: np.random.Generator | None = None,
) -> dict[str, Estimate]:  # fmt: skip
    """Return ECE, ICI, and reliability and resolution of the Brier score, with bootstrap intervals.

    All are biased upwards in few cases, in each resample once more. See `error_interval` for the intervals.
    """
    if not has_both_classes(labels):
        return dict.fromkeys(("ece", "ici", "brier_reliability", "brier_resolution"), undefined("one class only"))
    whole = error_statistics(labels, probs)
    groups, means, counts = group_cases(np.asarray(labels), np.asarray(probs, dtype=np.float64), patients)
    statistics = whole if counts is None else error_statistics(groups, means)
    draws = bootstrap_values(statistics, groups, patients, n_resamples=n_resamples, rng=rng, counts=counts)
    return {
        name: error_interval(statistic, draws[name], labels, patients, method=ERROR_METHODS[name], alpha=alpha)
        for name, statistic in whole.items()
    }


def error_statistics(labels: np.ndarray, probs: np.ndarray) -> dict[str, Statistic]:
    """Return ECE, ICI, and reliability and resolution of the Brier score as functions of weights."""
    parts = brier_part_statistics(labels, probs)
    return {
        "ece": ece_statistic(labels, probs), "ici": ici_statistic(labels, probs),
        "brier_reliability": parts["reliability"], "brier_resolution": parts["resolution"],
    }  # fmt: skip


def error_interval(
    statistic: Statistic, draws: np.ndarray, labels: np.ndarray, patients: np.ndarray | None, *, method: ErrorMethod,
    alpha: float = 0.05,
) -> Estimate:  # fmt: skip
    """Return a statistic in [0, 1] that is biased upwards, with a bootstrap interval from its draws (n_resamples,).

    Args:
        method: `basic` (the percentile limits reflected at the estimate, which turns the bias round) or `wider` (from
            the lower of the basic and the percentile limits to the higher of them).

    Source:
        Davison & Hinkley 1997, ISBN 9780521574716, section 5.2.1.
    """
    value = float(statistic(np.ones((1, len(labels))))[0])
    made = interval_from_values(value, draws, statistic, labels, patients, method="percentile", alpha=alpha)
    name = made.ci_method.replace("percentile", ERROR_METHOD_NAMES[method])
    if made.reason:
        return Estimate(value, made.ci_low, made.ci_high, name, made.reason)
    low, high = max(0.0, 2 * value - made.ci_high), min(1.0, 2 * value - made.ci_low)
    if method == "wider":
        low, high = min(low, made.ci_low), max(high, made.ci_high)
    return Estimate(value, low, high, name)
