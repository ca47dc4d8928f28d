"""The evaluation stage: prediction tables → metrics, comparisons, thresholds and figures.

Thresholds come from OOF predictions and go to the test set unchanged. This is one of
the two stages that may open the test labels, and each opening is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from her2net.artefact import digest_file, digest_json, write_csv
from her2net.errors import MissingArtefactError, PredictionTableError, StaleArtefactError, join_problems
from her2net.evaluate.record import COMPARISON_COLUMNS, METRIC_COLUMNS, RESEMBLING, Evaluation, format_summary
from her2net.evaluate.tables import Options, evaluate_tables
from her2net.evaluate.thresholds import Rule, Threshold, Thresholds, choose_threshold
from her2net.paths import DatasetPaths
from her2net.predictions import Predictions, read_predictions

__all__ = [
    "COMPARISON_COLUMNS", "EVALUATION_VERSION", "METRIC_COLUMNS", "RESEMBLING", "Evaluation", "Options",
    "evaluate_dataset", "evaluate_files", "evaluate_tables", "evaluation_inputs", "fit_thresholds", "format_summary",
    "recorded_inputs", "write_evaluation",
]  # fmt: skip
EVALUATION_VERSION = 2  # raise when the same tables give other figures


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
    options: Options | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate the OOF and test tables of the models and write `evaluation/`.

    Args:
        test_labels: opens the sealed labels; called once, and only if there is a test table.
        optimistic: model -> remark that its figures carry.
        resembling_test_cases: test cases that look like a training case; figures without them are added.
        options: seed, prevalence, subgroups and the like.
    """
    made_from = evaluation_inputs(paths, models)
    tables: dict[tuple[str, str], Predictions] = {}
    for model in models:
        tables[model, "oof"] = read_predictions(paths.model(model) / "oof.csv")
        if f"{model}/test.csv" in made_from:
            tables[model, "test"] = read_predictions(paths.model(model) / "test.csv")
    if evaluation_inputs(paths, models) != made_from:
        raise StaleArtefactError(f"{paths.results}: a table was written while it was read. Run her2net_evaluate again.")
    if test_labels is not None and any(cohort == "test" for _, cohort in tables):
        labels = dict(test_labels())
        made_from["test_labels"] = digest_json(labels)
        for model, cohort in [key for key in tables if key[1] == "test"]:
            tables[model, cohort] = tables[model, cohort].with_labels(labels)
    thresholds = fit_thresholds(tables)
    tables |= _without(tables, set(resembling_test_cases))
    evaluation = evaluate_tables(tables, thresholds, optimistic, class_names, options)
    evaluation = evaluation.model_copy(update={"made_from": made_from})
    fitted = Thresholds(made_from=made_from, models=thresholds)
    write_evaluation(paths.evaluation, evaluation, fitted, tables)
    return evaluation


def _without(tables: Mapping[tuple[str, str], Predictions], left_out: set[str]) -> dict[tuple[str, str], Predictions]:
    if not left_out:
        return {}
    return {
        (model, RESEMBLING): table.take(np.array([case_id not in left_out for case_id in table.case_ids]))
        for (model, cohort), table in tables.items()
        if cohort == "test"
    }


def fit_thresholds(
    tables: Mapping[tuple[str, str], Predictions], *, rule: Rule = "youden", at_least: float = 0.9,
    cost_ratio: float = 1.0,
) -> dict[str, Threshold]:  # fmt: skip
    """Choose each two-class model's threshold on its OOF predictions."""
    chosen = {}
    for (model, cohort), table in tables.items():
        known = table.take(table.labels >= 0)
        if cohort == "oof" and table.n_classes == 2:
            value = choose_threshold(known.labels, known.probs[:, 1], rule, at_least=at_least, cost_ratio=cost_ratio)
            chosen[model] = Threshold(value=value, rule=rule, chosen_on="oof", n=len(known))
    return chosen


def write_evaluation(
    folder: Path, evaluation: Evaluation, thresholds: Thresholds, tables: Mapping[tuple[str, str], Predictions]
) -> None:
    """Write tables and figures; `metrics.json` last, because its presence says that the others are whole."""
    from her2net.evaluate.figures import write_figures

    write_csv(folder / "metrics.csv", METRIC_COLUMNS, (metric.model_dump() for metric in evaluation.metrics))
    write_csv(folder / "comparisons.csv", COMPARISON_COLUMNS, evaluation.comparisons)
    thresholds.save(folder / "thresholds.json")
    write_figures(folder / "figures", tables, {name: t.value for name, t in thresholds.models.items()})
    evaluation.save(folder / "metrics.json")


def evaluate_files(
    files: Sequence[Path], labels: Mapping[str, int] | None, folder: Path, *, options: Options | None = None
) -> Evaluation:
    """Evaluate prediction tables from anywhere; a model is named after its file.

    A table whose `fold` column is filled is out-of-fold and fits its own threshold; another is a test table and is
    read at 0.5.

    Raises:
        PredictionTableError: a table is not one, two have the same name, or no case has a label.
    """
    _refuse_same_names(files)
    tables: dict[tuple[str, str], Predictions] = {}
    for file in files:
        table = read_predictions(file, made_by="")
        table = table if labels is None else _labelled(file, table, labels)
        if not (table.labels >= 0).any():
            raise PredictionTableError(
                f"{file}: no case has a label. Fill the label column, or give --labels cases.csv."
            )
        tables[file.stem, "oof" if any(table.folds) else "test"] = table
    thresholds = fit_thresholds(tables)
    half = {
        model: Threshold(value=0.5, rule="given", chosen_on="nothing", n=0)
        for (model, cohort), table in tables.items()
        if cohort == "test" and table.n_classes == 2
    }
    names = [str(c) for c in range(max((table.n_classes for table in tables.values()), default=2))]
    remarks = dict.fromkeys(half, "threshold 0.5: no out-of-fold predictions to choose one on")
    evaluation = evaluate_tables(tables, half | thresholds, remarks, names, options)
    made_from = {file.name: digest_file(file) for file in files}
    evaluation = evaluation.model_copy(update={"made_from": made_from})
    write_evaluation(folder, evaluation, Thresholds(made_from=made_from, models=half | thresholds), tables)
    return evaluation


def _refuse_same_names(files: Sequence[Path]) -> None:
    repeated = sorted({file.stem for file in files if sum(other.stem == file.stem for other in files) > 1})
    if repeated:
        headline = f"A model is named after its file, and {', '.join(repeated)} occurs twice. Rename one."
        raise PredictionTableError(join_problems(headline, [str(file) for file in files if file.stem in repeated]))


def _labelled(file: Path, table: Predictions, labels: Mapping[str, int]) -> Predictions:
    """Put in the labels of another file; labels of the table stay where that file has none.

    Raises:
        PredictionTableError: the two disagree, or a label is not a class of the table.
    """
    given = table.with_labels(dict(labels)).labels
    problems = [
        f"{case_id}: label {new} is not a class of this table (0..{table.n_classes - 1})"
        for case_id, new in zip(table.case_ids, given, strict=True)
        if new >= table.n_classes
    ]
    problems += [
        f"{case_id}: label {old} in the table, {new} in the labels"
        for case_id, old, new in zip(table.case_ids, table.labels, given, strict=True)
        if old >= 0 <= new and old != new
    ]
    if problems:
        raise PredictionTableError(join_problems(f"{file}: its labels and those of --labels do not fit.", problems))
    merged = np.where(given >= 0, given, table.labels)
    return table.with_labels({c: int(v) for c, v in zip(table.case_ids, merged, strict=True) if v >= 0})
