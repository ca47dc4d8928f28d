"""How numbers and names read in a report: the same everywhere, with their interval and in plain words."""

from __future__ import annotations

import math

from her2net.evaluate.record import RESEMBLING, Metric

COHORT_NAMES = {
    "oof": "training cases, out-of-fold",
    "test": "test cases",
    RESEMBLING: "test cases without those that resemble a training case",
    "oof-patients": "patients of the training cases, out-of-fold, the mean over the cases of each",
    "test-patients": "patients of the test cases, the mean over the cases of each",
}
COHORT_LABELS = {"oof": "out-of-fold", RESEMBLING: "test, no look-alikes", "oof-patients": "out-of-fold, by patient",
                 "test-patients": "test, by patient"}  # fmt: skip
"""Short forms for columns of tables."""
METRIC_NAMES = {
    "auc": "AUC",
    "auc_hand_till": "AUC (Hand-Till)",
    "pr_auc": "PR-AUC",
    "partial_auc_sensitivity": "Partial AUC, sensitivity ≥ 0.9",
    "partial_auc_specificity": "Partial AUC, specificity ≥ 0.9",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "mcc": "MCC",
    "lr_positive": "LR+",
    "lr_negative": "LR-",
    "brier": "Brier score",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "ece": "ECE",
    "ici": "ICI",
    "weighted_kappa": "Weighted kappa",
    "nri": "NRI",
    "idi": "IDI",
}
SUFFIXES = {"_recalibrated": ", recalibrated", "_at_prevalence": ", at the prevalence given"}


def cohort_name(cohort: str) -> str:
    """Return a cohort in words."""
    return COHORT_NAMES.get(cohort, cohort)


def cohort_label(cohort: str) -> str:
    """Return a cohort in as few words as a column of a table allows."""
    return COHORT_LABELS.get(cohort, cohort)


def metric_name(metric: str, class_names: list[str]) -> str:
    """Return a metric in words; `auc_class_2` becomes the AUC of the third class.

    Example:
        >>> metric_name("brier_recalibrated", []), metric_name("auc_class_1", ["a", "b", "c"])
        ('Brier score, recalibrated', 'AUC, b against the rest')
    """
    for suffix, words in SUFFIXES.items():
        if metric.endswith(suffix):
            return metric_name(metric.removesuffix(suffix), class_names) + words
    stem, _, number = metric.partition("_class_")
    if number.isdigit() and int(number) < len(class_names):
        return f"{metric_name(stem, class_names)}, {class_names[int(number)]} against the rest"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals; "undefined" where there is none."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """Return "0.842 (0.708 to 0.931)", and the bare value where it has no interval."""
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return number(value, digits)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def estimate(metric: Metric | None, digits: int = 3) -> str:
    """Return a figure of the evaluation with its interval; empty where there is no such figure."""
    return "" if metric is None else with_interval(metric.value, metric.ci_low, metric.ci_high, digits)


def percent(value: float | None) -> str:
    """Return a share as a whole percentage."""
    return "undefined" if value is None else f"{100 * value:.0f} %"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, as journals print it."""
    if p is None or not math.isfinite(p):
        return "undefined"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int, one: str, several: str = "") -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "case"), count(3, "case"), count(2, "modality", "modalities")
        ('1 case', '3 cases', '2 modalities')
    """
    return f"{n} {one if n == 1 else several or one + 's'}"


def listed(names: list[str]) -> str:
    """Join names as a sentence does.

    Example:
        >>> listed(["US", "MRI", "fusion"])
        'US, MRI and fusion'
    """
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""
