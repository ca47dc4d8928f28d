"""The operating point: chosen on OOF predictions, carried to every other cohort unchanged."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from her2net.artefact import Artefact, Strict

Rule = Literal["youden", "sensitivity", "specificity", "cost"]
NO_CHOICE = 0.5
RULE_OUT_SENSITIVITY = RULE_IN_SPECIFICITY = 0.95


class Threshold(Strict):
    """One model's operating point; a case is positive when its probability is at least `value`.

    Attributes:
        value: the threshold.
        rule: how it was chosen; `given` by the user, or 0.5 where there is nothing to choose on.
        chosen_on: the predictions it was chosen on.
        n: how many those were.
        parameter: the bound of `sensitivity` and `specificity`, or the ratio of `cost`.
        rule_out: below this a case is ruled out, at a sensitivity of at least 0.95 where it was chosen.
        rule_in: from this on a case is ruled in, at a specificity of at least 0.95 where it was chosen.
    """

    value: float
    rule: Literal["youden", "sensitivity", "specificity", "cost", "given"]
    chosen_on: Literal["oof", "nothing"]
    n: int
    parameter: float | None = None
    rule_out: float | None = None
    rule_in: float | None = None

    @property
    def pair(self) -> tuple[float, float] | None:
        """The rule-out and the rule-in threshold, if they were fitted."""
        return None if self.rule_out is None or self.rule_in is None else (self.rule_out, self.rule_in)


class Thresholds(Artefact):
    """`thresholds.json`: model -> operating point."""

    MADE_BY: ClassVar[str] = "her2net_evaluate"

    models: dict[str, Threshold]


def choose_threshold(
    labels: np.ndarray, scores: np.ndarray, rule: Rule = "youden", *, at_least: float = 0.9, cost_ratio: float = 1.0
) -> float:
    """Return the threshold that a rule picks; a case is positive when its score is at least that.

    Candidates are the midpoints between neighbouring distinct scores; among equals the one nearest to 0.5 is taken,
    then the lower. With one class only there is nothing to choose, nor with one score only unless a bound is to be met: 0.5.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).
        rule: `youden` (largest sensitivity + specificity), `sensitivity` (largest specificity where sensitivity is at
            least `at_least`), `specificity` (the converse), `cost` (smallest expected cost).
        at_least: bound of the rules `sensitivity` and `specificity`; where no midpoint meets it, the lowest
            (or highest) score itself does.
        cost_ratio: cost of a missed positive over that of a false alarm.

    Source:
        Youden 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3; candidates as in R's pROC;
        cost: Metz 1978, doi:10.1016/S0001-2998(78)80014-2.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    values, group = np.unique(scores, return_inverse=True)
    bounded = rule in ("sensitivity", "specificity")
    if not ((labels == 1).any() and (labels == 0).any()) or (len(values) < 2 and not bounded):
        return NO_CHOICE
    positives = np.bincount(group, labels == 1, len(values))
    negatives = np.bincount(group, labels == 0, len(values))
    sensitivity = 1 - positives.cumsum()[:-1] / positives.sum()
    specificity = negatives.cumsum()[:-1] / negatives.sum()
    candidates = midpoints(values)
    if rule == "cost":
        share = positives.sum() / len(labels)
        merit = -(cost_ratio * share * (1 - sensitivity) + (1 - share) * (1 - specificity))
    elif rule == "youden":
        merit = sensitivity + specificity
    else:
        bound, gain = (sensitivity, specificity) if rule == "sensitivity" else (specificity, sensitivity)
        met = bound >= at_least - 1e-12
        if not met.any():
            return float(values[0]) if rule == "sensitivity" else float(np.nextafter(values[-1], np.inf))
        merit = np.where(met, gain, -np.inf)
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    return float(candidates[best[np.abs(candidates[best] - NO_CHOICE).argmin()]])


def midpoints(values: np.ndarray) -> np.ndarray:
    """Return the midpoints (n - 1,) of ascending distinct values (n,), each above its lower neighbour."""
    middle = values[:-1] + (values[1:] - values[:-1]) / 2
    return np.where(middle > values[:-1], middle, values[1:])  # neighbouring floats have none between them


def choose_rule_in_out(
    labels: np.ndarray, scores: np.ndarray, *, sensitivity: float = RULE_OUT_SENSITIVITY,
    specificity: float = RULE_IN_SPECIFICITY,
) -> tuple[float, float]:  # fmt: skip
    """Return two thresholds: below the first a case is ruled out, from the second on it is ruled in.

    Where they cross (the model reaches both at once) both are the Youden threshold between them.

    Source:
        Coste & Pouchot 2003, doi:10.1093/ije/dyg054 (grey zone).
    """
    low = choose_threshold(labels, scores, "sensitivity", at_least=sensitivity)
    high = choose_threshold(labels, scores, "specificity", at_least=specificity)
    if low <= high:
        return low, high
    between = choose_threshold(labels, scores, "youden")
    return between, between
