"""What the models are good for, in tables: rates at the threshold, calibration, ruling out and in, impact per 1,000."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from her2net.evaluate.record import Metric
from her2net.evaluate.utility import clinical_impact, decision_curve
from her2net.report.material import Material
from her2net.report.results import drop_empty_last, methods_of, threshold_note
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import cohort_label, cohort_name, estimate, metric_name, number, with_interval

DISCRIMINATION = ("pr_auc", "partial_auc_sensitivity", "partial_auc_specificity", "balanced_accuracy", "mcc", "lr_positive",
                  "lr_negative", "ppv_at_prevalence", "npv_at_prevalence")  # fmt: skip
CALIBRATION = ("brier", "calibration_slope", "calibration_intercept", "ece", "ici")
RULED = ("ruled_out_share", "rule_out_npv", "rule_out_sensitivity", "grey_zone_share", "ruled_in_share", "rule_in_ppv",
         "rule_in_specificity")  # fmt: skip
IMPACT_AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Threshold probabilities: the odds at which one would accept false alarms for a positive found."""


def discrimination_table(material: Material) -> Table | None:
    """Return areas and rates that the main table has no room for; `None` unless there are two classes."""
    return _by_model(material, "discrimination", "Table 3. Other areas, and other figures at the threshold", DISCRIMINATION, (
        "PR-AUC: compare it with the share of positives. Partial areas: 0.5 is chance.", threshold_note(material),
    ))  # fmt: skip


def rule_table(material: Material) -> Table | None:
    """Return what becomes of the cases with two thresholds; `None` unless they were fitted."""
    pairs = {model: t.pair for model, t in material.thresholds.items() if t.pair is not None}
    cuts = "; ".join(f"{m}: out below {number(low)}, in from {number(high)}" for m, (low, high) in pairs.items())
    return _by_model(material, "rule_in_out", "Table 5. Ruling out and ruling in with two thresholds", RULED, (
        f"Thresholds. {cuts}. Chosen on out-of-fold predictions for a sensitivity of 0.95 (out) and a specificity of 0.95 (in); "
        "cases between them are in the grey zone. NPV and PPV hold for the share of positives in these cases only.",
    ))  # fmt: skip


def _by_model(material: Material, key: str, caption: str, names: Sequence[str], notes: Sequence[str]) -> Table | None:
    """Return metrics side by side, a row per model and cohort."""
    found = {(m.model, m.cohort, m.metric): m for m in material.evaluation.metrics}
    used = [name for name in names if any(metric == name for _, _, metric in found)]
    pairs = [(model, cohort) for cohort in material.cohorts for model in material.models]
    pairs = [pair for pair in pairs if any((*pair, name) in found for name in used)]
    if not pairs or not material.binary:
        return None
    rows = [[*_row(model, cohort, [found.get((model, cohort, name)) for name in used]), material.remark(model, cohort)]
            for model, cohort in pairs]  # fmt: skip
    shown = [found[(*pair, name)] for pair in pairs for name in used if (*pair, name) in found]
    headers = ["Model", "Cohort", "n (positive)", *(metric_name(name, material.class_names) for name in used), "Read with"]
    headers, rows = drop_empty_last(headers, rows)
    return make_table(key, caption, headers, rows, numeric=range(2, 3 + len(used)),
                      notes=(methods_of(shown, material.class_names), *notes))  # fmt: skip


def _row(model: str, cohort: str, metrics: Sequence[Metric | None], digits: int = 2) -> list[str | Cell]:
    first = next(m for m in metrics if m is not None)
    size = Cell(f"{first.n} ({first.n_positive})", sort=first.n)
    cells = [Cell(estimate(m, digits), sort=None if m is None else m.value) for m in metrics]
    return [model, cohort_label(cohort), size, *cells]


def calibration_table(material: Material) -> Table | None:
    """Return calibration as it is and after recalibration; `None` unless there are two classes."""
    if not material.binary:
        return None
    rows: list[list[str | Cell]] = []
    shown: list[Metric] = []
    for cohort in material.cohorts:
        for model in material.models:
            chosen = material.evaluation.recalibration.get(model)
            kinds = {"": "as predicted"} | ({"_recalibrated": f"recalibrated: {chosen.kind}"} if chosen else {})
            for suffix, what in kinds.items():
                metrics = [material.metric(model, cohort, name + suffix) for name in CALIBRATION]
                if metrics[0] is None:
                    continue
                shown += [m for m in metrics if m is not None]
                row = _row(model, cohort, metrics)
                rows.append([row[0], row[1], what, *row[2:], material.remark(model, cohort)])
    headers = ["Model", "Cohort", "Probabilities", "n (positive)", "Brier score (0)", "Slope (1)", "Intercept (0)",
               "ECE (0)", "ICI (0)", "Read with"]  # fmt: skip
    headers, rows = drop_empty_last(headers, rows)
    return make_table("calibration", "Table 4. Calibration; in brackets behind a name: the ideal", headers, rows,
                      numeric=range(3, 9), notes=(methods_of([m for m in shown if "recal" not in m.metric], material.class_names),
        "Recalibration: of none, temperature, Platt and isotonic the one with the least log loss on patients left out within "
        "the out-of-fold predictions; fitted on those, and shown for other cases only.",
        "ECE and ICI are above 0 in few cases even where calibration is perfect.",
    ))  # fmt: skip


def impact_table(material: Material) -> Table | None:
    """Return what acting on the headline model would mean per 1,000 patients; `None` without both classes."""
    model, cohort = material.headline
    if model not in material.drawn_models(cohort) or not material.binary:
        return None
    known, fitted = material.known(model, cohort), material.thresholds[model].value
    grid = np.array(sorted({*IMPACT_AT, *((fitted,) if 0 < fitted < 1 else ())}))
    labels, probs, patients = known.labels, known.probs[:, 1], np.array(known.patient_ids)
    curve = decision_curve(labels, probs, patients, thresholds=grid)
    impact = clinical_impact(labels, probs, patients, thresholds=grid)
    per_1000 = lambda value, limits: with_interval(value, limits[0], limits[1], 0)
    rows: list[list[str | Cell]] = [
        [
            f"{t:.3f} (the model's threshold)" if t == fitted else f"{t:.2f}", f"1 : {(1 - t) / t:.1f}",
            per_1000(impact.called[k], impact.called_limits[:, k]),
            per_1000(impact.true_positive[k], impact.true_positive_limits[:, k]),
            number(1000 * (labels == 1).mean() - impact.true_positive[k], 0),
            per_1000(1000 * curve.model[k], 1000 * np.array([curve.model_low[k], curve.model_high[k]])),
            number(1000 * curve.treat_all[k], 0),
        ]
        for k, t in enumerate(grid)
    ]  # fmt: skip
    positive = material.class_names[1]
    headers = ["Act from this probability on", "One found is worth", "Called positive", f"of them {positive}", f"{positive}, missed",
               "Net benefit", "Net benefit of calling all"]  # fmt: skip
    return make_table("impact", f"Table 6. Acting on {model}, per 1,000 such patients (from {len(known)} cases, {cohort_name(cohort)})",
                      headers, rows, numeric=range(1, 7), sortable=False, notes=(
        "With 95 % intervals (Wilson; net benefit normal). One found is worth: how many false alarms one accepts for a positive "
        "found, if one acts from that probability on. Net benefit: positives found less false alarms at that rate; of calling none "
        "it is 0. The share of positives is that of these cases. Probabilities as predicted.",
        f"Read with: {remark}." if (remark := material.remark(model, cohort)) else "",
    ))  # fmt: skip
