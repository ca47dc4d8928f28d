"""Every figure of one model in one cohort: name → estimate, as `metrics.csv` lists them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from her2net.evaluate.bootstrap import N_RESAMPLES, BootstrapMethod, n_resamples_for
from her2net.evaluate.calibration import brier, calibration_errors, calibration_slope_intercept, decompose_brier
from her2net.evaluate.discrimination import (
    DEFAULT_AUC_METHOD,
    AucMethod,
    auc_interval,
    partial_auc_interval,
    pr_auc_interval,
)
from her2net.evaluate.estimate import NAN, Estimate, is_clustered, undefined
from her2net.evaluate.multiclass import absent_classes, hand_till, macro_auc, one_vs_rest, weighted_kappa
from her2net.evaluate.proportions import (
    balanced_accuracy,
    clustered_proportion,
    predictive_values_at,
    threshold_metrics,
)
from her2net.predictions import Predictions

PARTIAL_AT_LEAST = 0.9
Focus = Literal["sensitivity", "specificity"]
OTHER_PARTIAL: tuple[tuple[Focus, BootstrapMethod], ...] = (("sensitivity", "bca"), ("specificity", "logit"))


def binary_metrics(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray, *, threshold: float | None, seed: int = 0,
    prevalence: float | None = None, pair: tuple[float, float] | None = None,
) -> dict[str, Estimate]:  # fmt: skip
    """Return every metric of a two-class model.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) probability of class 1.
        patients: (n,) owner of each case.
        threshold: operating point; `None` leaves out what needs one.
        seed: of the bootstraps.
        prevalence: of the population meant; adds PPV and NPV re-expressed at it.
        pair: thresholds that rule out and rule in; adds what becomes of the cases.
    """
    owners = patients if is_clustered(patients) else None
    n_resamples = N_RESAMPLES if owners is None else n_resamples_for(len(labels))
    rng = lambda part: np.random.default_rng([seed, part])
    found = {
        "auc": auc_interval(labels, probs, patients=owners, rng=rng(0)),
        "pr_auc": pr_auc_interval(labels, probs, patients=owners, rng=rng(1), n_resamples=n_resamples),
    }
    for part, focus in enumerate(("sensitivity", "specificity"), start=2):
        found[f"partial_auc_{focus}"] = partial_auc_interval(
            labels, probs, focus=focus, at_least=PARTIAL_AT_LEAST, patients=owners, rng=rng(part),  # type: ignore[arg-type]
            n_resamples=n_resamples,
        )  # fmt: skip
    if threshold is not None:
        found |= threshold_metrics(labels, probs >= threshold, owners)
        if prevalence is not None:
            moved = predictive_values_at(prevalence, found["lr_positive"], found["lr_negative"])
            found |= {
                f"{name}_at_prevalence": replace(estimate, ci_method=f"{estimate.ci_method}, prevalence {prevalence:g}")
                for name, estimate in moved.items()
            }
    if pair is not None:
        found |= rule_out_and_in(labels, probs, owners, pair)
    found["brier"] = brier(labels, probs, owners)
    parts = decompose_brier(labels, probs)
    found["brier_uncertainty"] = Estimate(parts.uncertainty, NAN, NAN, "", "follows from the share of positives")
    found["brier_within_bins"] = Estimate(parts.within_bins, NAN, NAN, "", "what ten bins leave over")
    found["calibration_slope"], found["calibration_intercept"] = calibration_slope_intercept(labels, probs, owners)
    return found | calibration_errors(labels, probs, owners, n_resamples=min(n_resamples, 1000), rng=rng(4))


def rule_out_and_in(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray | None, pair: tuple[float, float]
) -> dict[str, Estimate]:
    """Return how well two thresholds rule out and rule in, and how many cases stay between them.

    Args:
        pair: below the first a case is ruled out, from the second on it is ruled in.

    Source:
        Coste & Pouchot 2003, doi:10.1093/ije/dyg054.
    """
    positive, out, into = np.asarray(labels) == 1, probs < pair[0], probs >= pair[1]

    def rate(success: np.ndarray, among: np.ndarray) -> Estimate:
        return clustered_proportion(success[among], None if patients is None else patients[among])

    everyone = np.ones(len(positive), dtype=bool)
    return {
        "rule_out_sensitivity": rate(~out, positive), "rule_out_npv": rate(~positive, out),
        "rule_in_specificity": rate(~into, ~positive), "rule_in_ppv": rate(positive, into),
        "ruled_out_share": rate(out, everyone), "ruled_in_share": rate(into, everyone),
        "grey_zone_share": rate(~out & ~into, everyone),
    }  # fmt: skip


def recalibrated_metrics(labels: np.ndarray, probs: np.ndarray, patients: np.ndarray) -> dict[str, Estimate]:
    """Return what recalibration is meant to mend, for recalibrated probabilities (n,)."""
    owners = patients if is_clustered(patients) else None
    slope, intercept = calibration_slope_intercept(labels, probs, owners)
    found = {"brier": brier(labels, probs, owners), "calibration_slope": slope, "calibration_intercept": intercept}
    return {f"{name}_recalibrated": estimate for name, estimate in found.items()}


def alternative_intervals(
    labels: np.ndarray, probs: np.ndarray, patients: np.ndarray, *, threshold: float | None, seed: int = 0
) -> dict[str, list[Estimate]]:
    """Return the same figures with the interval methods that are not the default."""
    owners = patients if is_clustered(patients) else None
    methods = [method for method in get_args(AucMethod) if method != DEFAULT_AUC_METHOD]
    affordable = owners is None or n_resamples_for(len(labels)) == N_RESAMPLES
    found = {
        "auc": [
            auc_interval(labels, probs, method=method, patients=owners, rng=np.random.default_rng([seed, 0]))
            for method in methods
            if affordable or "bootstrap" not in method
        ]
    }
    if affordable:
        found["pr_auc"] = [
            pr_auc_interval(labels, probs, method=method, patients=owners, rng=np.random.default_rng([seed, 1]))
            for method in ("bootstrap", "bootstrap-percentile")
        ]
        found |= {
            f"partial_auc_{focus}": [partial_auc_interval(
                labels, probs, focus=focus, at_least=PARTIAL_AT_LEAST, method=method, patients=owners,
                rng=np.random.default_rng([seed, part]),
            )]
            for part, (focus, method) in enumerate(OTHER_PARTIAL, start=2)
        }  # fmt: skip
    if threshold is not None:
        exact = threshold_metrics(labels, probs >= threshold, owners, method="clopper-pearson")
        for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"):
            found[name] = [exact[name]]
    return found


def multiclass_metrics(table: Predictions, *, seed: int = 0, ordinal: bool = False) -> dict[str, Estimate]:
    """Return every metric of a model of three or more classes; the decision is the most probable class.

    Args:
        table: labelled predictions.
        ordinal: whether the classes have an order; adds quadratic weighted kappa.
    """
    labels, probs, patients = table.labels, table.probs, np.array(table.patient_ids)
    owners = patients if is_clustered(patients) else None
    decided = probs.argmax(axis=1)
    found = {
        "auc": macro_auc(labels, probs, owners),
        "auc_hand_till": hand_till(labels, probs, owners),
    }
    found |= {f"auc_class_{c}": estimate for c, estimate in enumerate(one_vs_rest(labels, probs, owners))}
    found["accuracy"] = clustered_proportion(decided == labels, patients)
    recalls = [clustered_proportion(decided[labels == c] == c, patients[labels == c]) for c in range(table.n_classes)]
    reason = absent_classes(labels, table.n_classes)
    found["balanced_accuracy"] = undefined(reason) if reason else balanced_accuracy(*recalls)
    for c, recall in enumerate(recalls):
        found[f"sensitivity_class_{c}"] = recall
        found[f"ppv_class_{c}"] = clustered_proportion(labels[decided == c] == c, patients[decided == c])
    if ordinal:
        found["weighted_kappa"] = weighted_kappa(labels, decided, table.n_classes, patients=owners,
                                               rng=np.random.default_rng([seed, 3]))  # fmt: skip
    return found | {"brier": brier(labels, probs, owners)}
