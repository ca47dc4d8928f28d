"""The figures that only a report has: cohort flow, training curves, confusion matrices and the forest of subgroups.

They share look, palette and file formats with those of the evaluation.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from her2net.evaluate.figures import COLOURS, STYLE
from her2net.evaluate.record import SubgroupMetric
from her2net.explain.contour_record import ContourRecord
from her2net.fuse.stage import FUSION
from her2net.report.cohort import Group, explain_absence
from her2net.report.material import History, Material
from her2net.report.results import confusion_counts
from her2net.report.words import count, explained, p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE_IN, DOUBLE_IN = 3.5, 7.2
"""Width of one and of two columns of a journal."""
MAX_FOREST = 40
GREY = "0.45"


def draw_flow(material: Material, groups: Sequence[Group]) -> Figure:
    """Draw who is used for what: one column for the training and one for the test cases."""
    columns = [_flow_boxes(material, group) for group in groups]
    n_rows = max(len(column) for column in columns)
    line = 0.17
    heights = [max((len(_wrap(c[row])) for c in columns if row < len(c)), default=1) * line + 0.16 for row in range(n_rows)]
    top = 0.5
    total = sum(heights) + 0.2 * n_rows + top + 0.1
    figure, axes = _blank(DOUBLE_IN if len(groups) > 1 else SINGLE_IN, total)
    n_all, patients = sum(g.n_cases for g in groups), sum(g.n_patients for g in groups)
    width = 3.3
    centres = [0.1 + width / 2 + i * (width + 0.4) for i in range(len(groups))]
    middle = sum(centres) / len(centres)
    y = total - top / 2 - 0.02
    _box(axes, middle, y, width, 0.36, f"cases.csv: {count(n_all, 'case')} of {count(patients, 'patient')}")
    for centre, column in zip(centres, columns, strict=True):
        above, y = (middle, total - top / 2 - 0.2), total - top
        for row, text in enumerate(column):
            height = heights[row]
            y -= 0.2
            _arrow(axes, above, (centre, y))
            _box(axes, centre, y - height / 2, width, height, "\n".join(_wrap(text)))
            y -= height
            above = (centre, y)
    return figure


def _flow_boxes(material: Material, group: Group) -> list[str]:
    classes = ", ".join(f"{n} {name}" for name, n in group.per_class.items())
    unlabelled = f", {group.unlabelled} without label" if group.unlabelled else ""
    boxes = [f"{group.name}: {count(group.n_cases, 'case')} of {count(group.n_patients, 'patient')}\n{classes}{unlabelled}"]
    used = []
    for m in material.plan.modalities:
        left_out = f" ({group.lacking[m]} left out: no {m} image)" if group.lacking[m] else ""
        used.append(f"{m}: {count(group.n_cases - group.lacking[m], 'case')}{left_out}")
    for name, table in material.plan.tables.items():
        n_without = group.n_cases - group.described[name]
        left_out = f" ({n_without} left out: {explain_absence(table)})" if n_without else ""
        used.append(f"{name}: {count(group.described[name], 'case')}{left_out}")
    if FUSION in material.models:
        used.append(f"fusion: {count(group.n_cases, 'case')}")
    boxes.append("\n".join(used))
    if group.name == "Training":
        n_folds = material.plan.splits.n_folds
        boxes.append(f"{n_folds} folds by patient: each case is predicted\nby the model that never saw its patient")
    else:
        evaluated = group.n_cases - group.unlabelled
        resembling = f"\n{group.resembling} resemble a training case" if group.resembling else ""
        boxes.append(f"predicted by all folds together\n{count(evaluated, 'case')} evaluated{resembling}")
    return boxes


def _wrap(text: str) -> list[str]:
    return [part for line in text.split("\n") for part in (textwrap.wrap(line, 48) or [""])]


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose data coordinates are inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor="white", edgecolor="0.2", linewidth=0.7))
    axes.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.3, parse_math=False)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "linewidth": 0.7, "color": "0.2",
                                                        "shrinkA": 0, "shrinkB": 0})  # fmt: skip


def draw_training(material: Material) -> Figure:
    """Draw the loss of each fold over the epochs, and the AUC of the patients it holds out, one column per modality."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(material.plan.modalities)
    with rc_context(STYLE):
        figure = Figure(figsize=(DOUBLE_IN if len(names) > 1 else SINGLE_IN, 4.0), layout="constrained")
        axes = figure.subplots(2, len(names), sharex="col", squeeze=False)
        for column, name in enumerate(names):
            folds = material.histories[name]
            loss, right = axes[0][column], axes[1][column]
            _plot_folds(loss, folds, "train_loss", COLOURS[0], "-", "training cases")
            _plot_folds(loss, folds, "val_loss", COLOURS[1], "--", "held-out cases")
            _plot_folds(right, folds, "val_auc", COLOURS[1], "--", "held-out cases")
            right.axhline(0.5, color="0.6", linewidth=0.6)
            right.set(ylim=(0, 1), xlabel="Epoch", ylabel="AUC" if column == 0 else "")
            loss.set(title=name, ylabel="Cross-entropy" if column == 0 else "")
            longest = max((len(fold) for fold in folds), default=1)
            for axis in (loss, right):
                axis.spines[["top", "right"]].set_visible(False)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
                axis.set_xlim(1 - 0.03 * longest - 0.2, 1.03 * longest + 0.2)
        axes[0][0].legend(frameon=False)
    return figure


def _plot_folds(axes: Axes, folds: Sequence[History], key: str, colour: str, style: str, label: str) -> None:
    """Draw each fold thinly and their mean boldly, over the epochs that all folds reached; a single epoch as dots."""
    curves = [np.array([row[key] for row in fold], dtype=float) for fold in folds]  # None becomes NaN
    shortest = min(map(len, curves), default=0)
    dot = "o" if shortest == 1 else None
    for curve in curves:
        axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, linewidth=0.7, alpha=0.35, marker=dot, markersize=3)
    if shortest:
        mean = np.stack([curve[:shortest] for curve in curves]).mean(axis=0)
        axes.plot(np.arange(1, shortest + 1), mean, color=colour, linestyle=style, linewidth=1.6, label=label,
                  marker=dot, markersize=6)  # fmt: skip


def draw_confusion(material: Material, cohort: str) -> Figure:
    """Draw the confusion matrix of every model in a cohort, shaded by the share of each true class."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    models = [m for m in material.models if (m, cohort) in material.tables]
    names = [textwrap.shorten(name, 14, placeholder="…") for name in material.class_names]
    with rc_context(STYLE):
        n_columns = min(len(models), 3)
        n_rows = -(-len(models) // n_columns)
        figure = Figure(figsize=(min(DOUBLE_IN, 2.4 * n_columns), 2.4 * n_rows), layout="constrained")
        every = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes in every[len(models):]:
            axes.set_visible(False)
        for k, (axes, model) in enumerate(zip(every, models, strict=False)):
            first = k % n_columns == 0
            counts = confusion_counts(material, model, cohort)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.4)
            for (i, j), n in np.ndenumerate(counts):
                axes.text(j, i, f"{n}\n{100 * shares[i, j]:.0f} %", ha="center", va="center", fontsize=8)
            ticks = range(len(names))
            slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
            axes.set_xticks(ticks, names, **slanted)
            axes.set_yticks(ticks, names if first else [""] * len(names), rotation=90 if len(names) < 3 else 0, va="center")
            axes.set(title=f"{model}, n = {counts.sum()}", xlabel="Decided", ylabel="Truly" if first else "")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    return figure


def draw_contours(records: Sequence[ContourRecord]) -> Figure:
    """Draw the AUC and the share of flipped decisions under each change of the masks, one row of axes per modality."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_lines = [len(record.changes) for record in records]
    height = 0.2 * sum(n_lines) + 0.8 * len(records)
    with rc_context(STYLE):
        figure = Figure(figsize=(DOUBLE_IN, height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(records), 2, squeeze=False, sharey="row", height_ratios=n_lines)
        for record, row in zip(records, grid, strict=True):
            names = [change.name for change in record.changes]
            columns = [("AUC", [change.auc for change in record.changes]),
                       ("share of decisions flipped", [change.flipped for change in record.changes])]  # fmt: skip
            for axes, (label, means) in zip(row, columns, strict=True):
                for line, mean in enumerate(means):
                    if mean.value is None:
                        continue
                    if mean.ci_low is not None and mean.ci_high is not None:
                        axes.plot([mean.ci_low, mean.ci_high], [line, line], color="0.2", linewidth=1)
                    axes.plot(mean.value, line, "s", color=COLOURS[0], markersize=4.5)
                if means[0].value is not None:
                    axes.axvline(means[0].value, color=COLOURS[0], linewidth=0.6, linestyle=":")
                axes.set(xlim=(-0.02, 1.02), xlabel=label, yticks=range(len(names)), yticklabels=names,
                         ylim=(len(names) - 0.5, -0.5))  # fmt: skip
                axes.set_title(f"{record.modality}, n = {record.n_cases}", fontsize=8, loc="left")
    return figure


def forest_rows(rows: Sequence[SubgroupMetric], model: str, cohort: str) -> list[SubgroupMetric]:
    """Return the subgroups that a forest plot shows."""
    return [row for row in rows if (row.model, row.cohort) == (model, cohort)][:MAX_FOREST]


def draw_forest(material: Material, rows: Sequence[SubgroupMetric], model: str, cohort: str) -> Figure:
    """Draw the AUC of each subgroup with its interval below that of all cases."""
    from matplotlib import rc_context

    shown = forest_rows(rows, model, cohort)
    covariates = list(dict.fromkeys(row.covariate for row in shown))
    everyone = material.metric(model, cohort, "auc")
    lines = 1 + len(shown) + len(covariates)
    height = 0.2 * lines + 0.75
    left, right = 2.35, 5.25
    figure, page = _blank(DOUBLE_IN, height)
    with rc_context(STYLE):
        axes = figure.add_axes((left / DOUBLE_IN, 0.45 / height, (right - left) / DOUBLE_IN, 0.2 * lines / height))
        axes.set(xlim=(0, 1), ylim=(lines - 0.5, -0.5), yticks=[], xlabel="AUC (95 % interval)")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.axvline(0.5, color="0.6", linewidth=0.6)
        top = height - 0.12

        def write(x: float, line: int, text: str, *, bold: bool = False) -> None:
            page.text(x, 0.45 + 0.2 * (lines - line - 0.5), text, va="center", fontsize=7.5, parse_math=False,
                      fontweight="bold" if bold else "normal")  # fmt: skip

        counted = textwrap.shorten(material.counted, 16, placeholder="…")
        for x, text in ((0.05, "Subgroup"), (1.6, f"n ({counted})"), (right + 0.1, "AUC (95 % interval)")):
            page.text(x, top, text, va="center", fontsize=7.5, fontweight="bold")
        if everyone is not None:
            if everyone.value is not None:
                axes.axvline(everyone.value, color=COLOURS[0], linewidth=0.6, linestyle=":")
            _forest_line(axes, write, 0, "All cases", everyone.n, everyone.n_positive, everyone.value, everyone.ci_low,
                         everyone.ci_high, everyone.reason, "D")  # fmt: skip
        line = 1
        for covariate in covariates:
            group = [row for row in shown if row.covariate == covariate]
            write(0.05, line, f"{textwrap.shorten(covariate, 40, placeholder='…')}", bold=True)
            write(right + 0.1, line, f"interaction p {p_value(group[0].interaction_p)}")
            for step, row in enumerate(group, start=1):
                _forest_line(axes, write, line + step, "\u2003" + textwrap.shorten(row.level, 24, placeholder="…"), row.n,
                             row.n_positive, row.value, row.ci_low, row.ci_high, row.reason, "s")  # fmt: skip
            line += 1 + len(group)
    return figure


def _forest_line(  # type: ignore[no-untyped-def]
    axes: Axes, write, line: int, name: str, n: int, n_positive: int, value: float | None, low: float | None,
    high: float | None, reason: str, marker: str,
) -> None:  # fmt: skip
    write(0.05, line, name)
    write(1.6, line, f"{n} ({n_positive})")
    write(5.35, line, explained(value, low, high, reason, 2))
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [line, line], color="0.2", linewidth=1, clip_on=False)
    axes.plot(value, line, marker, color=COLOURS[0], markersize=4.5 if marker == "s" else 5.5, clip_on=False)
