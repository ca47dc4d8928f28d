"""Loess of a yes/no outcome on its predicted probability, for any case weights.

Source:
    Cleveland 1979, doi:10.1080/01621459.1979.10481038.
"""

from __future__ import annotations

import numpy as np

MAX_KNOTS = 200
MAX_EXACT = 5000
SPAN = 0.75


class Smoother:
    """Loess of degree 1 at fixed knots, for any case weights.

    Attributes:
        x: (m,) the probabilities it works on, those of the cases or rounded ones.
        knots: (k,) where the curve is evaluated.
    """

    def __init__(self, labels: np.ndarray, probs: np.ndarray, span: float = SPAN) -> None:
        probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
        self._labels = labels
        self._order: np.ndarray | None = None
        population = probs
        if len(probs) > MAX_EXACT:
            self._order = np.argsort(probs, kind="stable")
            rounded = np.round(probs[self._order], 3)
            self._first = np.flatnonzero(np.concatenate([[True], np.diff(rounded) != 0]))
            population = np.quantile(probs, np.linspace(0, 1, MAX_EXACT))
            probs = rounded[self._first]
        self.x, self.knots = probs, loess_knots(probs)
        kernel, centred = tricube(probs, self.knots, span, population), probs[:, None] - self.knots
        self._kernels = kernel, kernel * centred, kernel * centred**2

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight at each x (b, m) and the curve (b, k) for case weights (b, n)."""
        amount, events = weights, weights * self._labels
        if self._order is not None:
            amount = np.add.reduceat(weights[:, self._order], self._first, axis=1)
            events = np.add.reduceat(events[:, self._order], self._first, axis=1)
        k0, k1, k2 = self._kernels
        return amount, _local_line(amount @ k0, amount @ k1, amount @ k2, events @ k0, events @ k1)


def _local_line(s0: np.ndarray, s1: np.ndarray, s2: np.ndarray, t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
    """Return the height at the knot of the weighted line; the weighted mean where x does not vary."""
    determinant = s0 * s2 - s1 * s1
    with np.errstate(invalid="ignore", divide="ignore"):
        line = (s2 * t0 - s1 * t1) / determinant
        flat = np.where(s0 > 0, t0 / s0, 0.0)
    return np.clip(np.where(determinant > 1e-12 * s0 * s0, line, flat), 0.0, 1.0)


def loess_knots(probs: np.ndarray) -> np.ndarray:
    """Return where the smoother is evaluated: every distinct probability, or 200 quantiles of them."""
    distinct = np.unique(probs)
    return distinct if len(distinct) <= MAX_KNOTS else np.unique(np.quantile(distinct, np.linspace(0, 1, MAX_KNOTS)))


def tricube(x: np.ndarray, knots: np.ndarray, span: float, population: np.ndarray) -> np.ndarray:
    """Return loess weights (n, n_knots): tricube of the distance over that of the k-th nearest case, k = span n."""
    nearest = min(max(2, int(span * len(population) + 1e-10)), len(population))
    reach = np.partition(np.abs(population[:, None] - knots), nearest - 1, axis=0)[nearest - 1]
    scaled = np.minimum(np.abs(x[:, None] - knots) / np.maximum(reach, 1e-12), 1.0)
    return (1 - scaled**3) ** 3
