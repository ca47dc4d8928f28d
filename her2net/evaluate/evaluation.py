"""The evaluation stage: prediction tables → metrics, comparisons and thresholds.

Thresholds come from OOF predictions and go to the test set unchanged. This is one of
the two stages that may open the test labels, and each opening is recorded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from her2net.artefact import Artefact, Strict, digest_file, digest_json, read_text, write_csv
from her2net.errors import MissingArtefactError, PredictionTableError
from her2net.evaluate.discrimination import Estimate, auc_estimate, compare_aucs, macro_auc
from her2net.evaluate.proportions import Confusion, count_confusion, threshold_metrics
from her2net.evaluate.thresholds import Threshold, Thresholds, choose_threshold
from her2net.paths import DatasetPaths
from her2net.predictions import Predictions, read_predictions

EVALUATION_VERSION = 1  # raise when the same tables give other figures
METRIC_COLUMNS = ("model", "cohort", "metric", "value", "ci_low", "ci_high", "ci_method", "n", "n_positive", "threshold")
COMPARISON_COLUMNS = ("model_a", "model_b", "cohort", "metric", "difference", "ci_low", "ci_high", "statistic", "p_value",
                      "p_adjusted", "test")  # fmt: skip
RESEMBLING = "test-without-resembling"


class Metric(Strict):
    """One row of `metrics.csv`; `null` where undefined, with the reason."""

    model: str
    cohort: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_method: str
    n: int
    n_positive: int
    threshold: float | None
    reason: str = ""
    remark: str = ""


class Evaluation(Artefact):
    """`metrics.json`: every figure, and what it has to be read with.

    Attributes:
        remarks: model -> why its figures are optimistic, if they are.
        comparisons: rows of `comparisons.csv`.
    """

    MADE_BY: ClassVar[str] = "her2net_evaluate"

    class_names: list[str]
    remarks: dict[str, str]
    metrics: list[Metric]
    comparisons: list[dict[str, Any]]


def evaluation_inputs(paths: DatasetPaths, models: Sequence[str]) -> dict[str, str]:
    """Digests of the tables that are evaluated.

    Raises:
        MissingArtefactError: a model has no OOF table; names the command that makes it.
    """
    made_from = {"version": str(EVALUATION_VERSION)}
    for model in models:
        for part in ("oof", "test"):
            path = paths.model(model) / f"{part}.csv"
            if path.exists():
                made_from[f"{model}/{part}.csv"] = digest_file(path)
            elif part == "oof":
                command = "her2net_fuse" if model == "fusion" else f"her2net_ensemble {model}"
                raise MissingArtefactError(f"{path}: no such file. Run {command} first.")
    return made_from


def recorded_inputs(paths: DatasetPaths) -> dict[str, str]:
    """Digests of the tables that the evaluation on disk was made from, without those of labels."""
    made_from = Evaluation.load(paths.evaluation / "metrics.json").made_from
    return {name: digest for name, digest in made_from.items() if name != "test_labels"}


def evaluate_dataset(
    paths: DatasetPaths, models: Sequence[str], *, test_labels: Callable[[], Mapping[str, int]] | None,
    optimistic: Mapping[str, str], resembling_test_cases: Collection[str], class_names: Sequence[str],
) -> Evaluation:  # fmt: skip
    """Evaluate the OOF and test tables of the models and write `evaluation/`.

    Args:
        test_labels: opens the sealed labels; called once, and only if there is a test table.
        optimistic: model -> remark that its figures carry.
        resembling_test_cases: test cases that look like a training case; figures without them are added.
    """
    made_from = evaluation_inputs(paths, models)
    tables: dict[tuple[str, str], Predictions] = {}
    for model in models:
        tables[model, "oof"] = read_predictions(paths.model(model) / "oof.csv")
        if f"{model}/test.csv" in made_from:
            tables[model, "test"] = read_predictions(paths.model(model) / "test.csv")
    if test_labels is not None and any(cohort == "test" for _, cohort in tables):
        labels = dict(test_labels())
        made_from["test_labels"] = digest_json(labels)
        for model, cohort in [key for key in tables if key[1] == "test"]:
            tables[model, cohort] = tables[model, cohort].with_labels(labels)
    thresholds = fit_thresholds(tables)
    tables |= _without(tables, set(resembling_test_cases))
    evaluation = evaluate_tables(tables, thresholds, optimistic, class_names).model_copy(update={"made_from": made_from})
    write_evaluation(paths.evaluation, evaluation, Thresholds(made_from=made_from, models=thresholds))
    return evaluation


def _without(tables: Mapping[tuple[str, str], Predictions], left_out: set[str]) -> dict[tuple[str, str], Predictions]:
    if not left_out:
        return {}
    return {
        (model, RESEMBLING): table.take(np.array([case_id not in left_out for case_id in table.case_ids]))
        for (model, cohort), table in tables.items()
        if cohort == "test"
    }


def fit_thresholds(tables: Mapping[tuple[str, str], Predictions]) -> dict[str, Threshold]:
    """Choose each two-class model's threshold on its OOF predictions."""
    chosen = {}
    for (model, cohort), table in tables.items():
        known = table.take(table.labels >= 0)
        if cohort == "oof" and table.n_classes == 2:
            value = choose_threshold(known.labels, known.probs[:, 1])
            chosen[model] = Threshold(value=value, rule="youden", chosen_on="oof", n=len(known))
    return chosen


def evaluate_tables(
    tables: Mapping[tuple[str, str], Predictions], thresholds: Mapping[str, Threshold], optimistic: Mapping[str, str],
    class_names: Sequence[str],
) -> Evaluation:  # fmt: skip
    """Compute every figure of tables in memory; cases without a label are left out.

    Args:
        tables: (model, cohort) -> predictions with labels.
    """
    known = {key: table.take(table.labels >= 0) for key, table in tables.items()}
    known = {key: table for key, table in known.items() if len(table)}
    metrics = [
        metric
        for (model, cohort), table in known.items()
        for metric in _table_metrics(model, cohort, table, thresholds.get(model), _remark(optimistic, model, cohort))
    ]
    return Evaluation(class_names=list(class_names), remarks=dict(optimistic), metrics=metrics,
                      comparisons=_comparisons(known))


def _remark(optimistic: Mapping[str, str], model: str, cohort: str) -> str:
    """A best epoch spoils the OOF figures; a fusion fitted on the test cases spoils the test figures."""
    remark = optimistic.get(model, "")
    spoiled = "test" if remark.startswith("apparent") else "oof"
    return remark if cohort.startswith(spoiled) else ""


def _table_metrics(
    model: str, cohort: str, table: Predictions, threshold: Threshold | None, remark: str
) -> list[Metric]:
    labels, patients = table.labels, np.array(table.patient_ids)
    rows: list[tuple[str, Estimate, float | None]] = []
    if table.n_classes == 2:
        rows.append(("auc", auc_estimate(labels, table.probs[:, 1], patients), None))
    else:
        value = macro_auc(labels, table.probs)
        reason = "no interval for the mean over classes" if value == value else "a class is absent"
        rows.append(("auc", Estimate(value, float("nan"), float("nan"), "", reason), None))
    if threshold is not None and table.n_classes == 2:
        counts = count_confusion(labels, table.probs[:, 1], threshold.value)
        rows += [(name, estimate, threshold.value) for name, estimate in threshold_metrics(counts).items()]
    elif table.n_classes > 2:
        right = int((table.probs.argmax(1) == labels).sum())
        rows.append(("accuracy", threshold_metrics(Confusion(right, len(table) - right, 0, 0))["accuracy"], None))
    n_positive = int((labels == 1).sum()) if table.n_classes == 2 else int((labels > 0).sum())
    return [
        Metric(
            model=model, cohort=cohort, metric=name, value=_finite(estimate.value), ci_low=_finite(estimate.ci_low),
            ci_high=_finite(estimate.ci_high), ci_method=estimate.ci_method, n=len(table), n_positive=n_positive,
            threshold=cut, reason=estimate.reason, remark=remark,
        )
        for name, estimate, cut in rows
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _comparisons(tables: Mapping[tuple[str, str], Predictions]) -> list[dict[str, Any]]:
    """Compare every pair of two-class models on the cases both predict, Holm-adjusted within a cohort."""
    rows: list[dict[str, Any]] = []
    for cohort in dict.fromkeys(cohort for _, cohort in tables):
        models = [model for model, c in tables if c == cohort and tables[model, c].n_classes == 2]
        pairs = [_compare(a, b, cohort, tables[a, cohort], tables[b, cohort]) for a, b in combinations(models, 2)]
        rows += _adjust([pair for pair in pairs if pair is not None])
    return rows


def _compare(a: str, b: str, cohort: str, table_a: Predictions, table_b: Predictions) -> dict[str, Any] | None:
    shared = sorted(set(table_a.case_ids) & set(table_b.case_ids))
    if not shared:
        return None
    rows_a, rows_b = (t.take(np.isin(np.array(t.case_ids), shared)) for t in (table_a, table_b))
    found = compare_aucs(rows_a.labels, rows_a.probs[:, 1], rows_b.probs[:, 1], np.array(rows_a.patient_ids))
    return {
        "model_a": a, "model_b": b, "cohort": cohort, "metric": "auc", "difference": _finite(found.difference),
        "ci_low": _finite(found.ci_low), "ci_high": _finite(found.ci_high), "statistic": _finite(found.statistic),
        "p_value": _finite(found.p_value), "test": f"{found.test}, n={len(shared)}",
    }  # fmt: skip


def _adjust(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add Holm-adjusted p-values; undefined ones stay so.

    Source:
        Holm 1979, Scand J Stat 6:65.
    """
    ordered = sorted((row for row in rows if row["p_value"] is not None), key=lambda row: row["p_value"])
    running = 0.0
    adjusted = {}
    for i, row in enumerate(ordered):
        running = max(running, min(1.0, row["p_value"] * (len(ordered) - i)))
        adjusted[id(row)] = running
    return [row | {"p_adjusted": adjusted.get(id(row))} for row in rows]


def write_evaluation(folder: Path, evaluation: Evaluation, thresholds: Thresholds) -> None:
    """Write the tables; `metrics.json` last, because its presence says that the others are whole."""
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, (metric.model_dump() for metric in evaluation.metrics))
    write_csv(folder / "comparisons.csv", COMPARISON_COLUMNS, evaluation.comparisons)
    thresholds.save(folder / "thresholds.json")
    evaluation.save(folder / "metrics.json")


def evaluate_files(files: Sequence[Path], labels: Mapping[str, int] | None, folder: Path) -> Evaluation:
    """Evaluate prediction tables from anywhere; a model is named after its file.

    A table whose `fold` column is filled is out-of-fold and fits its own threshold; another is a test table and is
    read at 0.5.

    Raises:
        PredictionTableError: a table is not one, or no case has a label.
    """
    tables: dict[tuple[str, str], Predictions] = {}
    for file in files:
        table = read_predictions(file, made_by="")
        table = table if labels is None else table.with_labels(dict(labels))
        if not (table.labels >= 0).any():
            raise PredictionTableError(f"{file}: no case has a label. Fill the label column, or give --labels cases.csv.")
        tables[file.stem, "oof" if any(table.folds) else "test"] = table
    thresholds = fit_thresholds(tables)
    half = {m: Threshold(value=0.5, rule="youden", chosen_on="oof", n=0) for m, c in tables if c == "test"}
    names = [str(c) for c in range(max(table.n_classes for table in tables.values()))]
    evaluation = evaluate_tables(tables, half | thresholds, {}, names)
    made_from = {file.name: digest_file(file) for file in files}
    evaluation = evaluation.model_copy(update={"made_from": made_from})
    write_evaluation(folder, evaluation, Thresholds(made_from=made_from, models=half | thresholds))
    return evaluation


def format_summary(folder: Path) -> str:
    """Return `metrics.csv` as a short table: AUC, sensitivity and specificity per model and cohort."""
    rows = list(csv.DictReader(io.StringIO(read_text(folder / "metrics.csv", made_by="her2net_evaluate"))))
    cells = {(row["model"], row["cohort"], row["metric"]): row for row in rows}
    remarks = Evaluation.load(folder / "metrics.json").metrics
    flagged = {(metric.model, metric.cohort): metric.remark for metric in remarks if metric.remark}
    lines = [f"{'model':<12}{'cohort':<25}{'n':>5}{'pos':>5}  {'AUC [95 % CI]':<24}{'sensitivity':<24}{'specificity':<24}"]
    for model, cohort in dict.fromkeys((row["model"], row["cohort"]) for row in rows):
        n = cells[model, cohort, "auc"]["n"], cells[model, cohort, "auc"]["n_positive"]
        shown = [_shown(cells.get((model, cohort, name))) for name in ("auc", "sensitivity", "specificity")]
        remark = flagged.get((model, cohort), "")
        line = f"{model:<12}{cohort:<25}{n[0]:>5}{n[1]:>5}  {shown[0]:<24}{shown[1]:<24}{shown[2]:<24}{remark}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _shown(row: Mapping[str, str] | None) -> str:
    if row is None or not row["value"]:
        return "undefined" if row else ""
    text = f"{float(row['value']):.3f}"
    return f"{text} [{float(row['ci_low']):.3f}, {float(row['ci_high']):.3f}]" if row["ci_low"] else text
