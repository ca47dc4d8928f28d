"""The figures of an evaluation: ROC, precision-recall, calibration and decision curve, at journal width.

Each is written as SVG, PDF and PNG. Colours are those of Okabe & Ito, which colour-blind readers tell
apart; models differ by line style as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from her2net.artefact import write_bytes
from her2net.evaluate.bootstrap import resample_weights
from her2net.evaluate.calibration import assign_bins, smooth_outcome
from her2net.evaluate.discrimination import auc_interval, pr_auc_interval, roc_points
from her2net.evaluate.estimate import Estimate, has_both_classes
from her2net.evaluate.proportions import wilson
from her2net.evaluate.record import COHORT_NAMES
from her2net.evaluate.utility import decision_curve
from her2net.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
WIDTH_IN, PER_ROW = 3.5, 2
"""Of a panel, and how many of them fit side by side on a page."""
FORMATS = ("svg", "pdf", "png")
MOST_INSIDE, LINE_IN, GAP_IN = 4, 0.165, 0.25
"""Lines of a legend that fit into a panel, the height of a line of one below it, and its distance, in inches."""
BAND_RESAMPLES = 500
MAX_DRAWN = 20_000
"""Cases beyond that are thinned at random before drawing; figures in the tables use all of them."""
GRID = np.linspace(0, 1, 101)
Curves = Mapping[str, Predictions]
Drawer = Callable[..., None]


def write_figures(
    folder: Path, tables: Mapping[tuple[str, str], Predictions], thresholds: Mapping[str, float],
    class_names: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Draw the four figures of each cohort that has both classes; of more classes, one panel for each against the rest.

    The legend gives each model's n and, for areas, the estimate with its interval.

    Args:
        folder: where they go, as `<kind>_<cohort>.<format>`.
        tables: (model, cohort) -> predictions.
        thresholds: model -> operating point.
        class_names: name of each class, for the panels of more than two.

    Returns:
        The files written.
    """
    written = []
    for cohort in dict.fromkeys(cohort for _, cohort in tables):
        panels: dict[str, dict[str, Predictions]] = {}
        for model, table in ((m, t.take(t.labels >= 0)) for (m, c), t in tables.items() if c == cohort):
            for title, two in _two_classes(table, class_names):
                if has_both_classes(two.labels):
                    panels.setdefault(title, {})[model] = two
        if not panels:
            continue
        title = COHORT_NAMES.get(cohort, cohort)
        for kind, draw in DRAWERS.items():
            paints = {f"{title[:1].upper()}{title[1:]}{part}": partial(_draw_models, draw, kind, models, thresholds)
                      for part, models in panels.items()}  # fmt: skip
            written += save_figure(draw_figure(paints, LEGEND_TITLES.get(kind, "")), folder / f"{kind}_{cohort}")
    return written


def _draw_models(draw: Drawer, kind: str, models: Curves, thresholds: Mapping[str, float], axes: Axes) -> None:
    legend = {name: f"{name}{LEGENDS[kind](table)}, n = {len(table)}" for name, table in models.items()}
    draw(axes, {name: _thinned(table) for name, table in models.items()}, thresholds, legend)


def _thinned(table: Predictions) -> Predictions:
    if len(table) <= MAX_DRAWN:
        return table
    return table.take(np.sort(np.random.default_rng(0).choice(len(table), MAX_DRAWN, replace=False)))


def _with_interval(area: Callable[..., Estimate], table: Predictions) -> str:
    found = area(table.labels, table.probs[:, 1], patients=np.array(table.patient_ids))
    return f" {found.value:.2f} ({found.ci_low:.2f} to {found.ci_high:.2f})"


LEGENDS: dict[str, Callable[[Predictions], str]] = {
    "roc": partial(_with_interval, auc_interval),
    "precision_recall": partial(_with_interval, pr_auc_interval),
    "calibration": lambda table: "",
    "decision_curve": lambda table: "",
}
"""What stands behind the name of a model: figures of all its cases, however many are drawn."""
LEGEND_TITLES = {"roc": "AUC (95 % interval)", "precision_recall": "Average precision (95 % interval)"}


def _two_classes(table: Predictions, class_names: Sequence[str]) -> Iterator[tuple[str, Predictions]]:
    """Yield the table as it is, or each of its several classes against the rest, with what its panel is called."""
    if table.n_classes == 2:
        yield "", table
        return
    for c in range(table.n_classes):
        own = table.probs[:, c]
        name = class_names[c] if c < len(class_names) else str(c)
        yield f"\n{name}", replace(table, labels=(table.labels == c).astype(np.int64), probs=np.column_stack([1 - own, own]))


def draw_figure(paints: Mapping[str, Callable[[Axes], None]], legend_title: str = "") -> Figure:
    """Return a figure of square panels, title -> what draws it, without touching matplotlib's global state.

    One panel is a single column wide, of several two stand in a row. A legend of more than `MOST_INSIDE` lines stands
    below its panel, where it covers no curve.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n_columns = min(len(paints), PER_ROW)
    n_rows = -(-len(paints) // n_columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN * n_columns, WIDTH_IN * n_rows), layout="constrained")
        panels, below_in = figure.subplots(n_rows, n_columns, squeeze=False).flat, np.zeros(n_rows)
        for i, ((title, paint), axes) in enumerate(zip(paints.items(), panels, strict=False)):
            paint(axes)
            axes.set(title=title, anchor="N")
            axes.spines[["top", "right"]].set_visible(False)
            n_lines = len(axes.get_legend_handles_labels()[0])
            below = n_lines > MOST_INSIDE
            row = i // n_columns
            below_in[row] = max(below_in[row], below * (LINE_IN * (n_lines + bool(legend_title)) + GAP_IN))
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.16)} if below else {}
            legend = axes.legend(title=legend_title or None, title_fontsize=7, alignment="left", framealpha=0.7,
                                 edgecolor="none", **place)  # fmt: skip
            legend.set_zorder(5)
        for axes in panels:  # what is left of the last row
            axes.set_visible(False)
        figure.set_size_inches(WIDTH_IN * n_columns, WIDTH_IN * n_rows + float(below_in.sum()))
    return figure


STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "her2net",
    "axes.linewidth": 0.6, "lines.linewidth": 1.2, "text.parse_math": False,
}  # fmt: skip


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as `<stem>.svg`, `.pdf` and `.png`, the same bytes for the same figure.

    It is laid out once, not for each format: that is a third of the work.
    """
    from matplotlib import rc_context

    files = []
    if figure.get_layout_engine() is not None:
        with rc_context(STYLE):
            figure.draw_without_rendering()
        figure.set_layout_engine(None)  # "none" would lay out again, to no effect, for each format
    for suffix in FORMATS:
        buffer, metadata = io.BytesIO(), {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
        with rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{suffix}")
        write_bytes(path, buffer.getvalue())
        files.append(path)
    return files


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def draw_roc(axes: Axes, models: Curves, thresholds: Mapping[str, float], legend: Mapping[str, str]) -> None:
    """ROC curves with a pointwise 95 % bootstrap band of sensitivity, and the operating points."""
    for index, (model, table) in enumerate(models.items()):
        labels, scores = table.labels, table.probs[:, 1]
        fpr, tpr, _ = roc_points(labels, scores)
        low, high = roc_band(labels, scores, np.array(table.patient_ids))
        axes.fill_between(GRID, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.12, linewidth=0)
        axes.plot(fpr, tpr, **_look(index), label=legend[model])
        if model in thresholds:
            called = scores >= thresholds[model]
            axes.plot(called[labels == 0].mean(), called[labels == 1].mean(), "o", markersize=4,
                      color=COLOURS[index % len(COLOURS)], markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.6)
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")


def roc_band(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, *, n_resamples: int = BAND_RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pointwise 95 % limits of sensitivity at each false positive rate of `GRID`.

    Source:
        Macskassy et al. 2005, doi:10.1145/1102351.1102419 (vertical averaging over bootstrap samples).
    """
    order = np.argsort(-scores, kind="stable")
    positive, ends = labels[order] == 1, np.append(np.flatnonzero(np.diff(scores[order]) != 0), len(scores) - 1)
    curves = []
    affordable = max(50, min(n_resamples, 4_000_000 // len(labels)))
    for weights in resample_weights(labels, patients, affordable, np.random.default_rng(seed)):
        for row in weights[:, order]:
            hits, alarms = np.cumsum(row * positive)[ends], np.cumsum(row * ~positive)[ends]
            if hits[-1] and alarms[-1]:
                x, y = np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])
                curves.append(np.interp(GRID, x, y))
    low, high = np.quantile(np.array(curves), [0.025, 0.975], axis=0)
    return low, high


def _by_prevalence(models: Curves, alone: str) -> dict[float, tuple[str, list[str]]]:
    """Group models by the share of positives among their cases, for what a model is compared with hangs on it.

    Args:
        alone: colour where all models have the same share, as where no case lacks a modality.

    Returns:
        Share -> colour of the first model that has it, and the models.
    """
    found: dict[float, tuple[str, list[str]]] = {}
    for index, (model, table) in enumerate(models.items()):
        share = float((table.labels == 1).mean())
        found.setdefault(share, (COLOURS[index % len(COLOURS)], []))[1].append(model)
    return found if len(found) > 1 else {share: (alone, names) for share, (_, names) in found.items()}


def draw_precision_recall(
    axes: Axes, models: Curves, thresholds: Mapping[str, float], legend: Mapping[str, str]
) -> None:
    """Precision-recall curves, the prevalence and the operating points."""
    for index, (model, table) in enumerate(models.items()):
        labels, scores = table.labels, table.probs[:, 1]
        fpr, tpr, _ = roc_points(labels, scores)
        hits, alarms = tpr[1:] * (labels == 1).sum(), fpr[1:] * (labels == 0).sum()
        precision = hits / (hits + alarms)
        axes.step(tpr, np.append(precision[0], precision), where="pre", **_look(index), label=legend[model])
        if model in thresholds and (called := scores >= thresholds[model]).any():
            axes.plot(called[labels == 1].mean(), labels[called].mean(), "o", markersize=4,
                      color=COLOURS[index % len(COLOURS)], markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    for prevalence, (colour, _) in _by_prevalence(models, "0.6").items():
        axes.axhline(prevalence, color=colour, linewidth=0.6)
    axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (PPV)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def draw_calibration(axes: Axes, models: Curves, thresholds: Mapping[str, float], legend: Mapping[str, str]) -> None:
    """Reliability curves (loess), observed shares of ten bins with Wilson intervals, and a histogram below."""
    for index, (model, table) in enumerate(models.items()):
        labels, probs, colour = table.labels, table.probs[:, 1], COLOURS[index % len(COLOURS)]
        knots, smooth = smooth_outcome(labels, probs)
        axes.plot(knots, smooth, **_look(index), label=legend[model])
        bins = assign_bins(probs)
        n, k = np.bincount(bins, minlength=10), np.bincount(bins, labels, 10)
        used = n > 0
        centre = np.bincount(bins, probs, 10)[used] / n[used]
        low, high = wilson(k[used], n[used])
        share = k[used] / n[used]
        axes.errorbar(centre, share, yerr=[np.maximum(share - low, 0), np.maximum(high - share, 0)], fmt="o",
                      markersize=2.5, linewidth=0.5, color=colour, alpha=0.6)  # fmt: skip
        axes.bar((np.arange(10) + 0.5) / 10, -0.12 * n / n.max(), width=0.09, color=colour, alpha=0.25)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.6)
    axes.set(xlabel="Predicted probability", ylabel="Observed share", xlim=(-0.01, 1.01), ylim=(-0.14, 1.02),
             yticks=np.linspace(0, 1, 6))  # fmt: skip


def draw_decision(axes: Axes, models: Curves, thresholds: Mapping[str, float], legend: Mapping[str, str]) -> None:
    """Decision curves with pointwise 95 % bands, treat-all and treat-none."""
    treat_all = {}
    for index, (model, table) in enumerate(models.items()):
        curve = decision_curve(table.labels, table.probs[:, 1], np.array(table.patient_ids))
        treat_all[model] = curve.treat_all
        axes.fill_between(curve.thresholds, curve.model_low, curve.model_high, linewidth=0, alpha=0.1,
                          color=COLOURS[index % len(COLOURS)])  # fmt: skip
        axes.plot(curve.thresholds, curve.model, **_look(index), label=legend[model])
    groups = _by_prevalence(models, "0")
    for colour, names in groups.values():
        whose = f": {', '.join(names)}" if len(groups) > 1 else ""
        axes.plot(curve.thresholds, treat_all[names[0]], color=colour, linewidth=0.8, linestyle=(0, (1, 1)),
                  label=f"call all positive{whose}")  # fmt: skip
    axes.axhline(0, color="0.5", linewidth=1.2, label="call none positive")
    prevalence = max(groups)
    axes.set(xlabel="Threshold probability", ylabel="Net benefit", xlim=(0, 1),
             ylim=(-0.25 * prevalence - 0.01, 1.1 * prevalence + 0.01))  # fmt: skip


DRAWERS: dict[str, Drawer] = {
    "roc": draw_roc,
    "precision_recall": draw_precision_recall,
    "calibration": draw_calibration,
    "decision_curve": draw_decision,
}
