"""The tables of results: every model in every cohort, models against each other, counts, subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from her2net.evaluate.record import Metric, SubgroupMetric
from her2net.report.material import Material
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import (
    CLUSTERED,
    cohort_label,
    cohort_name,
    estimate,
    explained,
    listed,
    method,
    metric_name,
    number,
    p_value,
)

MAIN_BINARY = ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
MAIN_MULTICLASS = ("auc", "auc_hand_till", "accuracy", "balanced_accuracy", "brier")
RULES = {
    "youden": "Youden: largest sensitivity + specificity",
    "sensitivity": "sensitivity of at least {asked:g}, then largest specificity",
    "specificity": "specificity of at least {asked:g}, then largest sensitivity",
    "cost": "smallest expected cost, a missed positive costing {asked:g} times a false alarm",
    "given": "given, not fitted",
}
THRESHOLD_ORIGINS = {
    "oof": "Chosen on out-of-fold predictions of the training cases{carried}; on the training cases "
           "themselves, rates at the threshold are therefore a little favourable.",
    "nothing": "Given beforehand and used unchanged in all cohorts.",
}  # fmt: skip


def results_table(material: Material) -> Table:
    """Return the main table, models by cohorts with the metrics side by side, as Figure 3B of Fan et al. lays it out."""
    main = MAIN_BINARY if material.binary else MAIN_MULTICLASS
    rows: list[list[str | Cell]] = []
    used: list[Metric] = []
    for cohort in [*material.cohorts, *material.patient_cohorts]:
        for model in material.models:
            found = [material.metric(model, cohort, name) for name in main]
            if found[0] is None:
                continue
            used += [metric for metric in found if metric is not None]
            rows.append([
                Cell(model), cohort_label(cohort), Cell(f"{found[0].n} ({found[0].n_positive})", sort=found[0].n),
                *(Cell(estimate(m), sort=None if m is None else m.value) for m in found),
                "; ".join(dict.fromkeys(m.remark for m in found if m is not None and m.remark)),
            ])  # fmt: skip
    headers = ["Model", "Cohort", f"n ({material.counted})", *(metric_name(name, material.class_names) for name in main), "Read with"]
    headers, rows = drop_empty_last(headers, rows)
    return make_table("results", "Table 2. Every model in every cohort, with 95 % confidence intervals", headers, rows,
                      numeric=range(2, 3 + len(main)), notes=(methods_of(used, material.class_names),
                      threshold_note(material), cohort_note(material)))  # fmt: skip


def drop_empty_last(headers: list[str], rows: list[list[str | Cell]]) -> tuple[list[str], list[list[str | Cell]]]:
    """Leave out the last column, that of remarks, where no row has one."""
    if any(row[-1] for row in rows):
        return headers, rows
    return headers[:-1], [row[:-1] for row in rows]


def methods_of(metrics: Sequence[Metric], class_names: list[str]) -> str:
    """Say how the intervals of these figures were made: metrics of one method together, then the exceptions."""
    made = [(m, m.ci_method.replace(CLUSTERED, "")) for m in metrics if m.ci_method]
    usual = {name: Counter(how for m, how in made if m.metric == name).most_common(1)[0][0] for name in {m.metric for m, _ in made}}
    by_method: dict[str, list[str]] = {}
    for metric, how in sorted(made, key=lambda pair: pair[1] != usual[pair[0].metric]):
        name = metric_name(metric.metric, class_names)
        name += "" if how == usual[metric.metric] else f" of {metric.model} ({cohort_label(metric.cohort)})"
        if name not in by_method.setdefault(how, []):
            by_method[how].append(name)
    parts = [f"{listed(names)}: {method(how)}" for how, names in by_method.items()]
    clustered = any(CLUSTERED in m.ci_method for m, _ in made)
    text = f"Intervals (95 %). {'; '.join(parts)}." if parts else ""
    return f"{text} Where a patient has several cases, the intervals allow for it." if clustered else text


def cohort_note(material: Material) -> str:
    """Say what the short names of the cohorts mean."""
    return "Cohorts. " + "; ".join(
        f"{cohort_label(c)}: {cohort_name(c)}" for c in [*material.cohorts, *material.patient_cohorts]) + "."


def threshold_note(material: Material) -> str:
    """Say where the thresholds come from."""
    if not material.thresholds:
        return "The decision is the most probable class."
    parts = [f"{m} {t.value:.3f} ({RULES[t.rule].format(asked=t.parameter)}{f', n = {t.n}' if t.chosen_on == 'oof' else ''})"
             for m, t in material.thresholds.items()]  # fmt: skip
    carried = " and carried to the test cases unchanged" if "test" in material.cohorts else ""
    origins = dict.fromkeys(THRESHOLD_ORIGINS[t.chosen_on].format(carried=carried) for t in material.thresholds.values())
    return f"A case is called positive from this probability on: {'; '.join(parts)}. {' '.join(origins)}"


def all_metrics_table(material: Material) -> Table:
    """Return every figure with its interval, the method of that, and its n."""
    rows: list[list[str | Cell]] = [
        [
            metric_name(m.metric, material.class_names), m.model, cohort_label(m.cohort),
            Cell(number(m.value), sort=m.value), Cell(number(m.ci_low) if m.ci_low is not None else "", sort=m.ci_low),
            Cell(number(m.ci_high) if m.ci_high is not None else "", sort=m.ci_high), method(m.ci_method),
            Cell(str(m.n), sort=m.n), Cell(str(m.n_positive), sort=m.n_positive),
            Cell("" if m.threshold is None else number(m.threshold), sort=m.threshold),
            "; ".join(part for part in (m.reason, m.remark) if part),
        ]
        for m in material.evaluation.metrics
    ]  # fmt: skip
    headers = ["Metric", "Model", "Cohort", "Value", "From", "To", "Method of the interval", "n", "Positive", "Threshold", "Remark"]
    counted = f"Positive: the cases of the class that a figure is of; of other figures those {material.counted}."
    return make_table("all_metrics", "Every figure, with the 95 % interval from … to and how that was made", headers, rows,
                      numeric=(3, 4, 5, 7, 8, 9), notes=() if material.binary else (counted,))  # fmt: skip


def confusion_counts(material: Material, model: str, cohort: str) -> np.ndarray:
    """Return how often each true class (row) was called each class (column)."""
    table, n = material.known(model, cohort), len(material.class_names)
    called = table.probs[:, 1] >= material.thresholds[model].value if material.binary else None
    decided = table.probs.argmax(axis=1) if called is None else called.astype(int)
    return np.bincount(table.labels * n + decided, minlength=n * n).reshape(n, n)


def confusion_table(material: Material) -> Table:
    """Return the confusion matrices, one line per model, cohort and true class."""
    rows: list[list[str | Cell]] = []
    for cohort in material.cohorts:
        for model in [m for m in material.models if (m, cohort) in material.tables]:
            counts = confusion_counts(material, model, cohort)
            rows += [
                [model, cohort_label(cohort), name, *(Cell(str(k), sort=float(k)) for k in counts[i]),
                 Cell(str(counts[i].sum()), sort=float(counts[i].sum())), material.remark(model, cohort)]
                for i, name in enumerate(material.class_names)
            ]  # fmt: skip
    n = len(material.class_names)
    headers = ["Model", "Cohort", "Truly", *(f"Called {name}" for name in material.class_names), "All", "Read with"]
    headers, rows = drop_empty_last(headers, rows)
    return make_table("confusion", "Confusion matrices: cases by true class and decision", headers, rows,
                      numeric=range(3, 4 + n), notes=(threshold_note(material),))  # fmt: skip


def comparison_matrix(material: Material, cohort: str) -> Table | None:
    """Return the differences of the AUCs, model of the row minus model of the column; `None` with nothing to compare."""
    found = {(r["model_a"], r["model_b"]): r for r in material.evaluation.comparisons
             if r["cohort"] == cohort and r["metric"] == "auc"}  # fmt: skip
    if not found:
        return None
    models = list(dict.fromkeys(name for pair in found for name in pair))
    rows: list[list[str | Cell]] = []
    for a in models:
        cells: list[str | Cell] = [a]
        for b in models:
            row, sign = (found.get((a, b)), 1) if (a, b) in found else (found.get((b, a)), -1)
            if row is None:
                cells.append("-" if a == b else "")
            else:
                cells.append(_difference(row, sign))
        rows.append(cells)
    detectable = [f"{a} and {b}: {_detectable(r)}" for (a, b), r in found.items()]
    used = {str(r["test"]) for r in found.values()}
    tests = used.pop() if len(used) == 1 else "; ".join(f"{a} and {b}: {r['test']}" for (a, b), r in found.items())
    return make_table(
        f"comparison_matrix_{cohort}", f"Difference of AUC, row minus column, {cohort_name(cohort)}",
        ["Model", *models], rows, numeric=range(1, len(models) + 1), sortable=False, notes=(
            "On the n cases that both models predict. Difference (95 % interval); p adjusted by Holm over the pairs. An interval "
            f"across 0 means: not shown to differ. Test: {tests}.",
            "Smallest difference that this many cases would have shown with 80 % power: " + "; ".join(detectable) + ".",
            *(f"Read with: {remark}." for remark in dict.fromkeys(r["remark"] for r in found.values()) if remark),
        ),
    )  # fmt: skip


def _difference(row: dict, sign: int) -> str:
    value, low, high = (None if row[k] is None else sign * row[k] for k in ("difference", "ci_low", "ci_high"))
    low, high = (low, high) if sign > 0 else (high, low)
    return f"{explained(value, low, high, row['reason'])}; p {p_value(row['p_adjusted'])}; n {row['n']}"


def _detectable(row: dict) -> str:
    difference = row.get("detectable_difference")
    if row["difference"] is None:
        return f"undefined, {row['reason']}"
    if difference is None or difference == 0:
        return "undefined, for want of variance"
    return "none at all" if difference > 1 else number(difference, 2)


def comparisons_table(material: Material) -> Table | None:
    """Return every comparison of two models; `None` with one model."""
    rows: list[list[str | Cell]] = [
        [
            metric_name(r["metric"], material.class_names), f"{r['model_a']} minus {r['model_b']}", cohort_label(r["cohort"]),
            Cell(explained(r["difference"], r["ci_low"], r["ci_high"], r["reason"]), sort=r["difference"]),
            Cell(p_value(r["p_value"]), sort=r["p_value"]), Cell(p_value(r["p_adjusted"]), sort=r["p_adjusted"]),
            Cell(p_value(r.get("p_bonferroni")), sort=r.get("p_bonferroni")), Cell(str(r["n"]), sort=r["n"]), r["test"],
            r["remark"],
        ]
        for r in material.evaluation.comparisons
    ]  # fmt: skip
    if not rows:
        return None
    headers = ["Metric", "Models", "Cohort", "Difference (95 % interval)", "p", "p, Holm", "p, Bonferroni", "n", "Test", "Read with"]
    headers, rows = drop_empty_last(headers, rows)
    return make_table("comparisons", "Every comparison of two models on the same cases", headers, rows, numeric=range(3, 8))


def certainty_table(material: Material) -> Table | None:
    """Return how sure each AUC is: permutation p, and how many cases a narrower interval needs."""
    rows: list[list[str | Cell]] = [
        [c.model, cohort_label(c.cohort), Cell(p_value(c.permutation_p), sort=c.permutation_p), c.advice, c.remark]
        for c in material.evaluation.certainty
    ]
    if not rows:
        return None
    how = " or ".join(dict.fromkeys(c.permutation for c in material.evaluation.certainty if c.permutation))
    headers, rows = drop_empty_last(["Model", "Cohort", "Permutation p", "Size of the study", "Read with"], rows)
    return make_table("certainty", "How sure the AUCs are", headers, rows, numeric=(2,), notes=(
        f"Permutation p: how often shuffled labels reach an AUC this high (one-sided, over patients; {how}).",
    ))  # fmt: skip


def subgroups_table(rows: Sequence[SubgroupMetric], key: str, of: str, counted: str) -> Table | None:
    """Return subgroups as a table; `None` where there are none.

    Args:
        key: file name of the table.
        of: whose subgroups they are, for the caption; model and cohort have columns where they differ.
        counted: what n_positive counts.
    """
    several = len({(r.model, r.cohort) for r in rows}) > 1
    cells: list[list[str | Cell]] = [
        [
            f"{r.covariate}: {r.level}", *((r.model, cohort_label(r.cohort)) if several else ()),
            Cell(f"{r.n} ({r.n_positive})", sort=r.n),
            Cell(explained(r.value, r.ci_low, r.ci_high, r.reason), sort=r.value),
            Cell(p_value(r.interaction_p), sort=r.interaction_p), method(r.ci_method), r.remark,
        ]
        for r in rows
    ]  # fmt: skip
    if not cells:
        return None
    headers = ["Subgroup", *(("Model", "Cohort") if several else ()), f"n ({counted})", "AUC (95 % interval)", "Interaction p",
               "Method of the interval", "Read with"]  # fmt: skip
    headers, cells = drop_empty_last(headers, cells)
    first = 3 if several else 1
    return make_table(key, f"AUC by subgroup, {of}", headers, cells, numeric=range(first, first + 3), notes=(
        "Interaction p: whether the levels differ (Welch's test of their AUCs), not adjusted for the number of "
        "covariates; undefined where fewer than two levels have an AUC. Subgroups are "
        "small and were not planned: read them as questions for a next study.",
        "A continuous covariate is split at its median in the training cases.",
    ))  # fmt: skip
