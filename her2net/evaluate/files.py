"""Write an evaluation to its folder: tables that anyone can open, the figures, and `metrics.json` last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from her2net.artefact import write_csv
from her2net.evaluate.cohort_tables import TABLE1_FILES, write_cohort_tables
from her2net.evaluate.estimate import has_both_classes
from her2net.evaluate.facts import Facts
from her2net.evaluate.figures import DRAWERS, FORMATS, write_figures
from her2net.evaluate.patients import patient_columns, patient_rows
from her2net.evaluate.record import (
    CERTAINTY_COLUMNS,
    COMPARISON_COLUMNS,
    COMPARISON_DETAIL_COLUMNS,
    METRIC_COLUMNS,
    METRIC_DETAIL_COLUMNS,
    SUBGROUP_COLUMNS,
    Evaluation,
)
from her2net.evaluate.thresholds import Thresholds
from her2net.evaluate.utility import clinical_impact, decision_curve
from her2net.predictions import Predictions

PATIENTS = "patients.csv"
DECISION_COLUMNS = (
    "model", "cohort", "threshold", "net_benefit", "ci_low", "ci_high", "treat_all", "treat_none", "gain",
    "called_per_1000", "called_low", "called_high", "true_positive_per_1000", "true_positive_low", "true_positive_high",
)  # fmt: skip


def write_evaluation(
    folder: Path, evaluation: Evaluation, thresholds: Thresholds, tables: Mapping[tuple[str, str], Predictions],
    facts: Facts | None = None, write_more: Callable[[Evaluation], None] | None = None,
) -> None:  # fmt: skip
    """Write tables and figures; `metrics.json` last, because its presence says that the others are whole.

    What an earlier evaluation left here and this one does not make is removed.

    Args:
        write_more: writes what else belongs to the evaluation.
    """
    (folder / "metrics.json").unlink(missing_ok=True)
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, (metric.model_dump() for metric in evaluation.metrics))
    write_csv(folder / "comparisons.csv", COMPARISON_COLUMNS, evaluation.comparisons)
    write_csv(folder / "metrics_detail.csv", METRIC_DETAIL_COLUMNS, _metric_details(evaluation))
    write_csv(folder / "comparisons_detail.csv", COMPARISON_DETAIL_COLUMNS, _comparison_details(evaluation))
    write_csv(folder / "certainty.csv", CERTAINTY_COLUMNS, (row.model_dump() for row in evaluation.certainty))
    write_csv(folder / "decision_curve.csv", DECISION_COLUMNS, _decision_rows(tables))
    thresholds.save(folder / "thresholds.json")
    pooled = list(patient_rows(tables))
    if pooled:
        write_csv(folder / PATIENTS, patient_columns(len(evaluation.class_names)), pooled)
    else:
        (folder / PATIENTS).unlink(missing_ok=True)
    made = []
    if evaluation.subgroups:
        write_csv(folder / "subgroups.csv", SUBGROUP_COLUMNS, (row.model_dump() for row in evaluation.subgroups))
        made.append(folder / "subgroups.csv")
    if facts is not None:
        made += write_cohort_tables(folder, facts, evaluation.class_names)
    cuts = {name: threshold.value for name, threshold in thresholds.models.items()}
    made += write_figures(folder / "figures", tables, cuts, evaluation.class_names)
    _remove_stale(folder, set(made))
    if write_more is not None:
        write_more(evaluation)
    evaluation.save(folder / "metrics.json")


def _metric_details(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Every figure with its default interval, then those of the other methods."""
    for rows, default in ((evaluation.metrics, "yes"), (evaluation.alternatives, "no")):
        for metric in rows:
            yield {**metric.model_dump(), "default": default}


def _comparison_details(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for row in evaluation.comparisons:
        yield {**row, "p_holm": row["p_adjusted"]}


def _decision_rows(tables: Mapping[tuple[str, str], Predictions]) -> Iterator[dict[str, Any]]:
    """The decision curve and, at the same thresholds, the clinical impact per 1,000."""
    for (model, cohort), table in tables.items():
        known = table.take(table.labels >= 0)
        if known.n_classes > 2 or not has_both_classes(known.labels):
            continue
        probs, patients = known.probs[:, 1], np.array(known.patient_ids)
        curve = decision_curve(known.labels, probs, patients)
        impact = clinical_impact(known.labels, probs, patients)
        for k, threshold in enumerate(curve.thresholds):
            yield {
                "model": model, "cohort": cohort, "threshold": threshold, "net_benefit": curve.model[k],
                "ci_low": curve.model_low[k], "ci_high": curve.model_high[k], "treat_all": curve.treat_all[k],
                "treat_none": 0.0, "gain": curve.gain[k], "called_per_1000": impact.called[k],
                "called_low": impact.called_limits[0][k], "called_high": impact.called_limits[1][k],
                "true_positive_per_1000": impact.true_positive[k],
                "true_positive_low": impact.true_positive_limits[0][k],
                "true_positive_high": impact.true_positive_limits[1][k],
            }  # fmt: skip


def _remove_stale(folder: Path, made: set[Path]) -> None:
    names = [folder / name for name in ("subgroups.csv", *TABLE1_FILES)]
    names += [path for kind in DRAWERS for suffix in FORMATS for path in (folder / "figures").glob(f"{kind}_*.{suffix}")]
    for path in names:
        if path not in made:
            path.unlink(missing_ok=True)
