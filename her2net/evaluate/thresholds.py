"""The operating point: chosen on OOF predictions, carried to every other cohort unchanged."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from her2net.artefact import Artefact, Strict


class Threshold(Strict):
    """One model's operating point; a case is positive when its probability is at least `value`."""

    value: float
    rule: Literal["youden"]
    chosen_on: Literal["oof"]
    n: int


class Thresholds(Artefact):
    """`thresholds.json`: model -> operating point."""

    MADE_BY: ClassVar[str] = "her2net_evaluate"

    models: dict[str, Threshold]


def choose_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold with the largest sensitivity + specificity; among equals the one nearest to 0.5.

    Candidates are the midpoints between neighbouring distinct scores. With one class only, 0.5.

    Source:
        Youden 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3; candidates as in R's pROC.
    """
    values, group = np.unique(scores, return_inverse=True)
    if len(np.unique(labels)) < 2 or len(values) < 2:
        return 0.5
    positives = np.bincount(group, labels == 1, len(values))
    negatives = np.bincount(group, labels == 0, len(values))
    missed, spared = positives.cumsum()[:-1] / positives.sum(), negatives.cumsum()[:-1] / negatives.sum()
    midpoints = (values[:-1] + values[1:]) / 2
    youden = np.round(spared - missed, 12)
    best = np.flatnonzero(youden == youden.max())
    return float(midpoints[best[np.abs(midpoints[best] - 0.5).argmin()]])
