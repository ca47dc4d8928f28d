"""Fan et al. 2025 beside this study: the published counts, with intervals made the same way on both sides."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.estimate import Estimate
from her2net.evaluate.proportions import f1_from_share, proportion
from her2net.report.material import Material
from her2net.report.results import confusion_counts
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import cohort_label, cohort_name, p_value, with_interval

RATES = ("Accuracy", "Sensitivity", "Specificity", "PPV", "NPV", "F1")


def load_paper() -> dict[str, Any]:
    """Return the published figures; `source` says where they stand."""
    return json.loads(resources.files("her2net.report").joinpath("paper.json").read_text(encoding="utf-8"))


def rates_of_counts(tp: int, fn: int, tn: int, fp: int) -> dict[str, Estimate]:
    """Return the rates of a confusion matrix with Wilson intervals."""
    return {
        "Accuracy": proportion(tp + tn, tp + fn + tn + fp),
        "Sensitivity": proportion(tp, tp + fn),
        "Specificity": proportion(tn, tn + fp),
        "PPV": proportion(tp, tp + fp),
        "NPV": proportion(tn, tn + fn),
        "F1": f1_from_share(proportion(tp, tp + fp + fn)),
    }


def paper_tables(material: Material) -> list[Table]:
    """Return the comparison of figures and that of the paired tests; empty unless there are two classes."""
    if not material.binary:
        return []
    paper, cohort = load_paper(), material.headline[1]
    rows: list[list[str | Cell]] = []
    for ours, theirs in paper["models"].items():
        counts, n = theirs["confusion"], paper["n"]
        low, high = theirs["auc_ci95"]
        auc = Estimate(theirs["auc"], low, high, "as printed: binomial exact")
        rows.append([theirs["name"], "Fan et al., test", f"{n} ({paper['n_positive']})", _cell(auc),
                     *map(_cell, rates_of_counts(**counts).values())])  # fmt: skip
        rows.append(_our_row(material, ours, cohort))
    notes = (
        f"Published: {paper['source']}.",
        "Both sides alike: AUC with the binomial-exact interval (Clopper-Pearson of AUC × n), printed by the paper and computed "
        "here; rates with Wilson intervals from the counts. her2net's default intervals stand in Table 2.",
        *paper["notes"],
        "Other patients, another reference standard, another threshold: the rows are side by side for orientation and are no "
        "test of either. Overlapping intervals do not show equality.",
    )
    headers = ["Model", "Study and cohort", "n (positive)", "AUC", *RATES]
    table = make_table("paper", "This study beside Fan et al. 2025, 95 % intervals", headers, rows, numeric=range(2, 10),
                       notes=notes, sortable=False)  # fmt: skip
    return [table, _tests_table(material, paper, cohort)]


def _our_row(material: Material, model: str, cohort: str) -> list[str | Cell]:
    if (model, cohort) not in material.tables or model not in material.thresholds:
        return [model, f"here: no model of this name in {cohort_name(cohort)}", *[""] * (2 + len(RATES))]
    known = material.known(model, cohort)
    auc = auc_interval(known.labels, known.probs[:, 1], method="binomial-exact")
    (tn, fp), (fn, tp) = confusion_counts(material, model, cohort).tolist()
    where = "; ".join(filter(None, [f"here, {cohort_label(cohort)}", material.remark(model, cohort)]))
    return [model, where, f"{len(known)} ({tp + fn})", _cell(auc),
            *map(_cell, rates_of_counts(tp, fn, tn, fp).values())]  # fmt: skip


def _cell(estimate: Estimate) -> Cell:
    return Cell(with_interval(estimate.value, estimate.ci_low, estimate.ci_high))


def _tests_table(material: Material, paper: dict[str, Any], cohort: str) -> Table:
    ours = {
        (r["model_a"], r["model_b"]): r
        for r in material.evaluation.comparisons
        if r["cohort"] == cohort and r["metric"] == "auc"
    }
    rows: list[list[str | Cell]] = []
    for a, b, p in paper["delong_p"]:
        names = [paper["models"][model]["name"] for model in (a, b)]
        found = ours.get((a, b)) or ours.get((b, a))
        here = "; ".join(filter(None, [f"{a} and {b}", found["remark"] if found else ""]))
        rows.append([f"{names[0]} and {names[1]}", f"{p:.4f}", here, p_value(found["p_value"]) if found else ""])
    return make_table("paper_tests", "Paired tests of the AUCs (DeLong, not adjusted)",
                      ["Fan et al. 2025", "p", "Here", "p here"], rows, numeric=(1, 3), sortable=False)  # fmt: skip
