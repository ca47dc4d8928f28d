"""What one source of knowledge adds to another: the answer to "does radiomics add to the images?", tested on the same patients.

Base and base-with-the-other are each a logistic regression on the logits of their models, fitted as the fusion is: for
out-of-fold predictions without the patients of the fold, for test cases on all out-of-fold predictions. A model that would
get a negative say is left out as there, so that noise turned around neither adds anything nor makes a base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from her2net.artefact import Artefact, Strict, write_csv
from her2net.evaluate.comparisons import compare_aucs, holm
from her2net.evaluate.delong import auc
from her2net.evaluate.record import optimism
from her2net.fuse.logistic import fit_regression, join_logits
from her2net.plan.schema import Plan
from her2net.plan.table_schema import CLINICAL
from her2net.predictions import Predictions

JSON_NAME, CSV_NAME = "added_value.json", "added_value.csv"
STRENGTH = 1.0


class AddedValue(Strict):
    """What `added` brings to `base` on the cases that all of them predict.

    Attributes:
        difference: AUC of both together minus AUC of the base, with its 95 % interval.
        p_adjusted: Holm's, over the questions of a cohort.
        reason: why a figure is undefined; empty if it is not.
        remark: which of the models are optimistic; empty if none is.
    """

    base: list[str]
    added: list[str]
    cohort: str
    n: int
    n_positive: int
    auc_base: float | None
    auc_both: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_adjusted: float | None
    test: str
    reason: str
    remark: str = ""


class AddedValues(Artefact):
    """`added_value.json`."""

    MADE_BY: ClassVar[str] = "her2net_evaluate"

    rows: list[AddedValue]


def list_questions(plan: Plan) -> list[tuple[list[str], list[str]]]:
    """Return (base, added): radiomics to the images of its modality and to all images; clinic to images, and the reverse."""
    images, radiomics = list(plan.modalities), [name for name, t in plan.tables.items() if t.modality is not None]
    questions = [([str(plan.tables[name].modality)], [name]) for name in radiomics]
    if len(images) > 1 and radiomics:
        questions.append((images, radiomics))
    if CLINICAL in plan.tables:
        questions += [(images, [CLINICAL]), ([CLINICAL], images)]
    return questions


def measure_added_value(
    oof: Mapping[str, Predictions], test: Mapping[str, Predictions], plan: Plan, folds: Sequence[Sequence[str]],
    optimistic: Mapping[str, str],
) -> list[AddedValue]:  # fmt: skip
    """Answer every question of `list_questions` that the tables allow; two classes only.

    Args:
        oof, test: model -> predictions with labels; -1 where unknown.
        folds: held-out patients of each fold.
        optimistic: model -> remark that its figures carry.
    """
    if plan.n_classes != 2:
        return []
    rows: list[AddedValue] = []
    for cohort, tables in (("oof", oof), ("test", test)):
        found = [
            _measure(base, added, cohort, oof, tables, folds)
            for base, added in list_questions(plan)
            if all(name in tables for name in (*base, *added))
        ]
        adjusted = holm([np.nan if row.p_value is None else row.p_value for row in found])
        rows += [
            row.model_copy(update={"p_adjusted": _finite(p), "remark": optimism(optimistic, [*row.base, *row.added], cohort)})
            for row, p in zip(found, adjusted, strict=True)
        ]
    return rows


def write_added_value(folder: Path, rows: Sequence[AddedValue], made_from: Mapping[str, str]) -> None:
    """Write the rows as CSV and JSON, the latter last."""
    plain = [{**row.model_dump(), "base": " + ".join(row.base), "added": " + ".join(row.added)} for row in rows]
    write_csv(folder / CSV_NAME, list(AddedValue.model_fields), plain)
    AddedValues(made_from=dict(made_from), rows=list(rows)).save(folder / JSON_NAME)


def remove_added_value(folder: Path) -> None:
    """Remove what an earlier evaluation, of a plan with tables, left."""
    for name in (JSON_NAME, CSV_NAME):
        (folder / name).unlink(missing_ok=True)


def _measure(
    base: Sequence[str], added: Sequence[str], cohort: str, oof: Mapping[str, Predictions],
    tables: Mapping[str, Predictions], folds: Sequence[Sequence[str]],
) -> AddedValue:  # fmt: skip
    names = [*base, *added]
    train = _shared(oof, names)
    cases = train if cohort == "oof" else _shared(tables, names)
    both_scores, base_scores = (
        _out_of_fold(oof, used, cases, folds) if cohort == "oof" else _carried_over(oof, tables, used, train, cases)
        for used in (names, base)
    )
    first = tables[names[0]]
    place = {case_id: i for i, case_id in enumerate(first.case_ids)}
    rows = np.array([place[case_id] for case_id in cases], dtype=int)
    labels, owners = first.labels[rows], np.array(first.patient_ids)[rows]
    found = compare_aucs(labels, both_scores, base_scores, owners)
    return AddedValue(
        base=list(base), added=list(added), cohort=cohort, n=len(cases), n_positive=int((labels == 1).sum()),
        auc_base=_finite(auc(labels, base_scores)), auc_both=_finite(auc(labels, both_scores)),
        difference=_finite(found.difference), ci_low=_finite(found.ci_low), ci_high=_finite(found.ci_high),
        p_value=_finite(found.p_value), p_adjusted=None, test=found.test, reason=found.reason,
    )  # fmt: skip


def _shared(tables: Mapping[str, Predictions], names: Sequence[str]) -> list[str]:
    """Return the labelled cases that all of the models predict."""
    known = [{c for c, y in zip(tables[n].case_ids, tables[n].labels, strict=True) if y >= 0} for n in names]
    return sorted(set.intersection(*known))


def _out_of_fold(
    oof: Mapping[str, Predictions], names: Sequence[str], cases: Sequence[str], folds: Sequence[Sequence[str]]
) -> np.ndarray:
    x, (labels, owners) = join_logits(oof, names, cases), _labels_of(oof[names[0]], cases)
    scores = np.zeros(len(cases))
    for held in folds:
        out = np.isin(owners, list(held))
        if out.any():
            scores[out] = _fit_and_score(x[~out], labels[~out], x[out])
    return scores


def _carried_over(
    oof: Mapping[str, Predictions], test: Mapping[str, Predictions], names: Sequence[str], train: Sequence[str],
    cases: Sequence[str],
) -> np.ndarray:  # fmt: skip
    labels, _ = _labels_of(oof[names[0]], train)
    return _fit_and_score(join_logits(oof, names, train), labels, join_logits(test, names, cases))


def _labels_of(table: Predictions, cases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    place = {case_id: i for i, case_id in enumerate(table.case_ids)}
    rows = np.array([place[case_id] for case_id in cases], dtype=int)
    return table.labels[rows], np.array(table.patient_ids)[rows]


def _fit_and_score(x: np.ndarray, labels: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Return log odds (n_new,); all alike if no model has a say, for the prior of each fold would rank its patients."""
    if len(np.unique(labels)) < 2:
        return np.zeros(len(x_new))
    found = fit_regression(x, labels, STRENGTH)
    return x_new @ found.weights[0] + found.intercepts[0] if found.weights.any() else np.zeros(len(x_new))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
