"""Prediction tables in memory → every figure; pure, and the same for a dataset and for loose files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from her2net.evaluate.cohort_metrics import (
    alternative_intervals,
    binary_metrics,
    multiclass_metrics,
    recalibrated_metrics,
)
from her2net.evaluate.discrimination import effective_counts
from her2net.evaluate.estimate import NAN, Estimate, is_clustered
from her2net.evaluate.multiclass import name_classes
from her2net.evaluate.pairwise import Tables, compare_models, finite_or_none
from her2net.evaluate.patients import OF_PATIENTS, pool_patients
from her2net.evaluate.recalibration import Recalibration, choose_recalibration
from her2net.evaluate.record import Certainty, Evaluation, Metric, Settings, SubgroupMetric, optimism
from her2net.evaluate.sample_size import (
    auc_permutation_p,
    auc_permutation_p_of_many,
    half_width,
    needed_for,
    size_advice,
)
from her2net.evaluate.subgroups import subgroup_aucs
from her2net.evaluate.thresholds import Rule, Threshold
from her2net.evaluate.within_folds import folds_p, within_folds_auc
from her2net.predictions import Predictions

NEEDS_THRESHOLD = frozenset({
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "mcc", "lr_positive",
    "lr_negative", "ppv_at_prevalence", "npv_at_prevalence",
})  # fmt: skip
MAX_PERMUTED = 5_000
"""Beyond that many cases the permutation distribution is taken for the normal one that it is by then."""
WANTED_HALF_WIDTH = 0.05


@dataclass(frozen=True)
class Options:
    """What the user may ask of an evaluation.

    Attributes:
        seed: of bootstraps and permutations.
        prevalence: at which PPV and NPV are given too.
        ordinal: whether three or more classes have an order.
        subgroups: covariate -> case_id -> level.
        rule: how the threshold is chosen on OOF predictions, or `given`.
        parameter: bound of the rules `sensitivity` and `specificity`, ratio of `cost`, or the threshold given.
    """

    seed: int = 0
    prevalence: float | None = None
    ordinal: bool = False
    subgroups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rule: Rule | Literal["given"] = "youden"
    parameter: float | None = None

    @property
    def settings(self) -> Settings:
        """What is recorded of them."""
        return Settings(rule=self.rule, parameter=self.parameter, prevalence=self.prevalence, ordinal=self.ordinal)


def options_of(settings: Settings) -> Options:
    """Return the options that were recorded."""
    return Options(**settings.model_dump())


def evaluate_tables(
    tables: Tables, thresholds: Mapping[str, Threshold], optimistic: Mapping[str, str],
    class_names: Sequence[str], options: Options | None = None,
) -> Evaluation:  # fmt: skip
    """Compute every figure of tables in memory; cases without a label are left out.

    Args:
        tables: (model, cohort) -> predictions with labels.
        thresholds: model -> operating point; a two-class model without one has no metrics at a threshold.
        optimistic: model -> remark that its figures carry.
        class_names: name of each class.
    """
    options = options or Options()
    known = {key: table.take(table.labels >= 0) for key, table in tables.items()}
    known = {key: table for key, table in known.items() if len(table)}
    maps = _recalibrations(known, options)
    metrics: list[Metric] = []
    alternatives: list[Metric] = []
    for (model, cohort), table in known.items():
        remarks = [_remark(optimistic, model, cohort), _left_out(tables[model, cohort], table)]
        rows = _Rows(model, cohort, table, thresholds.get(model), "; ".join(filter(None, remarks)), class_names)
        figures = _figures(rows, options)
        if cohort != "oof" and table.n_classes == 2 and model in maps:  # OOF is what the map was fitted on
            figures |= recalibrated_metrics(table.labels, maps[model].apply(table.probs[:, 1]), rows.patients)
        metrics += [rows.metric(name, estimate) for name, estimate in figures.items()]
        alternatives += [rows.metric(n, estimate) for n, estimates in _others(rows, options) for estimate in estimates]
    for (model, cohort), whole in tables.items():
        remark = _remark(optimistic, model, cohort)
        metrics += _patient_metrics(model, cohort, whole, thresholds.get(model), remark, class_names, options)
    comparisons = compare_models(known, thresholds, seed=options.seed)
    for row in comparisons:
        row["reason"] = name_classes(row["reason"], class_names)
        row["remark"] = optimism(optimistic, [row["model_a"], row["model_b"]], row["cohort"])
    return Evaluation(
        class_names=list(class_names), remarks=dict(optimistic), metrics=metrics, alternatives=alternatives,
        comparisons=comparisons, subgroups=_subgroups(known, optimistic, class_names, options),
        certainty=_certainty(known, metrics, optimistic, options), recalibration=maps, seed=options.seed,
        settings=options.settings,
    )  # fmt: skip


def _patient_metrics(
    model: str, cohort: str, table: Predictions, threshold: Threshold | None, remark: str, class_names: Sequence[str],
    options: Options,
) -> list[Metric]:  # fmt: skip
    """Return the figures of one prediction per patient; none where every patient has one case."""
    pooled = pool_patients(table) if cohort in OF_PATIENTS else None
    if pooled is None:
        return []
    known = pooled.take(pooled.labels >= 0)
    lost = _left_out(pooled, known, "patients", "no label, or cases of different classes,")
    rows = _Rows(model, OF_PATIENTS[cohort], known, threshold, "; ".join(filter(None, [remark, lost])), class_names)
    return [rows.metric(name, estimate) for name, estimate in _figures(rows, options).items()] if len(known) else []


def _left_out(whole: Predictions, known: Predictions, unit: str = "cases", what: str = "no label") -> str:
    n = len(whole) - len(known)
    has, are = ("has", "is") if n == 1 else ("have", "are")
    return f"{n} of {len(whole)} {unit} {has} {what} and {are} left out" if n else ""


@dataclass(frozen=True)
class _Rows:
    """What the rows of one model in one cohort have in common."""

    model: str
    cohort: str
    table: Predictions
    threshold: Threshold | None
    remark: str
    class_names: Sequence[str]

    @property
    def cut(self) -> float | None:
        return self.threshold.value if self.threshold is not None and self.table.n_classes == 2 else None

    @cached_property
    def patients(self) -> np.ndarray:
        """The owner (n,) of each case, as a number."""
        return np.unique(np.array(self.table.patient_ids), return_inverse=True)[1]

    def cut_of(self, name: str) -> float | None:
        """Return the threshold that a metric depends on."""
        if name.startswith(("rule_out", "ruled_out")):
            return self.threshold.rule_out if self.threshold else None
        if name.startswith(("rule_in", "ruled_in")):
            return self.threshold.rule_in if self.threshold else None
        return self.cut if name in NEEDS_THRESHOLD else None

    def n_positive(self, name: str) -> int:
        """Return the number of cases that a figure counts as positive: of its class, or of any but the first."""
        of_class = name.rpartition("_class_")[2] if "_class_" in name else ""
        labels = self.table.labels
        return int((labels == int(of_class) if of_class.isdecimal() else labels > 0).sum())

    def metric(self, name: str, estimate: Estimate) -> Metric:
        return Metric(
            model=self.model, cohort=self.cohort, metric=name, value=finite_or_none(estimate.value),
            ci_low=finite_or_none(estimate.ci_low), ci_high=finite_or_none(estimate.ci_high),
            ci_method=estimate.ci_method, n=len(self.table), n_positive=self.n_positive(name),
            threshold=self.cut_of(name), reason=name_classes(estimate.reason, self.class_names), remark=self.remark,
        )  # fmt: skip


def _recalibrations(tables: Tables, options: Options) -> dict[str, Recalibration]:
    """Choose each two-class model's recalibration on its OOF predictions."""
    return {
        model: choose_recalibration(table.labels, table.probs[:, 1], np.array(table.patient_ids), seed=options.seed)
        for (model, cohort), table in tables.items()
        if cohort == "oof" and table.n_classes == 2
    }


def _figures(rows: _Rows, options: Options) -> dict[str, Estimate]:
    table = rows.table
    if table.n_classes > 2:
        return multiclass_metrics(table, seed=options.seed, ordinal=options.ordinal)
    found = binary_metrics(
        table.labels, table.probs[:, 1], rows.patients, threshold=rows.cut, seed=options.seed,
        prevalence=options.prevalence, pair=rows.threshold.pair if rows.threshold else None,
    )  # fmt: skip
    if _has_folds(table):
        found["auc_within_folds"] = within_folds_auc(table.labels, table.probs[:, 1], table.folds, rows.patients)
    return found


def _has_folds(table: Predictions) -> bool:
    """Whether several models made the predictions, each those of its fold."""
    return all(table.folds) and len(set(table.folds)) > 1


def _others(rows: _Rows, options: Options) -> list[tuple[str, list[Estimate]]]:
    table = rows.table
    if table.n_classes > 2:
        return []
    found = alternative_intervals(
        table.labels, table.probs[:, 1], rows.patients, threshold=rows.cut, seed=options.seed
    )
    return list(found.items())


def _remark(remarks: Mapping[str, str], model: str, cohort: str) -> str:
    """Return what every figure of a model in a cohort has to be read with: its optimism, and where its threshold is from."""
    cuts = [part for part in remarks.get(model, "").split("; ") if part.startswith("threshold") and cohort.startswith("test")]
    return "; ".join(filter(None, [optimism(remarks, [model], cohort), *cuts]))


def _subgroups(
    tables: Tables, optimistic: Mapping[str, str], class_names: Sequence[str], options: Options
) -> list[SubgroupMetric]:
    rows = []
    for (model, cohort), table in tables.items():
        patients, scores = np.array(table.patient_ids), table.probs if table.n_classes > 2 else table.probs[:, 1]
        for covariate, levels in options.subgroups.items():
            level = np.array([levels.get(case_id, "") for case_id in table.case_ids])
            found = subgroup_aucs(table.labels, scores, level, patients)
            rows += [
                SubgroupMetric(
                    model=model, cohort=cohort, covariate=covariate, level=group.level, metric="auc",
                    value=finite_or_none(group.auc.value), ci_low=finite_or_none(group.auc.ci_low),
                    ci_high=finite_or_none(group.auc.ci_high), ci_method=group.auc.ci_method, n=group.n,
                    n_positive=group.n_positive, interaction_p=finite_or_none(found.interaction_p),
                    reason=name_classes(group.auc.reason, class_names), remark=optimism(optimistic, [model], cohort),
                )
                for group in found.groups
            ]  # fmt: skip
    return rows


def _certainty(
    tables: Tables, metrics: Sequence[Metric], optimistic: Mapping[str, str], options: Options
) -> list[Certainty]:
    aucs = {(row.model, row.cohort): row.value for row in metrics if row.metric == "auc"}
    rows = []
    for (model, cohort), table in tables.items():
        value = aucs[model, cohort]
        if table.n_classes > 2 or value is None:
            continue
        patients, scores, many = np.array(table.patient_ids), table.probs[:, 1], len(table) > MAX_PERMUTED
        if many:
            p = auc_permutation_p_of_many(table.labels, scores, patients)
        else:
            p = auc_permutation_p(table.labels, scores, patients, rng=np.random.default_rng([options.seed, 5]))
        several = len(np.unique(patients)) if is_clustered(patients) else 0  # then cases say less than their number
        n_positive, n_negative = effective_counts(table.labels, patients if several else None)
        rng = np.random.default_rng([options.seed, 7])
        shuffled = folds_p(table.labels, scores, table.folds, patients, rng, many=many) if _has_folds(table) else NAN
        counted, planned = n_positive + n_negative, min(max(value, 0.5), 0.99)
        rows.append(Certainty(
            model=model, cohort=cohort, permutation_p=finite_or_none(p), n=len(table), n_positive=int(table.labels.sum()),
            permutation="normal" if many else "9999 permutations",
            half_width=half_width(planned, counted, n_positive / counted),
            cases_for_005=needed_for(planned, n_positive, n_negative, WANTED_HALF_WIDTH, several),
            advice=size_advice(value, n_positive, n_negative, target=WANTED_HALF_WIDTH, patients=several),
            folds_p=finite_or_none(shuffled), remark=optimism(optimistic, [model], cohort),
        ))  # fmt: skip
    return rows
