"""The evaluation stage: prediction tables → metrics, comparisons, thresholds and figures.

Thresholds come from OOF predictions and go to the test set unchanged. This is one of
the two stages that may open the test labels, and each opening is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from her2net.artefact import digest_file, digest_json
from her2net.errors import MissingArtefactError, PredictionTableError, StaleArtefactError, join_problems
from her2net.evaluate.facts import Facts, facts_digest, subgroup_levels
from her2net.evaluate.files import write_evaluation
from her2net.evaluate.labels import GivenLabels, put_in_labels
from her2net.evaluate.record import (
    COMPARISON_COLUMNS,
    METRIC_COLUMNS,
    RESEMBLING,
    Evaluation,
    Settings,
    format_summary,
)
from her2net.evaluate.side_by_side import (
    cohort_of,
    compose_ids,
    refuse_contradictions,
    refuse_mixture,
    refuse_same_names,
    refuse_shared_patients,
    share_patients,
)
from her2net.evaluate.tables import Options, evaluate_tables, options_of
from her2net.evaluate.thresholds import Rule, Threshold, Thresholds, choose_rule_in_out, choose_threshold
from her2net.paths import DatasetPaths
from her2net.predictions import Predictions, read_predictions

__all__ = [
    "COMPARISON_COLUMNS", "EVALUATION_VERSION", "METRIC_COLUMNS", "RESEMBLING", "Evaluation", "GivenLabels", "Options",
    "choose_thresholds", "evaluate_dataset", "evaluate_files", "evaluate_tables", "evaluation_inputs", "fit_thresholds",
    "format_summary", "recorded_inputs", "recorded_options", "refuse_without_effect", "write_evaluation",
]  # fmt: skip
EVALUATION_VERSION = 11  # raise when the same tables give other figures
HALF = "threshold 0.5: no out-of-fold predictions to choose one on"


def evaluation_inputs(
    paths: DatasetPaths, models: Sequence[str], facts: Facts | None = None, label_cells: str = "",
    optimistic: Mapping[str, str] | None = None, ordinal: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Digests of the tables that are evaluated, and of what the dataset, its sealed labels and the models say for that.

    Args:
        label_cells: digest of the label cells of the test cases, which says that labels were filled in or corrected;
            empty without test cases.
        optimistic: model -> remark that its figures carry; empty for none.
        ordinal: whether the dataset gives its classes an order.

    Raises:
        MissingArtefactError: a model has no OOF table; names the command that makes it.
    """
    made_from = {"version": str(EVALUATION_VERSION)} | ({} if facts is None else {"covariates": facts_digest(facts)})
    made_from |= {"test_label_cells": label_cells} if label_cells else {}
    remarks = {model: remark for model, remark in (optimistic or {}).items() if remark}
    made_from |= {"remarks": digest_json(remarks)} if remarks else {}
    made_from |= {"ordinal": str(ordinal)} if ordinal else {}
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
    """Digests of what the evaluation on disk was made from, without that of the labels once opened: nobody opens them to compare."""
    found = Evaluation.load(paths.evaluation / "metrics.json")
    made_from = {name: digest for name, digest in found.made_from.items() if name != "test_labels"}
    return made_from | {"class_names": digest_json(found.class_names)}


def recorded_options(paths: DatasetPaths) -> Options:
    """Return the options that the evaluation on disk was made with; the defaults where there is none."""
    try:
        return options_of(Evaluation.load(paths.evaluation / "metrics.json").settings)
    except MissingArtefactError:
        return options_of(Settings())


def evaluate_dataset(
    paths: DatasetPaths, models: Sequence[str], *, test_labels: Callable[[], Mapping[str, int]] | None,
    optimistic: Mapping[str, str], resembling_test_cases: Collection[str], class_names: Sequence[str],
    options: Options | None = None, facts: Facts | None = None, label_cells: str = "", ordinal: bool = False,
    write_more: Callable[[Evaluation], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate the OOF and test tables of the models and write `evaluation/`.

    Args:
        test_labels: opens the sealed labels; called once, and only if there is a test table.
        optimistic: model -> remark that its figures carry.
        resembling_test_cases: test cases that look like a training case; figures without them are added.
        options: seed, prevalence, threshold rule and the like.
        facts: covariates and site of each case, for subgroups and Table 1.
        label_cells: digest of the label cells of the test cases, taken before they are opened; see `evaluation_inputs`.
        ordinal: whether the dataset gives its classes an order, asked for or not; the settings record what was asked for.
        write_more: see `write_evaluation`.
    """
    asked = options or Options()
    options = _with_subgroups(replace(asked, ordinal=asked.ordinal or ordinal), facts)
    made_from = evaluation_inputs(paths, models, facts, label_cells, optimistic, ordinal)
    tables: dict[tuple[str, str], Predictions] = {}
    for model in models:
        tables[model, "oof"] = read_predictions(paths.model(model) / "oof.csv")
        if f"{model}/test.csv" in made_from:
            tables[model, "test"] = read_predictions(paths.model(model) / "test.csv")
    if evaluation_inputs(paths, models, facts, label_cells, optimistic, ordinal) != made_from:
        raise StaleArtefactError(f"{paths.results}: a table was written while it was read. Run her2net_evaluate again.")
    if test_labels is not None and any(cohort == "test" for _, cohort in tables):
        labels = dict(test_labels())
        made_from["test_labels"] = digest_json(labels)
        for model, cohort in [key for key in tables if key[1] == "test"]:
            tables[model, cohort] = tables[model, cohort].with_labels(labels)
        facts = facts.with_labels(labels) if facts is not None else None
    thresholds = choose_thresholds(tables, options)
    tables |= _without(tables, set(resembling_test_cases))
    evaluation = evaluate_tables(tables, thresholds, optimistic, class_names, options)
    evaluation = evaluation.model_copy(update={"made_from": made_from, "settings": asked.settings})
    write_evaluation(paths.evaluation, evaluation, Thresholds(made_from=made_from, models=thresholds), tables, facts, write_more)
    return evaluation


def _with_subgroups(options: Options, facts: Facts | None) -> Options:
    if facts is None:
        return options
    return replace(options, subgroups={**subgroup_levels(facts), **options.subgroups})


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
            labels, probs = known.labels, known.probs[:, 1]
            value = choose_threshold(labels, probs, rule, at_least=at_least, cost_ratio=cost_ratio)
            parameter = {"youden": None, "cost": cost_ratio}.get(rule, at_least)
            low, high = choose_rule_in_out(labels, probs)
            chosen[model] = Threshold(value=value, rule=rule, chosen_on="oof", n=len(known), parameter=parameter,
                                      rule_out=low, rule_in=high)  # fmt: skip
    return chosen


def choose_thresholds(tables: Mapping[tuple[str, str], Predictions], options: Options) -> dict[str, Threshold]:
    """Fit the rule of the options, or take the threshold given; the pair for ruling out and in is fitted either way."""
    if options.rule != "given":
        bound = {} if options.parameter is None else {"at_least": options.parameter, "cost_ratio": options.parameter}
        return fit_thresholds(tables, rule=options.rule, **bound)
    fitted, value = fit_thresholds(tables), 0.5 if options.parameter is None else options.parameter
    given = {"value": value, "rule": "given", "chosen_on": "nothing", "parameter": None, "n": 0}
    models = {model for (model, _), table in tables.items() if table.n_classes == 2}
    bare = Threshold(value=value, rule="given", chosen_on="nothing", n=0)
    return {model: fitted.get(model, bare).model_copy(update=given) for model in sorted(models)}


def evaluate_files(
    files: Sequence[Path], labels: Mapping[str, int] | GivenLabels | None, folder: Path, *,
    options: Options | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate prediction tables from anywhere; a model is named after its file.

    A table whose `fold` column is filled is out-of-fold and fits the threshold of its model; another is a test table.
    It is read at the threshold of the out-of-fold table of the same name (in another folder) if there is one, else at the
    threshold given, else at 0.5.

    Args:
        labels: case id -> class number, -1 where it is not known, for tables without labels; with names of the
            classes, patients and covariates where `read_labels` found them.

    Raises:
        PredictionTableError: a table is not one, two have the same name or contradict each other, a case is unknown to
            the labels, no case has a label, or a threshold rule has no out-of-fold predictions to be fitted on.
    """
    given = labels if isinstance(labels, GivenLabels) else GivenLabels(dict(labels or {}))
    tables: dict[tuple[str, str], Predictions] = {}
    read = [(file, compose_ids(file, read_predictions(file, made_by=""))) for file in files]
    for file, table in read:
        refuse_mixture(file, table)
    refuse_same_names(read)
    for file, table in read:
        table = table if labels is None else put_in_labels(file, table, given)
        if not (table.labels >= 0).any():
            raise PredictionTableError(
                f"{file}: no case has a label. Fill the label column, or give --labels cases.csv."
            )
        tables[file.stem, cohort_of(table)] = table
    tables = share_patients(tables)
    refuse_contradictions(tables)
    refuse_shared_patients(tables)
    facts = _facts_of(tables, given)
    options = _with_subgroups(options or Options(), facts)
    refuse_without_effect({table.n_classes for table in tables.values()}, options)
    remarks = _refuse_unfitted_rule(tables, options)
    thresholds = choose_thresholds(tables, options)
    half = Threshold(value=0.5, rule="given", chosen_on="nothing", n=0)
    thresholds = dict.fromkeys(remarks, half) | thresholds
    names = given.class_names or [str(c) for c in range(max(table.n_classes for table in tables.values()))]
    evaluation = evaluate_tables(tables, thresholds, remarks, names, options)
    made_from = {f"{file.stem}/{cohort_of(table)}.csv": digest_file(file) for file, table in read}
    made_from |= {} if labels is None else {"labels": digest_json(given.labels)}
    evaluation = evaluation.model_copy(update={"made_from": made_from})
    write_evaluation(folder, evaluation, Thresholds(made_from=made_from, models=thresholds), tables, facts)
    return evaluation


def _facts_of(tables: Mapping[tuple[str, str], Predictions], given: GivenLabels) -> Facts | None:
    """Return the facts of the cases that any table predicts."""
    if given.facts is None:
        return None
    predicted = {case_id for table in tables.values() for case_id in table.case_ids}
    facts = replace(given.facts, cases=tuple(c for c in given.facts.cases if c.case_id in predicted))
    return facts.with_labels(given.labels)


def refuse_without_effect(n_classes: Collection[int], options: Options) -> None:
    """Refuse what the user asked for where no model could heed it.

    Args:
        n_classes: of each model.

    Raises:
        PredictionTableError: a threshold rule or a prevalence for three or more classes alone, an order for two alone.
    """
    problems = []
    if 2 not in n_classes and (options.rule, options.parameter) != ("youden", None):
        problems.append("--threshold: of three or more classes the most probable one is taken; no threshold decides. Leave it out.")
    if 2 not in n_classes and options.prevalence is not None:
        problems.append("--prevalence: predictive values are given for two classes, not for three or more. Leave it out.")
    if max(n_classes) == 2 and options.ordinal:
        problems.append("--ordinal: two classes have no order to be weighted by. Leave it out.")
    if problems:
        raise PredictionTableError(join_problems("The evaluation was asked for what these tables cannot give.", problems))


def _refuse_unfitted_rule(tables: Mapping[tuple[str, str], Predictions], options: Options) -> dict[str, str]:
    """Return a remark for each model that is read at 0.5 for want of out-of-fold predictions.

    Raises:
        PredictionTableError: the user asked for a rule that needs some.
    """
    lacking = [model for (model, cohort), table in tables.items()
               if cohort == "test" and table.n_classes == 2 and (model, "oof") not in tables]  # fmt: skip
    if options.rule == "given":
        return {}
    if lacking and (options.rule, options.parameter) != ("youden", None):
        raise PredictionTableError(
            f"{', '.join(lacking)}: no fold is given, so there are no out-of-fold predictions to fit the threshold rule "
            f"{options.rule!r} on. Give a threshold as a number instead, or leave --threshold out (0.5 is taken then)."
        )
    return dict.fromkeys(lacking, HALF)
