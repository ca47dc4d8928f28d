"""Radiomics and clinical covariates in the report: what they add, what they go by, and a nomogram to read by hand."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from her2net.evaluate.estimate import fixed
from her2net.evaluate.figures import COLOURS, STYLE
from her2net.paths import folder_name
from her2net.plan.table_schema import AROUND, CLINICAL
from her2net.report.material import Material
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import cohort_label, cohort_name, listed, number, p_relation, p_value, with_interval
from her2net.tabular.added import AddedValue
from her2net.tabular.record import TableExplanation, TermWeight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WEIGHTS = 25
MAX_BARS = 12
WIDTH_IN = 7.2
POINTS = 100.0
"""The widest scale of a nomogram."""


def sentences(material: Material) -> list[str]:
    """Word each answer: what was added to what, how much it changed the AUC, and whether that may be chance."""
    return [
        _sentence(row) + _without_weight([name for name in (*row.base, *row.added) if name in material.silent])
        + (f" Read with: {row.remark}." if row.remark else "") for row in material.added
    ]  # fmt: skip


def _without_weight(silent: list[str]) -> str:
    return f" In the fusion, {listed(silent)} {'have' if len(silent) > 1 else 'has'} no weight." if silent else ""


def _sentence(row: AddedValue) -> str:
    added, base = _words(row.added), _words(row.base)
    who = f"{cohort_name(row.cohort)}, n = {row.n}, {row.n_positive} positive"
    if row.difference == 0 and row.ci_low is None:
        return f"Adding {added} to {base} changes nothing: the cases are ranked alike, AUC {number(row.auc_base)} ({who})."
    if row.difference is None or row.ci_low is None or row.ci_high is None or row.auc_base is None:
        return f"The added value of {added} over {base} ({who}) is undefined: {row.reason or 'too few cases'}."
    shown = "is not shown to change" if row.ci_low <= 0 <= row.ci_high else "raises" if row.difference > 0 else "lowers"
    return (
        f"Adding {added} to {base} {shown} the AUC: {_change(row.difference, row.ci_low, row.ci_high)}, "
        f"p {p_relation(row.p_value)}, from {number(row.auc_base)} to {number(row.auc_both)} ({who})."
    )


def _change(value: float, low: float, high: float) -> str:
    return f"{fixed(value, signed=True)} ({fixed(low, signed=True)} to {fixed(high, signed=True)})"


def _words(names: Sequence[str]) -> str:
    if all(name.startswith("RAD:") for name in names):
        return "radiomics of " + listed([name.removeprefix("RAD:") for name in names])
    return "the clinical covariates" if list(names) == [CLINICAL] else f"the images ({listed(list(names))})"


def added_value_table(material: Material) -> Table | None:
    """Return what each source adds to another; `None` without table models or with more than two classes."""
    rows: list[list[str | Cell]] = [
        [
            f"{' + '.join(r.added)} added to {' + '.join(r.base)}", cohort_label(r.cohort),
            Cell(f"{r.n} ({r.n_positive})", sort=r.n), Cell(number(r.auc_base), sort=r.auc_base),
            Cell(number(r.auc_both), sort=r.auc_both),
            Cell(with_interval(r.difference, r.ci_low, r.ci_high), sort=r.difference),
            Cell(p_value(r.p_value), sort=r.p_value), Cell(p_value(r.p_adjusted), sort=r.p_adjusted),
            "; ".join(filter(None, [r.reason, r.remark])),
        ]
        for r in material.added
    ]  # fmt: skip
    if not rows:
        return None
    tests = "; ".join(dict.fromkeys(r.test for r in material.added if r.test))
    headers = ["Question", "Cohort", "n (positive)", "AUC of the base", "AUC of both", "Difference (95 % interval)", "p",
               "p, Holm", "Remark"]  # fmt: skip
    return make_table("added_value", "What radiomics and clinical covariates add to the images, and the reverse", headers, rows,
                      numeric=(2, 3, 4, 5, 6, 7), notes=(
        "Base and both are logistic regressions on the logits of their models, fitted without the patients of the fold "
        "(out-of-fold) or on all out-of-fold predictions (test); a model that would get a negative weight is left out, and a base "
        "of which nothing is left has AUC 0.5. " + tests + ", on the cases that all of them "
        "predict; p adjusted by Holm over the questions of a cohort. An interval across 0 means: not shown to add anything.",
    ))  # fmt: skip


@dataclass(frozen=True)
class TableSection:
    """What the page shows of one table model."""

    name: str
    text: str
    weights: Table | None
    importance: Table


def table_sections(material: Material) -> list[TableSection]:
    """Return one section per table model."""
    return [
        TableSection(name, _describe(material, name, found), _weights_table(name, found), _importance_table(name, found))
        for name, found in material.explained.items()
    ]


def _describe(material: Material, name: str, found: TableExplanation) -> str:
    plan = material.plan.tables[name]
    chosen = listed([f"{learner.replace('_', ' ')} in {n} of {len(found.learners)} folds"
                     for learner, n in Counter(found.learners).items()])  # fmt: skip
    losses = ", ".join(f"{learner.replace('_', ' ')} {loss:.3f}" for learner, loss in found.inner_log_losses.items())
    text = f"The inner loop of each fold chose: {chosen} (its log loss: {losses}). "
    if plan.radiomics is None:
        return text + f"Covariates: {listed(list(plan.columns))}. A missing number is the median, a missing level the most frequent."
    r = plan.radiomics
    size = f"{r.bins} bins" if r.bins else f"bins of {r.bin_width:g}"
    spacing = "voxels as they are" if r.spacing_mm is None else f"resampled to {' × '.join(f'{s:.3g}' for s in r.spacing_mm)} mm"
    around: list[str] = [f for f in r.families if f in AROUND]
    inside = listed([f.replace("_", " ") for f in r.families if f not in AROUND])
    also = f", and what lies around the lesion ({listed(around)})" if around else ""
    return text + (
        f"{found.n_features} features: by mirp those of the families {inside} ({size}, "
        f"{'within slices' if r.by_slice else 'in the volume'}, {spacing}){also}. Features that say the same as an earlier one "
        f"(correlation above {plan.model.max_correlation:g}) are left out inside each fold: {found.n_terms} stay in the first."
    )


def _weights_table(name: str, found: TableExplanation) -> Table | None:
    clinical = name == CLINICAL
    rows: list[list[str | Cell]] = []
    largest = sorted(found.weights, key=lambda w: -abs(w.weight))[:MAX_WEIGHTS]
    for w in sorted(largest, key=lambda w: w.class_name):
        unit = with_interval(w.odds_ratio_per_unit, w.unit_ci_low, w.unit_ci_high) if w.odds_ratio_per_unit is not None else ""
        rows.append([
            f"{w.term} (against {w.reference})" if w.reference else w.term, w.class_name,
            Cell(with_interval(w.odds_ratio, w.ci_low, w.ci_high, 2), sort=w.odds_ratio),
            *([Cell(unit, sort=w.odds_ratio_per_unit)] if clinical else []),
            Cell(f"{w.n_folds_used} of {len(found.learners)}", sort=w.n_folds_used),
        ])  # fmt: skip
    if not rows:
        return None
    headers = ["Term", "Class", "Odds ratio (95 % interval)", *(["Per unit"] if clinical else []), "Used in folds"]
    caption = f"Odds ratios of {name}: elastic net on all training cases"
    return make_table(f"weights_{folder_name(name)}", caption, headers, rows,
                      numeric=range(2, len(headers)), notes=(
        f"Per standard deviation, or of a level against the reference level. Intervals: {found.ci_method}; a penalty pulls odds "
        "ratios towards 1. Predictions come from the models of the folds, not from this fit.",
        f"The {MAX_WEIGHTS} largest of {len(found.weights)}." if len(found.weights) > MAX_WEIGHTS else "",
    ))  # fmt: skip


def _importance_table(name: str, found: TableExplanation) -> Table:
    rows: list[list[str | Cell]] = [
        [item.name, item.kind, Cell(_change(item.loss, item.low, item.high), sort=item.loss)]
        for item in found.importance
    ]
    caption = f"What {name} loses when a feature is shuffled"
    return make_table(f"importance_{folder_name(name)}", caption, ["Shuffled", "Kind", "Loss of AUC"], rows, numeric=(2,), notes=(
        f"Out-of-fold AUC; mean of {found.n_shuffles} shuffles between the held-out cases of each fold, with their 95 % range. "
        "Features that resemble each other hide each other's loss: look at the family.",
    ))  # fmt: skip


def draw_importance(found: TableExplanation) -> Figure:
    """Draw the largest losses as bars, families and features apart."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = [k for k in ("family", "feature") if any(item.kind == k for item in found.importance)]
    shown = {kind: [item for item in found.importance if item.kind == kind][:MAX_BARS] for kind in kinds}
    height = 0.6 + 0.2 * max(map(len, shown.values()), default=1)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
        for axes, kind in zip(figure.subplots(1, max(len(kinds), 1), squeeze=False)[0], kinds, strict=False):
            items = shown[kind][::-1]
            losses = np.array([item.loss for item in items])
            spread = np.array([[item.loss - item.low, item.high - item.loss] for item in items]).T.clip(min=0)
            axes.barh(range(len(items)), losses, xerr=spread, color=COLOURS[0], error_kw={"linewidth": 0.7, "ecolor": "0.3"})
            axes.set_yticks(range(len(items)), [_short(item.name) for item in items], fontsize=6.5, parse_math=False)
            axes.axvline(0, color="0.5", linewidth=0.6)
            axes.set(xlabel="Loss of AUC when shuffled", title="Families" if kind == "family" else "Features")
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def _short(name: str) -> str:
    return textwrap.shorten(name.replace("_", " "), 40, placeholder="…")


@dataclass(frozen=True)
class Scale:
    """One line of a nomogram: values, and the log odds each of them adds to the least of the line."""

    name: str
    labels: list[str]
    log_odds: list[float]


def clinical_scales(found: TableExplanation) -> tuple[list[Scale], float]:
    """Return the scales of the covariates that have a weight (class 1 against class 0), and the sum at their origins.

    A number has round values within two standard deviations of its mean.
    """
    from matplotlib.ticker import MaxNLocator

    by_column: dict[str, list[TermWeight]] = {}
    for weight in found.weights:
        by_column.setdefault(weight.term.partition(" = ")[0], []).append(weight)
    scales, origin = [], found.intercepts[0] if found.intercepts else 0.0
    for column, weights in by_column.items():
        if all(w.weight == 0 for w in weights):
            continue
        levels = [w for w in weights if " = " in w.term]
        if levels:
            labels, values = [levels[0].reference], [0.0]
            for w in levels:
                labels.append(w.term.partition(" = ")[2])
                values.append(w.weight / w.sd)
                origin -= w.weight * w.mean / w.sd
        else:
            w = weights[0]
            low, high = w.mean - 2 * w.sd, w.mean + 2 * w.sd
            at = np.array([v for v in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= v <= high])
            labels, values = [f"{v:.3g}" for v in at], (w.weight * (at - w.mean) / w.sd).tolist()
        least = min(values)
        origin += least
        scales.append(Scale(column, labels, [v - least for v in values]))
    return scales, origin


def fusion_scales(material: Material) -> tuple[list[Scale], float]:
    """Return the scales of the models that have a say in the fusion of all models, and the sum at their origins."""
    if material.fusion is None or not material.binary:
        return [], 0.0
    model = max(material.fusion.models, key=lambda m: len(m.modalities))
    if len(model.modalities) < 2:
        return [], 0.0
    probabilities = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
    at = np.log(probabilities / (1 - probabilities))
    scales, origin = [], model.intercepts[0]
    for name, weight in zip(model.modalities, model.weights[0], strict=True):
        if weight == 0:
            continue
        values = weight * at
        origin += float(values.min())
        scales.append(Scale(name, [f"{p:g}" for p in probabilities], (values - values.min()).tolist()))
    return scales, float(origin)


def draw_nomogram(scales: Sequence[Scale], origin: float, outcome: str) -> Figure:
    """Draw a nomogram: points of each value, and the probability that goes with their sum.

    Source:
        Iasonos et al. 2008, doi:10.1200/JCO.2007.12.9791.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    widest = max(max(scale.log_odds) for scale in scales)
    unit = POINTS / max(widest, 1e-9)
    total = sum(max(scale.log_odds) for scale in scales) * unit
    n_lines = len(scales) + 3
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.5 * n_lines + 0.2))
        axes = figure.add_axes((0.22, 0, 0.75, 1))
        axes.set(xlim=(0, POINTS), ylim=(n_lines - 0.4, -0.6))
        axes.axis("off")
        _line(axes, 0, "Points", np.arange(0, 101, 10.0), [f"{p:g}" for p in range(0, 101, 10)])
        for row, scale in enumerate(scales, start=1):
            _line(axes, row, scale.name, np.array(scale.log_odds) * unit, scale.labels)
        whole = np.array([v for v in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, total) if v <= total])
        _line(axes, n_lines - 2, "Sum of points", whole / total * POINTS, [f"{v:.0f}" for v in whole])
        chances = _choose_chances(origin, origin + total / unit)
        place = (np.log(chances / (1 - chances)) - origin) * unit
        _line(axes, n_lines - 1, f"P({_short(outcome)})", place / total * POINTS, [f"{p:g}" for p in chances])
    return figure


def _choose_chances(low: float, high: float) -> np.ndarray:
    """Return round probabilities between two log odds: the usual ones, or finer ones where few of these lie between."""
    from matplotlib.ticker import MaxNLocator

    least, most = 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))
    usual = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
    inside = usual[(usual >= least) & (usual <= most)]
    if len(inside) > 2:
        return inside
    fine = np.asarray(MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(least, most))
    return fine[(fine >= least) & (fine <= most) & (fine > 0) & (fine < 1)]


def _line(axes, row: int, name: str, places: np.ndarray, labels: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    axes.text(-2, row, _short(name), ha="right", va="center", fontsize=8, parse_math=False)
    axes.plot([0, POINTS] if not len(places) else [places.min(), places.max()], [row, row], color="0.2", linewidth=0.8, clip_on=False)
    for i, (x, label) in enumerate(zip(places, labels, strict=True)):
        axes.plot([x, x], [row, row - 0.12], color="0.2", linewidth=0.8, clip_on=False)
        axes.text(x, row - 0.18 if i % 2 == 0 else row + 0.08, label, ha="center", va="bottom" if i % 2 == 0 else "top",
                  fontsize=6.5, parse_math=False)  # fmt: skip
