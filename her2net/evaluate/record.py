"""What an evaluation leaves on disk: `metrics.json`, the columns of the tables, and the summary on screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from her2net.artefact import Artefact, Strict, read_text
from her2net.evaluate.estimate import fixed
from her2net.evaluate.recalibration import Recalibration

METRIC_COLUMNS = (
    "model", "cohort", "metric", "value", "ci_low", "ci_high", "ci_method", "n", "n_positive", "threshold",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "model_a", "model_b", "cohort", "metric", "difference", "ci_low", "ci_high", "statistic", "p_value", "p_adjusted",
    "test",
)  # fmt: skip
METRIC_DETAIL_COLUMNS = (*METRIC_COLUMNS, "default", "reason", "remark")
COMPARISON_DETAIL_COLUMNS = (
    "model_a", "model_b", "cohort", "metric", "test", "n", "p_value", "p_holm", "p_bonferroni", "detectable_difference",
    "reason", "remark",
)  # fmt: skip
SUBGROUP_COLUMNS = (
    "model", "cohort", "covariate", "level", "metric", "value", "ci_low", "ci_high", "ci_method", "n", "n_positive",
    "interaction_p", "reason", "remark",
)  # fmt: skip
CERTAINTY_COLUMNS = (
    "model", "cohort", "n", "n_positive", "permutation_p", "permutation", "half_width", "cases_for_005", "advice",
    "folds_p", "remark",
)  # fmt: skip
TWO_CLASSES = {"auc": "AUC [95 % CI]", "sensitivity": "sensitivity", "specificity": "specificity"}
SEVERAL_CLASSES = {"auc": "mean AUC [95 % CI]", "balanced_accuracy": "balanced accuracy", "weighted_kappa": "weighted kappa"}
FOLDS_P, FOLDS_GAP = 0.01, 0.05
"""From when on the AUC within folds is another than the pooled one: seldom by chance, as each model is looked at, and as far from it
as the limits of the interval that a study is advised to aim at (± 0.05). Folds of any small cohort are 0.01 to 0.03 apart."""
RESEMBLING = "test-without-resembling"
COHORT_NAMES = {
    "oof": "training cases, out-of-fold",
    "test": "test cases",
    RESEMBLING: "test cases without those that resemble a training case",
    "oof-patients": "patients of the training cases, out-of-fold, the mean over the cases of each",
    "test-patients": "patients of the test cases, the mean over the cases of each",
}


def optimism(remarks: Mapping[str, str], models: Sequence[str], cohort: str) -> str:
    """Say which models of a row are optimistic in a cohort; empty if none is.

    A best epoch spoils the OOF figures; a fusion fitted on the test cases spoils the test figures. Where the row rests on
    several models, those that the remark is of are named behind it.

    Args:
        remarks: model -> remarks, separated by semicolons; what they say of a threshold is no optimism.
    """
    found: dict[str, list[str]] = {}
    for model in models:
        for part in filter(None, remarks.get(model, "").split("; ")):
            spoiled = "test" if part.startswith("apparent") else "oof"
            if cohort.startswith(spoiled) and not part.startswith("threshold"):
                found.setdefault(part, []).append(model)
    return "; ".join(f"{part} ({', '.join(names)})" if len(models) > 1 else part for part, names in found.items())


class Settings(Strict):
    """What the user asked of an evaluation; see `her2net.evaluate.tables.Options`."""

    rule: Literal["youden", "sensitivity", "specificity", "cost", "given"] = "youden"
    parameter: float | None = None
    prevalence: float | None = None
    ordinal: bool = False


class Metric(Strict):
    """One row of `metrics.csv`; `null` where undefined, with the reason.

    Attributes:
        n: cases that the figure is made of.
        n_positive: of them, cases of the class that a figure of one class is of, else of any class but the first.
        remark: what it has to be read with, for example that it is optimistic.
    """

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


class SubgroupMetric(Strict):
    """One figure of one subgroup, and the test of whether the subgroups differ."""

    model: str
    cohort: str
    covariate: str
    level: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_method: str
    n: int
    n_positive: int
    interaction_p: float | None
    reason: str = ""
    remark: str = ""


class Certainty(Strict):
    """How sure the AUC of one model in one cohort is.

    Attributes:
        permutation_p: one-sided, of an AUC above 0.5.
        permutation: how that was found.
        half_width: half the width of the interval that this many cases are expected to give.
        cases_for_005: cases for an interval of ± 0.05, at this AUC and prevalence; patients where some have several cases.
        advice: the same in words.
        folds_p: two-sided, of an AUC within folds as far from the pooled one as here; see `her2net.evaluate.within_folds`.
        remark: what it has to be read with.
    """

    model: str
    cohort: str
    permutation_p: float | None
    advice: str
    n: int = 0
    n_positive: int = 0
    permutation: str = ""
    half_width: float | None = None
    cases_for_005: int | None = None
    folds_p: float | None = None
    remark: str = ""


class Evaluation(Artefact):
    """`metrics.json`: every figure, and what it has to be read with.

    Attributes:
        remarks: model -> why its figures are optimistic, if they are.
        metrics: rows of `metrics.csv`.
        alternatives: the same figures with the other interval methods.
        comparisons: rows of `comparisons.csv`, with the reason of what is undefined, the smallest difference
            that this many cases would have shown with 80 % power, and the remark.
        subgroups: figures by covariate.
        certainty: permutation p and sample-size advice.
        recalibration: model -> map of its probabilities, chosen on OOF; the `_recalibrated` figures of other cohorts
            are made with it.
        seed: of the bootstraps and permutations.
        settings: what the user asked for; `her2net_run` asks for the same again.
    """

    MADE_BY: ClassVar[str] = "her2net_evaluate"

    class_names: list[str]
    remarks: dict[str, str]
    metrics: list[Metric]
    comparisons: list[dict[str, Any]]
    alternatives: list[Metric] = Field(default_factory=list)
    subgroups: list[SubgroupMetric] = Field(default_factory=list)
    certainty: list[Certainty] = Field(default_factory=list)
    recalibration: dict[str, Recalibration] = Field(default_factory=dict)
    seed: int = 0
    settings: Settings = Settings()


def warn_of_folds(evaluation: Evaluation) -> dict[str, str]:
    """Say of which models the pooled out-of-fold AUC is not that within folds, by more than chance allows and enough to matter."""
    pooled, within = ({m.model: m for m in evaluation.metrics if (m.cohort, m.metric) == ("oof", name)}
                      for name in ("auc", "auc_within_folds"))  # fmt: skip
    p_values = {row.model: row.folds_p for row in evaluation.certainty if row.cohort == "oof"}
    found = {model: _describe_folds(pooled[model].value, metric, p_values.get(model)) for model, metric in within.items()}
    return {model: f"{model}, out-of-fold: {text}." for model, text in found.items() if text}


def _describe_folds(pooled: float | None, within: Metric, p: float | None) -> str:
    if pooled is None:
        return ""
    if within.value is None:
        return f"{within.reason}; AUC {fixed(pooled)} compares cases of different folds, and may come from telling the folds apart"
    if p is None or p > FOLDS_P or abs(within.value - pooled) < FOLDS_GAP:
        return ""
    lower = "cases of a class get other probabilities in other folds, so what is decided at one threshold does not compare either"
    why = lower if within.value > pooled else "part of the former comes from telling the folds apart"
    return f"AUC {fixed(pooled)} over all cases, {fixed(within.value)} between cases of the same fold (p = {p:.2g}): {why}"


def format_summary(folder: Path) -> str:
    """Return the comparisons of AUCs, how sure these are, and last, where a terminal ends, `metrics.csv` as a short table.

    AUC, sensitivity and specificity; for several classes the mean one-vs-rest AUC, balanced accuracy, and weighted
    kappa where the classes have an order.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(folder / "metrics.csv", made_by="her2net_evaluate"))))
    cells = {(row["model"], row["cohort"], row["metric"]): row for row in rows}
    evaluation = Evaluation.load(folder / "metrics.json")
    flagged = {(metric.model, metric.cohort): metric.remark for metric in evaluation.metrics if metric.remark}
    width = max([12, *(len(row["model"]) + 2 for row in rows)])
    found = {row["metric"] for row in rows}
    several = "auc_hand_till" in found
    columns = SEVERAL_CLASSES if several else TWO_CLASSES
    header = f"{'model':<{width}}{'cohort':<25}{'n':>5}" + ("  " if several else f"{'pos':>5}  ")
    shown_columns = {name: text for name, text in columns.items() if name in found}
    lines = [header + "".join(f"{text:<24}" for text in shown_columns.values()).rstrip()]
    for model, cohort in dict.fromkeys((row["model"], row["cohort"]) for row in rows):
        first = cells[model, cohort, "auc"]
        shown = [_shown(cells.get((model, cohort, name))) for name in shown_columns]
        line = f"{model:<{width}}{cohort:<25}{first['n']:>5}" + ("  " if several else f"{first['n_positive']:>5}  ")
        line += "".join(f"{text:<24}" for text in shown) + flagged.get((model, cohort), "")
        lines.append(line.rstrip())
    return "\n".join([*_compared(evaluation), *_advised(evaluation), *lines, *_warned(evaluation)])


def _compared(evaluation: Evaluation) -> list[str]:
    lines = []
    for row in evaluation.comparisons:
        if row["metric"] != "auc" or row["cohort"] == RESEMBLING:
            continue
        text = f"{row['model_a']} - {row['model_b']} ({row['cohort']}, n = {row['n']}): AUC difference "
        text += f"undefined: {row['reason']}" if row["difference"] is None else fixed(row["difference"])
        if row["ci_low"] is not None:
            text += f" [{fixed(row['ci_low'])}, {fixed(row['ci_high'])}]"
        elif row["difference"] is not None:
            text += f" (no interval: {row['reason']})"
        if row["p_value"] is not None:
            text += f", p = {row['p_value']:.3g}, Holm {row['p_adjusted']:.3g}"
        if row.get("detectable_difference") is not None:
            text += f"; 80 % power for {row['detectable_difference']:.3f}"
        lines.append(text + _read_with(row["remark"]))
    return lines


def _advised(evaluation: Evaluation) -> list[str]:
    return [
        f"{row.model} ({row.cohort}): permutation p = {row.permutation_p:.2g}{_read_with(row.remark)}. {row.advice}"
        for row in evaluation.certainty
        if row.permutation_p is not None and row.cohort != RESEMBLING
    ]


def _warned(evaluation: Evaluation) -> list[str]:
    return [f"warning: {text}" for text in warn_of_folds(evaluation).values()]


def _read_with(remark: str) -> str:
    return f"; {remark}" if remark else ""


def _shown(row: Mapping[str, str] | None) -> str:
    if row is None or not row["value"]:
        return "undefined" if row else ""
    text = fixed(float(row["value"]))
    whole = row["ci_low"] and row["ci_high"]
    return f"{text} [{fixed(float(row['ci_low']))}, {fixed(float(row['ci_high']))}]" if whole else text
