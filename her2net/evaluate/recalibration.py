"""Recalibration: Platt, temperature or isotonic, fitted on OOF predictions and carried to every other cohort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from her2net.artefact import Strict
from her2net.evaluate.calibration import fit_logistic, logit
from her2net.evaluate.estimate import has_both_classes

Kind = Literal["none", "temperature", "platt", "isotonic"]
KINDS: tuple[Kind, ...] = ("none", "temperature", "platt", "isotonic")
"""From the simplest to the most flexible: among equal scores the simplest is taken."""
N_INNER = 5
SMALLEST = 1e-4


class Recalibration(Strict):
    """A fitted map of probabilities.

    Attributes:
        kind: `temperature` and `platt` are sigmoid(slope × logit + intercept); `isotonic` interpolates.
        slope: of the logit.
        intercept: of the logit.
        x: ascending probabilities (isotonic).
        y: ascending values at `x` (isotonic).
        log_loss: kind -> mean log loss in the inner loop that chose it; empty if it was not chosen.
    """

    kind: Kind
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    log_loss: dict[str, float] = {}  # noqa: RUF012  (pydantic copies it)

    def apply(self, probs: np.ndarray) -> np.ndarray:
        """Return recalibrated probabilities (n,) of probabilities (n,)."""
        if self.kind == "none":
            return np.asarray(probs, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(probs, self.x, self.y)
        return 0.5 * (1 + np.tanh((self.slope * logit(probs) + self.intercept) / 2))


def fit_recalibration(labels: np.ndarray, probs: np.ndarray, kind: Kind) -> Recalibration:
    """Fit one map; `none` where the data do not determine it.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) probability of class 1.

    Source:
        Platt 1999, ISBN 9780262194488 (with his shrunken targets); temperature: Guo et al. 2017, arXiv:1706.04599;
        isotonic: Zadrozny & Elkan 2002, doi:10.1145/775047.775151.
    """
    if kind == "none" or not has_both_classes(labels):
        return Recalibration(kind="none")
    if kind == "isotonic":
        return _fit_isotonic(labels, probs)
    n_pos, n_neg = int((labels == 1).sum()), int((labels == 0).sum())
    score = logit(probs)
    if kind == "platt":
        targets = np.where(labels == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
        beta, _ = fit_logistic(np.column_stack([score, np.ones(len(score))]), targets)
    else:
        beta, _ = fit_logistic(score[:, None], np.asarray(labels, dtype=np.float64))
    if not np.isfinite(beta).all() or beta[0] <= 0:  # a negative slope would turn the ranking round
        return Recalibration(kind="none")
    return Recalibration(kind=kind, slope=float(beta[0]), intercept=float(beta[1]) if kind == "platt" else 0.0)


def _fit_isotonic(labels: np.ndarray, probs: np.ndarray) -> Recalibration:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=SMALLEST, y_max=1 - SMALLEST, out_of_bounds="clip").fit(probs, labels)
    x, y = (tuple(float(v) for v in values) for values in (fitted.X_thresholds_, fitted.y_thresholds_))
    return Recalibration(kind="isotonic", x=x, y=y)


def choose_recalibration(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray, *, kinds: Sequence[Kind] = KINDS, seed: int = 0
) -> Recalibration:
    """Choose the kind by its log loss on patients left out, then fit it on all.

    Args:
        labels: (n,) 0 or 1, of OOF predictions.
        probs: (n,) probability of class 1.
        patients: (n,) owner of each case; the inner folds keep a patient in one.

    Source:
        Gneiting & Raftery 2007, doi:10.1198/016214506000001437 (choice by a proper score).
    """
    folds = _inner_folds(labels, patients, seed)
    if folds is None:
        return Recalibration(kind="none")
    losses: dict[str, float] = {}
    for kind in kinds:
        inside = np.empty(len(labels))
        for fold in range(N_INNER):
            held = folds == fold
            inside[held] = fit_recalibration(labels[~held], probs[~held], kind).apply(probs[held])
        losses[kind] = log_loss(labels, inside)
    best = min(kinds, key=lambda kind: (round(losses[kind], 6), KINDS.index(kind)))
    return fit_recalibration(labels, probs, best).model_copy(update={"log_loss": losses})


def _inner_folds(labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray | None:
    """Return the inner fold (n,) of each case, dealt to patients class by class; `None` with too few patients."""
    owners, owner = np.unique(patients, return_inverse=True)
    label = np.zeros(len(owners), dtype=np.int64)
    np.maximum.at(label, owner, labels)
    if min(int((label == 0).sum()), int((label == 1).sum())) < N_INNER:
        return None
    fold, rng = np.empty(len(owners), dtype=np.int64), np.random.default_rng(seed)
    for c in (0, 1):
        members = rng.permutation(np.flatnonzero(label == c))
        fold[members] = np.arange(len(members)) % N_INNER
    return fold[owner]


def log_loss(labels: np.ndarray, probs: np.ndarray) -> float:
    """Return the mean negative log likelihood, probabilities of 0 and 1 moved in by 1e-7."""
    inside = np.clip(probs, 1e-7, 1 - 1e-7)
    return float(-np.where(np.asarray(labels) == 1, np.log(inside), np.log1p(-inside)).mean())
