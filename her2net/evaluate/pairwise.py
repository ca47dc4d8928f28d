"""Every pair of models on the cases that both predict: the rows of `comparisons.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from her2net.evaluate.bootstrap import n_resamples_for
from her2net.evaluate.calibration import squared_errors
from her2net.evaluate.comparisons import (
    Comparison,
    bonferroni,
    compare_aucs,
    compare_means,
    corrected_resampled_t,
    detectable_auc_difference,
    holm,
    mcnemar_exact,
    paired_bootstraps,
)
from her2net.evaluate.delong import auc
from her2net.evaluate.estimate import NAN, has_both_classes, is_clustered
from her2net.evaluate.multiclass import absent_classes, patients_of_classes
from her2net.evaluate.proportions import balanced_accuracy_formula, f1_formula, mcc_formula
from her2net.evaluate.reclassification import Reclassified, integrated_discrimination, net_reclassification
from her2net.evaluate.thresholds import Threshold
from her2net.evaluate.weighted import Statistic, confusion_statistic, pr_auc_statistic
from her2net.predictions import Predictions

Tables = Mapping[tuple[str, str], Predictions]
ONE_CLASS = "one class only"
FEWEST_OF_A_CLASS = 3
"""Patients; with fewer the test of the mean AUC rejects up to 8 % at 0.05 (benchmarks/small_cohorts.py)."""
FORMULAS = {"balanced_accuracy": balanced_accuracy_formula, "f1": f1_formula, "mcc": mcc_formula}


def finite_or_none(value: float) -> float | None:
    """Return the value as JSON holds it: NaN and infinity are null."""
    return float(value) if np.isfinite(value) else None


def compare_models(tables: Tables, thresholds: Mapping[str, Threshold], *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare every pair of models, adjusted over the pairs of a cohort for each metric (Holm, and Bonferroni).

    Args:
        tables: (model, cohort) -> labelled predictions.
        thresholds: model -> operating point; two-class accuracies are compared where both have one.
    """
    rows: list[dict[str, Any]] = []
    for cohort in dict.fromkeys(cohort for _, cohort in tables):
        models = [model for model, c in tables if c == cohort]
        found = [
            {"model_a": a, "model_b": b, "cohort": cohort, **row}
            for a, b in combinations(models, 2)
            for row in _pair(tables[a, cohort], tables[b, cohort], thresholds.get(a), thresholds.get(b), seed)
        ]
        for metric in dict.fromkeys(row["metric"] for row in found):
            family = [row for row in found if row["metric"] == metric]
            p_values = [NAN if row["p_value"] is None else row["p_value"] for row in family]
            for row, one, other in zip(family, holm(p_values), bonferroni(p_values), strict=True):
                row["p_adjusted"], row["p_bonferroni"] = finite_or_none(one), finite_or_none(other)
        rows += found
    return rows


def _pair(
    table_a: Predictions, table_b: Predictions, cut_a: Threshold | None, cut_b: Threshold | None, seed: int
) -> list[dict[str, Any]]:
    shared = np.array(sorted(set(table_a.case_ids) & set(table_b.case_ids)))
    apart = "" if table_a.n_classes == table_b.n_classes else f"{table_a.n_classes} classes against {table_b.n_classes}"
    if apart or not len(shared):
        nothing = Comparison(NAN, NAN, NAN, NAN, NAN, "DeLong paired", apart or "no case in common")
        return [{"metric": "auc", "n": len(shared), **_row(nothing)}]
    one, two = (table.take(np.isin(np.array(table.case_ids), shared)) for table in (table_a, table_b))
    owners = np.array(one.patient_ids)
    patients = np.unique(owners, return_inverse=True)[1] if is_clustered(owners) else None
    if one.n_classes > 2:
        found = _several_classes(one, two, patients)
        rows = [{"metric": metric, "n": len(shared), **_row(comparison)} for metric, comparison in found.items()]
        if not found["auc"].reason:
            rows[0]["detectable_difference"] = finite_or_none(detectable_auc_difference(one.labels, one.probs, two.probs, patients))
        return rows
    labels, a, b = one.labels, one.probs[:, 1], two.probs[:, 1]
    found = {"auc": compare_aucs(labels, a, b, patients)}
    found["brier"] = compare_means(squared_errors(labels, a), squared_errors(labels, b), patients)
    resampled = {"pr_auc": (pr_auc_statistic(labels, a), pr_auc_statistic(labels, b))}
    if cut_a is not None and cut_b is not None:
        called_a, called_b = a >= cut_a.value, b >= cut_b.value
        found |= _decided(labels, called_a, called_b, patients)
        resampled |= {name: (confusion_statistic(labels, called_a, formula), confusion_statistic(labels, called_b, formula))
                      for name, formula in FORMULAS.items()}  # fmt: skip
    found |= _resampled(resampled, labels, patients, seed, "" if has_both_classes(labels) else ONE_CLASS)
    found |= _reclassified(labels, a, b, patients)
    if any(one.folds) and any(two.folds):
        found["auc_across_folds"] = _across_folds(one, two)
    sizes = {"sensitivity": int((labels == 1).sum()), "specificity": int((labels == 0).sum())}
    rows = [{"metric": name, "n": sizes.get(name, len(shared)), **_row(comparison)} for name, comparison in found.items()]
    rows[0]["detectable_difference"] = finite_or_none(detectable_auc_difference(labels, a, b, patients))
    return rows


def _decided(
    labels: np.ndarray, called_a: np.ndarray, called_b: np.ndarray, patients: np.ndarray | None
) -> dict[str, Comparison]:
    """Compare the decisions (n,) of two models: rates by McNemar's exact test, each among the cases it is a rate of."""
    positive = labels == 1
    right_a, right_b = called_a == positive, called_b == positive
    groups = {"accuracy": np.ones(len(labels), dtype=bool), "sensitivity": positive, "specificity": ~positive}
    return {
        name: mcnemar_exact(right_a[among], right_b[among], None if patients is None else patients[among])
        for name, among in groups.items()
    }


def _several_classes(one: Predictions, two: Predictions, patients: np.ndarray | None) -> dict[str, Comparison]:
    labels, probs = one.labels, (one.probs, two.probs)
    right_a, right_b = (p.argmax(axis=1) == labels for p in probs)
    absent = absent_classes(labels, one.n_classes)
    found = {"auc": Comparison(NAN, NAN, NAN, NAN, NAN, "DeLong paired", absent) if absent else compare_aucs(labels, *probs, patients)}
    few = _few_of_a_class(labels, patients, one.n_classes)
    if few and not absent:
        found["auc"] = replace(found["auc"], ci_low=NAN, ci_high=NAN, statistic=NAN, p_value=NAN, test="DeLong paired", reason=few)
    found["accuracy"] = mcnemar_exact(right_a, right_b, patients)
    errors = [squared_errors(labels, p) for p in probs]
    return found | {"brier": compare_means(errors[0], errors[1], patients)}


def _few_of_a_class(labels: np.ndarray, patients: np.ndarray | None, n_classes: int) -> str:
    """Say which class has too few patients for a test; "" if none."""
    counts = patients_of_classes(labels, patients, n_classes)
    few = counts.index(min(counts))
    if counts[few] >= FEWEST_OF_A_CLASS:
        return ""
    return f"too few to test: {FEWEST_OF_A_CLASS} patients are needed, there are {counts[few]} of class {few}"


def _resampled(
    statistics: Mapping[str, tuple[Statistic, Statistic]], labels: np.ndarray, patients: np.ndarray | None, seed: int,
    reason: str,
) -> dict[str, Comparison]:  # fmt: skip
    """Compare what has no closed test by the paired bootstrap, unless there is a reason why not."""
    if reason:
        return {name: Comparison(NAN, NAN, NAN, NAN, NAN, "paired bootstrap", reason) for name in statistics}
    n, rng = n_resamples_for(len(labels)), np.random.default_rng([seed, 6])
    return paired_bootstraps(statistics, labels, patients, n_resamples=n, rng=rng)


def _across_folds(one: Predictions, two: Predictions) -> Comparison:
    """Compare AUCs fold by fold; folds share training patients, so they are not taken for independent."""
    test = "corrected resampled t"
    if one.folds != two.folds:
        return Comparison(NAN, NAN, NAN, NAN, NAN, test, "the models were trained on other folds")
    folds, owners = np.array(one.folds), np.array(one.patient_ids)
    names = sorted(set(one.folds))
    differences = np.array([auc(one.labels[folds == k], one.probs[folds == k, 1])
                            - auc(two.labels[folds == k], two.probs[folds == k, 1]) for k in names])  # fmt: skip
    if not np.isfinite(differences).all():
        return Comparison(NAN, NAN, NAN, NAN, NAN, test, "a fold holds one class only")
    n_test = len(np.unique(owners)) / len(names)
    return corrected_resampled_t(differences, (len(names) - 1) * n_test, n_test)


def _reclassified(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray | None
) -> dict[str, Comparison]:
    """Reclassification by model a as the new one and b as the old one, without categories."""
    nri = net_reclassification(labels, b, a, patients=patients)
    idi = integrated_discrimination(labels, b, a, patients=patients)["idi"]
    return {name: _as_test(part, "NRI, category-free") for name, part in nri.items()} | {"idi": _as_test(idi, "IDI")}


def _as_test(found: Reclassified, name: str) -> Comparison:
    e = found.estimate
    z = e.value / found.error if found.error > 0 else NAN
    return Comparison(e.value, e.ci_low, e.ci_high, z, found.p_value, f"{name}, {e.ci_method}", e.reason)


def _row(found: Comparison) -> dict[str, Any]:
    return {
        "difference": finite_or_none(found.difference), "ci_low": finite_or_none(found.ci_low),
        "ci_high": finite_or_none(found.ci_high), "statistic": finite_or_none(found.statistic),
        "p_value": finite_or_none(found.p_value), "p_adjusted": None, "test": found.test, "reason": found.reason,
    }  # fmt: skip
