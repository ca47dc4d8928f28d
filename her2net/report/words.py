"""How numbers and names read in a report: the same everywhere, with their interval and in plain words."""

from __future__ import annotations

import math
import re

from her2net.evaluate.estimate import fixed
from her2net.evaluate.record import COHORT_NAMES, RESEMBLING, Metric

COHORT_LABELS = {"oof": "out-of-fold", RESEMBLING: "distinct test", "oof-patients": "out-of-fold, by patient",
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
    "rule_out_sensitivity": "Sensitivity of ruling out",
    "rule_out_npv": "NPV of ruling out",
    "rule_in_specificity": "Specificity of ruling in",
    "rule_in_ppv": "PPV of ruling in",
    "ruled_out_share": "Share ruled out",
    "ruled_in_share": "Share ruled in",
    "grey_zone_share": "Share in the grey zone",
    "brier": "Brier score",
    "brier_reliability": "Brier score, reliability",
    "brier_resolution": "Brier score, resolution",
    "brier_uncertainty": "Brier score, uncertainty",
    "brier_within_bins": "Brier score, within bins",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "ece": "ECE",
    "ici": "ICI",
    "weighted_kappa": "Weighted kappa",
    "nri": "NRI, category-free",
    "nri_positive": "NRI, positives",
    "nri_negative": "NRI, negatives",
    "idi": "IDI",
    "auc_across_folds": "AUC, fold by fold",
    "auc_within_folds": "AUC within folds",
}
METHOD_WORDS = {
    "DeLong": "DeLong's variance",
    "DeLong, logit": "DeLong's variance on the logit scale",
    "DeLong, logit, t": "DeLong's variance on the logit scale, Student's t",
    "Newcombe score": "Newcombe's score interval",
    "binomial exact": "Clopper-Pearson interval of AUC × n",
    "Wilson": "Wilson's score interval",
    "Wilson, transformed": "Wilson's interval of TP / (TP + FP + FN), transformed",
    "MOVER of Wilson": "from the limits of the rates that it is the mean of (MOVER)",
    "Clopper-Pearson": "Clopper-Pearson (exact) interval",
    "Clopper-Pearson, transformed": "Clopper-Pearson interval of TP / (TP + FP + FN), transformed",
    "MOVER of Clopper-Pearson": "from the Clopper-Pearson limits of the rates that it is the mean of (MOVER)",
    "delta, Fisher z": "delta method on Fisher's z scale",
    "log (Simel)": "normal on the log scale (Simel)",
    "log (Simel), half a case added": "normal on the log scale (Simel), half a case added to each cell",
    "from the likelihood ratio": "from the limits of the likelihood ratio",
    "normal, log scale": "normal on the log scale",
    "logit": "normal on the logit scale",
    "Wald": "estimate ± 1.96 standard errors (Wald)",
    "Fleiss-Cohen-Everitt": "large-sample variance of Fleiss, Cohen and Everitt",
    "bootstrap BCa": "bias-corrected and accelerated bootstrap",
    "bootstrap percentile": "percentile bootstrap",
    "bootstrap logit": "bootstrap on the logit scale",
    "bootstrap basic": "basic bootstrap",
    "bootstrap wider of basic and percentile": "wider of the basic and the percentile bootstrap",
}
METHOD_DETAILS = {
    r", (cases|patients), (\d+)\b": r" (\2 resamples of \1)", r", (linear|quadratic) weights$": r", \1 weights",
    r", prevalence ([\d.e-]+)$": r", at a prevalence of \1",
}  # fmt: skip
"""What follows the name of a method, and its words."""
NETWORK_WORDS = {
    r"^scattering_(\d)d$": r"\1D wavelet scattering network", r"^resnet(\d+)_3d\w*$": r"3D ResNet-\1",
    r"^resnet(\d+)([a-z]?)$": r"ResNet-\1\2", r"^convnextv2_(\w+)$": r"ConvNeXt V2 \1",
}  # fmt: skip
CLUSTERED = ", clustered by patient"
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
    if number.isdecimal() and int(number) < len(class_names):
        return f"{metric_name(stem, class_names)}, {class_names[int(number)]} against the rest"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals; "undefined" where there is none."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return fixed(value, digits)


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """Return "0.842 (0.708 to 0.931)", and the bare value where it has no interval."""
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return number(value, digits)
    return f"{number(value, digits)} ({number(low, digits)} to {number(high, digits)})"


def estimate(metric: Metric | None, digits: int = 3) -> str:
    """Return a figure of the evaluation with its interval, or why it has none; empty where there is no such figure."""
    return "" if metric is None else explained(metric.value, metric.ci_low, metric.ci_high, metric.reason, digits)


def explained(value: float | None, low: float | None, high: float | None, reason: str, digits: int = 3) -> str:
    """Return a figure with its interval, or the reason why a part of it is undefined.

    Example:
        >>> explained(None, None, None, "one class only"), explained(0.5, None, None, "one patient", 1)
        ('undefined: one class only', '0.5 (no interval: one patient)')
    """
    text = with_interval(value, low, high, digits)
    if text.startswith("undefined"):
        at_least = "" if low is None or not math.isfinite(low) else f", at least {number(low, digits)}"
        return f"{text}{at_least}: {reason}" if reason else text
    return text if "(" in text or not reason else f"{text} (no interval: {reason})"


def ratio(value: float | None) -> str:
    """Return a ratio with two decimals, as far as they mean something.

    Example:
        >>> ratio(0.001), ratio(3.14159), ratio(123456.7)
        ('<0.01', '3.14', '>1000')
    """
    if value is None or not math.isfinite(value):
        return "undefined"
    return "<0.01" if 0 <= value < 0.01 else ">1000" if value > 1000 else f"{value:.2f}"


def method(ci_method: str) -> str:
    """Return how an interval was made in words that a paper can use.

    Example:
        >>> method("Wilson, clustered by patient")
        "Wilson's score interval, clustered by patient"
        >>> method("bootstrap percentile, cases, 2000")
        'percentile bootstrap (2000 resamples of cases)'
    """
    base, details = ci_method.replace(CLUSTERED, ""), ""
    for pattern, words in METHOD_DETAILS.items():
        if found := re.search(pattern, base):
            base, details = base.replace(found[0], ""), details + found.expand(words)
    return METHOD_WORDS.get(base, base) + details + (CLUSTERED if CLUSTERED in ci_method else "")


def network(name: str) -> str:
    """Return a network of the plan in words, with its name there.

    Example:
        >>> network("scattering_2d"), network("resnet10_3d_s122"), network("convnextv2_tiny")
        ('2D wavelet scattering network (scattering_2d)', '3D ResNet-10 (resnet10_3d_s122)', 'ConvNeXt V2 tiny (convnextv2_tiny)')
    """
    words = name
    for pattern, text in NETWORK_WORDS.items():
        words = re.sub(pattern, text, words)
    return f"{words} ({name})"


def percent(value: float | None) -> str:
    """Return a share as a whole percentage."""
    return "undefined" if value is None else f"{100 * value:.0f} %"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, as journals print it."""
    if p is None or not math.isfinite(p):
        return "undefined"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_relation(p: float | None) -> str:
    """Return a p-value as it follows the letter p in a sentence.

    Example:
        >>> p_relation(0.0001), p_relation(0.04)
        ('< 0.001', '= 0.040')
    """
    text = p_value(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


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
