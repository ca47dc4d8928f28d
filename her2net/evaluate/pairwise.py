"""Every pair of models on the cases that both predict: the rows of `comparisons.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from her2net.evaluate.bootstrap import n_resamples_for
from her2net.evaluate.calibration import mean_brier_statistic
from her2net.evaluate.comparisons import (
    Comparison,
    compare_aucs,
    detectable_auc_difference,
    holm,
    mcnemar_exact,
    paired_bootstrap,
)
from her2net.evaluate.estimate import NAN, Estimate, has_both_classes, is_clustered, two_sided_p, z_quantile
from her2net.evaluate.reclassification import integrated_discrimination, net_reclassification
from her2net.evaluate.thresholds import Threshold
from her2net.evaluate.weighted import pr_auc_statistic
from her2net.predictions import Predictions

Tables = Mapping[tuple[str, str], Predictions]


def finite_or_none(value: float) -> float | None:
    """Return the value as JSON holds it: NaN and infinity are null."""
    return float(value) if np.isfinite(value) else None


def compare_models(tables: Tables, thresholds: Mapping[str, Threshold], *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare every pair of two-class models, Holm-adjusted over the pairs of a cohort for each metric.

    Args:
        tables: (model, cohort) -> labelled predictions.
        thresholds: model -> operating point; accuracies are compared where both have one.
    """
    rows: list[dict[str, Any]] = []
    for cohort in dict.fromkeys(cohort for _, cohort in tables):
        models = [model for model, c in tables if c == cohort and tables[model, c].n_classes == 2]
        found = [
            {"model_a": a, "model_b": b, "cohort": cohort, **row}
            for a, b in combinations(models, 2)
            for row in _pair(tables[a, cohort], tables[b, cohort], thresholds.get(a), thresholds.get(b), seed)
        ]
        for metric in dict.fromkeys(row["metric"] for row in found):
            family = [row for row in found if row["metric"] == metric]
            adjusted = holm([NAN if row["p_value"] is None else row["p_value"] for row in family])
            for row, p in zip(family, adjusted, strict=True):
                row["p_adjusted"] = finite_or_none(p)
        rows += found
    return rows


def _pair(
    table_a: Predictions, table_b: Predictions, cut_a: Threshold | None, cut_b: Threshold | None, seed: int
) -> list[dict[str, Any]]:
    shared = np.array(sorted(set(table_a.case_ids) & set(table_b.case_ids)))
    if not len(shared):
        return []
    one, two = (table.take(np.isin(np.array(table.case_ids), shared)) for table in (table_a, table_b))
    labels, owners = one.labels, np.array(one.patient_ids)
    patients = owners if is_clustered(owners) else None
    a, b = one.probs[:, 1], two.probs[:, 1]
    found = {"auc": compare_aucs(labels, a, b, patients)}
    if cut_a is not None and cut_b is not None:
        right = [(p >= cut.value) == (labels == 1) for p, cut in ((a, cut_a), (b, cut_b))]
        found["accuracy"] = mcnemar_exact(*right)
    found |= _resampled(labels, a, b, patients, seed) | _reclassified(labels, a, b, patients)
    rows = [{"metric": metric, "n": len(shared), **_row(comparison)} for metric, comparison in found.items()]
    rows[0]["detectable_difference"] = finite_or_none(detectable_auc_difference(labels, a, b, patients))
    return rows


def _resampled(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray | None, seed: int
) -> dict[str, Comparison]:
    """Compare precision-recall areas and Brier scores, which have no closed test, by the paired bootstrap."""
    n = n_resamples_for(len(labels))
    makers = {"pr_auc": pr_auc_statistic, "brier": mean_brier_statistic}
    if not has_both_classes(labels):
        return {name: Comparison(NAN, NAN, NAN, NAN, NAN, "paired bootstrap", "one class only") for name in makers}
    return {
        name: paired_bootstrap(make(labels, a), make(labels, b), labels, patients, n_resamples=n,
                               rng=np.random.default_rng([seed, 6]))
        for name, make in makers.items()
    }  # fmt: skip


def _reclassified(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray | None
) -> dict[str, Comparison]:
    """Reclassification by model a as the new one and b as the old one, without categories."""
    nri = net_reclassification(labels, b, a, patients=patients)["nri"]
    idi = integrated_discrimination(labels, b, a, patients=patients)["idi"]
    return {"nri": _as_test(nri, "NRI, category-free, normal"), "idi": _as_test(idi, "IDI, normal")}


def _as_test(found: Estimate, test: str) -> Comparison:
    error = (found.ci_high - found.ci_low) / (2 * z_quantile())
    if not error > 0:
        return Comparison(found.value, NAN, NAN, NAN, NAN, test, found.reason or "no variance")
    z = found.value / error
    return Comparison(found.value, found.ci_low, found.ci_high, z, two_sided_p(z), test)


def _row(found: Comparison) -> dict[str, Any]:
    return {
        "difference": finite_or_none(found.difference), "ci_low": finite_or_none(found.ci_low),
        "ci_high": finite_or_none(found.ci_high), "statistic": finite_or_none(found.statistic),
        "p_value": finite_or_none(found.p_value), "p_adjusted": None, "test": found.test, "reason": found.reason,
    }  # fmt: skip
