"""An estimate with its interval, and the few normal-theory helpers that all metrics share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; NaN with a reason where it is undefined.

    Attributes:
        value: the point estimate.
        ci_low: lower limit; NaN where there is none.
        ci_high: upper limit; NaN where there is none.
        ci_method: how the interval was made; "" without one.
        reason: why a part of the estimate is NaN; "" if nothing is.
    """

    value: float
    ci_low: float
    ci_high: float
    ci_method: str
    reason: str = ""

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)


def undefined(reason: str, ci_method: str = "") -> Estimate:
    """Return an estimate that is not defined, and why."""
    return Estimate(NAN, NAN, NAN, ci_method, reason)


def fixed(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number with a fixed count of decimals, without a sign before what rounds to 0.

    Args:
        signed: whether a plus stands before positive numbers.

    Example:
        >>> fixed(-0.0004), fixed(0.0004, signed=True), fixed(0.25, 2, signed=True)
        ('0.000', '0.000', '+0.25')
    """
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def z_quantile(alpha: float = 0.05) -> float:
    """Return the two-sided normal quantile, 1.96 for alpha = 0.05."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2))


def t_quantile(df: float, alpha: float = 0.05) -> float:
    """Return the two-sided quantile of Student's t, that of the normal for NaN degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2)) if math.isfinite(df) else z_quantile(alpha)


def two_sided_p(z: float) -> float:
    """Return the two-sided normal p-value of a z statistic."""
    from scipy.special import ndtr

    return float(2 * ndtr(-abs(z)))


def wald(
    value: float, error: float, method: str, *, alpha: float = 0.05, low: float = -np.inf, high: float = np.inf
) -> Estimate:
    """Return value ± z × standard error, cut at the limits of what is possible."""
    if not math.isfinite(error):
        return Estimate(value, NAN, NAN, method, "the standard error is not defined")
    half = z_quantile(alpha) * error
    return Estimate(value, max(low, value - half), min(high, value + half), method)


def has_both_classes(labels: np.ndarray) -> bool:
    """Whether the labels (n,) hold at least one 0 and one 1."""
    return bool((labels == 1).any() and (labels == 0).any())


def is_clustered(patients: np.ndarray | None) -> bool:
    """Whether any patient owns more than one case."""
    return patients is not None and len(np.unique(patients)) < len(patients)


def number_owners(patients: np.ndarray | None, n: int) -> np.ndarray:
    """Return the owner (n,) of each case as a number; each case its own without patients."""
    return np.arange(n) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]


@dataclass(frozen=True)
class PatientMean:
    """The mean of the cases of some patients.

    Attributes:
        deviations: (n_owners,) what each patient moves the mean by, 0 for one who has none of the cases.
        variance: of the mean, summed by patient; NaN with fewer than two.
    """

    value: float
    deviations: np.ndarray
    variance: float
    n_patients: int


def mean_by_patient(values: np.ndarray, owners: np.ndarray, n_owners: int) -> PatientMean:
    """Return the mean of values (n,) and its variance over patients.

    Args:
        owners: (n,) number of the patient of each value, below `n_owners`.
    """
    value, n_patients = float(values.mean()), len(np.unique(owners))
    deviations = np.bincount(owners, values - value, n_owners) / len(values)
    variance = float((deviations**2).sum()) * n_patients / (n_patients - 1) if n_patients > 1 else NAN
    return PatientMean(value, deviations, variance, n_patients)
