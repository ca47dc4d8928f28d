"""The figures of a report: those of the evaluation, taken over, and its own; each with what it says in words."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from her2net.artefact import write_bytes
from her2net.evaluate.figures import DRAWERS, FORMATS, save_figure
from her2net.evaluate.record import SubgroupMetric, optimism
from her2net.evaluate.utility import decision_curve
from her2net.explain.contour_record import describe_contours
from her2net.fuse.stage import FUSION
from her2net.networks.build import network_spec
from her2net.paths import folder_name
from her2net.plan.table_schema import CLINICAL
from her2net.report.cohort import Group, count_groups
from her2net.report.figures import draw_confusion, draw_contours, draw_flow, draw_forest, draw_training, forest_rows
from her2net.report.gallery import collect_contours
from her2net.report.material import Material
from her2net.report.results import confusion_counts
from her2net.report.tabular import clinical_scales, draw_importance, draw_nomogram, fusion_scales
from her2net.report.words import cohort_name, count, estimate, explained, listed, metric_name, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_BYTES = 150_000
"""Vector graphics up to this size are embedded as they are; larger ones as PNG."""
PNG_DPI = 300
CSS_DPI = 96


@dataclass(frozen=True)
class Picture:
    """A figure, embedded.

    Attributes:
        key: its file name in `figures/`, without ending.
        caption: what it shows and how to read it.
        alt: what it says, for readers who do not see it.
        uri: the picture itself.
        width: in CSS pixels, at the size it has in a journal.
        height: likewise.
    """

    key: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int


def make_pictures(material: Material, folder: Path) -> list[Picture]:
    """Write every figure as SVG, PDF and PNG into a folder, and return them embedded, in the order of the report."""
    groups, subgroups = count_groups(material), material.evaluation.subgroups
    found = [_own(folder, "flow", draw_flow(material, groups), "Cohort flow. The numbers stand in the table below.",
                  _describe_flow(groups))]  # fmt: skip
    found.append(_own(
        folder, "training", draw_training(material),
        "Training. Thin lines or small dots: folds; bold: their mean. Held-out cases are watched and steer nothing"
        + (", except where the epoch is chosen on them, which is marked optimistic." if material.plan.optimistic else "."),
        _describe_training(material),
    ))  # fmt: skip
    for cohort in material.cohorts:
        drawn = material.drawn_models(cohort)
        if drawn:
            found += [_taken_over(material, folder, kind, cohort, drawn) for kind in DRAWERS]
        found.append(_own(
            folder, f"confusion_{cohort}", draw_confusion(material, cohort),
            f"Decisions, {cohort_name(cohort)}. Counts, and per cent of each true class."
            + _read_with(material, material.models, cohort),
            _describe_confusion(material, cohort),
        ))  # fmt: skip
    found += _table_pictures(material, folder)
    contours, _ = collect_contours(material.project)
    if contours:
        found.append(_own(
            folder, "contours", draw_contours(contours), "Predictions with other outlines: AUC with 95 % interval, and the share of "
            "decisions that flip with 95 % interval. Dotted: the masks as drawn.", " ".join(map(describe_contours, contours)),
        ))  # fmt: skip
    model, cohort = material.headline
    shown = forest_rows(subgroups, model, cohort)
    if shown:
        both = "both" if material.binary else "all"
        found.append(_own(
            folder, "subgroups", draw_forest(material, subgroups, model, cohort),
            f"AUC of {model} by subgroup, {cohort_name(cohort)}. Diamond and dotted line: all cases. Bars: 95 % intervals. "
            f"Subgroups without {both} classes have no AUC." + _how_many(subgroups, shown, model, cohort)
            + _read_with(material, [model], cohort), _describe_forest(shown),
        ))  # fmt: skip
    return found


def _table_pictures(material: Material, folder: Path) -> list[Picture]:
    """Draw what table models go by, and nomograms of the covariates and of the fusion."""
    found = []
    for name, going_by in material.explained.items():
        if going_by.importance:
            first = max(going_by.importance, key=lambda item: item.loss)
            found.append(_own(
                folder, f"importance_{folder_name(name)}", draw_importance(going_by),
                f"{name}: loss of out-of-fold AUC when a feature is shuffled between held-out cases. Bars: mean; lines: 95 % of "
                "the shuffles.", f"Bar chart of {name}. The largest loss is that of {first.name}: {number(first.loss)}.",
            ))  # fmt: skip
    nomograms = {CLINICAL: clinical_scales(material.explained[CLINICAL])} if CLINICAL in material.explained else {}
    nomograms |= {FUSION: fusion_scales(material)} if material.explained else {}
    for name, (scales, origin) in nomograms.items():
        if scales and material.binary:
            what = "the covariates" if name == CLINICAL else "the probabilities that each model gives"
            entered = list(material.plan.tables[name].columns) if name == CLINICAL else material.fused
            silent = [n for n in entered if n not in {scale.name for scale in scales}]
            without = f" Without a scale, for it has no weight in the model: {listed(silent)}." if silent else ""
            found.append(_own(
                folder, f"nomogram_{name}", draw_nomogram(scales, origin, material.class_names[1]),
                f"Nomogram of {name}: read the points above each of {what}, add them up, and read the probability below the sum."
                f"{without}",
                f"Nomogram of {name}, with one scale for each of {listed([scale.name for scale in scales])}.",
            ))  # fmt: skip
    return found


CAPTIONS = {
    "roc": "ROC curves. Shaded: 95 % band of sensitivity (bootstrap over patients).",
    "precision_recall": "Precision-recall curves. Level line: the share of positives, which a coin would reach "
    "(of each model where it differs).",
    "calibration": "Calibration. Lines: observed share of positives by predicted probability (loess). Points: tenths of the "
    "probability scale with 95 % Wilson intervals. Bars: how many cases. On the diagonal a probability means what it says.",
    "decision_curve": "Decision curves. Net benefit of acting on the model at each threshold probability, with 95 % bands, against "
    "calling all or none positive (for each model, where the share of positives differs). A model is of use where it lies above both.",
}


def _taken_over(material: Material, folder: Path, kind: str, cohort: str, models: list[str]) -> Picture:
    """Copy a figure of the evaluation."""
    source = material.project.paths.evaluation / "figures"
    for suffix in FORMATS:
        write_bytes(folder / f"{kind}_{cohort}.{suffix}", (source / f"{kind}_{cohort}.{suffix}").read_bytes())
    sizes = listed([f"{model} n = {len(material.known(model, cohort))}" for model in models])
    dots = " Dots: the operating points." if kind in ("roc", "precision_recall") else ""
    rest = dots if material.binary else " Each class against all others."
    caption = f"{CAPTIONS[kind]}{rest} {cohort_name(cohort).capitalize()}: {sizes}.{_read_with(material, models, cohort)}"
    return _embed(folder / f"{kind}_{cohort}", caption, _describe_curves(material, kind, cohort, models))


def _how_many(every: Sequence[SubgroupMetric], shown: Sequence[SubgroupMetric], model: str, cohort: str) -> str:
    n = sum((row.model, row.cohort) == (model, cohort) for row in every)
    return f" The first {len(shown)} of {n}; subgroups.csv has them all." if n > len(shown) else ""


def _read_with(material: Material, models: Sequence[str], cohort: str) -> str:
    """Say which of the models drawn are optimistic; empty if none is."""
    remark = optimism(material.evaluation.remarks, models, cohort)
    return f" Read with: {remark}." if remark else ""


def _own(folder: Path, key: str, figure: Figure, caption: str, alt: str) -> Picture:
    save_figure(figure, folder / key)
    return _embed(folder / key, caption, alt)


def _embed(stem: Path, caption: str, alt: str) -> Picture:
    vector, raster = (stem.with_name(f"{stem.name}.{suffix}").read_bytes() for suffix in ("svg", "png"))
    kind, content = ("svg+xml", vector) if len(vector) <= SMALL_BYTES else ("png", raster)
    width, height = (round(n * CSS_DPI / PNG_DPI) for n in struct.unpack(">II", raster[16:24]))
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(stem.name, caption, alt, uri, width, height)


def _describe_flow(groups: Sequence[Group]) -> str:
    parts = []
    for group in groups:
        classes = listed([f"{n} {name}" for name, n in group.per_class.items()])
        parts.append(f"{group.name}: {count(group.n_cases, 'case')} of {count(group.n_patients, 'patient')}, {classes}.")
    return "Flow diagram. " + " ".join(parts)


def _describe_training(material: Material) -> str:
    parts = []
    for name, folds in material.histories.items():
        last = [fold[-1] for fold in folds if fold]
        if not last:
            continue
        ends = [_mean([row[key] for row in last]) for key in ("train_loss", "val_loss", "val_auc")]
        parts.append(
            f"{name}: {_when(material, name, len(folds[0]))} the loss is {ends[0]} on training and {ends[1]} on held-out cases, "
            f"the held-out AUC {ends[2]} (means of {len(last)} folds)."
        )
    return "Training curves. " + " ".join(parts)


def _when(material: Material, modality: str, n_epochs: int) -> str:
    solved = network_spec(material.plan.modalities[modality].training.network).solved
    return "solved in one go, so each fold is a point;" if solved else f"after {count(n_epochs, 'epoch')}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known) if known else None, 2)


def _describe_curves(material: Material, kind: str, cohort: str, models: list[str]) -> str:
    metrics = {"roc": ("auc",), "precision_recall": ("pr_auc",), "calibration": ("calibration_slope", "calibration_intercept"),
               "decision_curve": ()}[kind]  # fmt: skip
    names = {"auc": "AUC", "pr_auc": "area", "calibration_slope": "slope", "calibration_intercept": "intercept"}
    if not material.binary:
        metrics = tuple(f"auc_class_{c}" for c in range(len(material.class_names))) if kind == "roc" else ()
        names = {name: metric_name(name, material.class_names) for name in metrics}
    parts = []
    for model in models:
        found = [(names[name], material.metric(model, cohort, name)) for name in metrics]
        parts += [f"{model}: " + ", ".join(f"{n} {estimate(m, 2)}" for n, m in found if m)] if metrics else []
    title = {"roc": "ROC curves", "precision_recall": "Precision-recall curves", "calibration": "Calibration curves",
             "decision_curve": "Decision curves"}[kind]  # fmt: skip
    if kind == "decision_curve" and material.binary:
        parts = [f"{model} {_useful_range(material, model, cohort)}" for model in models]
    if not parts:
        return f"{title} of {listed(models)}, {cohort_name(cohort)}, each class against all others."
    return f"{title} of {listed(models)}, {cohort_name(cohort)}. {'; '.join(parts)}."


def _useful_range(material: Material, model: str, cohort: str) -> str:
    """Say where acting on the model beats calling all or none positive."""
    known = material.known(model, cohort)
    curve = decision_curve(known.labels, known.probs[:, 1], np.array(known.patient_ids))
    better = curve.thresholds[curve.gain > 1e-12]
    if not len(better):
        return "is nowhere above both defaults"
    return f"is above both defaults at {len(better)} of {len(curve.gain)} thresholds between {better[0]:.2f} and {better[-1]:.2f}"


def _describe_confusion(material: Material, cohort: str) -> str:
    names, parts = material.class_names, []
    for model in [m for m in material.models if (m, cohort) in material.tables]:
        counts = confusion_counts(material, model, cohort)
        right = listed([f"{counts[i, i]} of {counts[i].sum()} {name}" for i, name in enumerate(names)])
        parts.append(f"{model} decides {right} rightly.")
    return f"Confusion matrices, {cohort_name(cohort)}. " + " ".join(parts)


def _describe_forest(rows: Sequence[SubgroupMetric]) -> str:
    parts = [f"{r.covariate} {r.level}, n {r.n}: {explained(r.value, r.ci_low, r.ci_high, r.reason, 2)}" for r in rows]
    return "Forest plot of the AUC by subgroup. " + "; ".join(parts) + "."
