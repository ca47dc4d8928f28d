"""Which fusion: every method estimated out of fold in an inner loop, and the simplest within one standard error of the best.

Whatever is fitted, the choice of the method included, is fitted without the patients whom it then predicts: for the
fusion's own OOF table the whole choice is made anew on the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from her2net.artefact import Strict
from her2net.errors import PlanError
from her2net.fuse.logistic import SubsetModel, apply_fusion, fit_logistic
from her2net.fuse.pool import Labels, fit_gated, pool_logits, weigh_by_auc
from her2net.predictions import Predictions, make_predictions

Method = Literal["logistic", "mean", "weighted", "gated"]
METHODS: tuple[Method, ...] = ("mean", "weighted", "gated", "logistic")
METHOD_NAMES: dict[Method, str] = {
    "logistic": "logistic regression on the logits, one per set of tables",
    "mean": "mean of the logits",
    "weighted": "mean of the logits, each table weighted by how far its AUC lies above 0.5",
    "gated": "one logistic regression for all cases, gated by which tables a case has",
}
LEAST_FOLDS = 3
"""Fewer leave no inner loop: of two folds one is held out, and nothing remains to choose on."""
EPS = 1e-12


class Candidate(Strict):
    """One method, estimated in the inner loop.

    Attributes:
        n_parameters: numbers fitted on labels; what "simple" is measured by.
        log_loss: mean over patients of the mean of their cases, in nats; `null` where the method cannot be fitted.
        excess, excess_se: how much above the best candidate, patient by patient, and its standard error.
        reason: why it is not a candidate; empty for one that is.
    """

    method: Method
    n_parameters: int
    log_loss: float | None
    excess: float | None
    excess_se: float | None
    n_patients: int
    reason: str


class Selection(Strict):
    """How the method was chosen.

    Attributes:
        criterion, rule: in words.
        chosen: the method of the models that predict new cases.
        candidates: estimated on all folds.
        per_fold: method chosen without each fold, which predicts that fold in the fusion's OOF table.
    """

    criterion: str = "log loss of the fused probabilities, out of fold"
    rule: str = "fewest fitted numbers among those within one standard error of the best (paired by patient)"
    chosen: Method
    candidates: list[Candidate]
    per_fold: list[Method]


class LeftOut(Strict):
    """A set of tables without a model, for it could not be fitted; its cases are predicted by the model of a part of it.

    Attributes:
        fold: in the fit without this fold's patients, which predicts them; `null` in the fit that predicts new cases.
    """

    modalities: list[str]
    fold: int | None
    reason: str


def known_labels(tables: Mapping[str, Predictions], without_patients: frozenset[str] = frozenset()) -> dict[str, int]:
    """Return case -> class of every case whose class is known, but those of some patients."""
    found: dict[str, int] = {}
    for table in tables.values():
        rows = zip(table.case_ids, table.patient_ids, table.labels, strict=True)
        found |= {c: int(y) for c, p, y in rows if y >= 0 and p not in without_patients}
    return found


def fit_fusion(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], class_names: Sequence[str], strength: float,
    *, method: Method = "logistic", without_patients: frozenset[str] = frozenset(),
) -> list[SubsetModel]:  # fmt: skip
    """Fit one method: a model per set of tables that it can be fitted for (see `find_unfit`).

    Args:
        tables: name -> predictions with labels, of networks or of anything else; any number of them.
        without_patients: left out of the fit.

    Raises:
        PlanError: a class is absent among the cases of a single table.
    """
    labels = known_labels(tables, without_patients)
    unfit = find_unfit(tables, subsets, class_names, method=method, without_patients=without_patients)
    alone = next((f"{subset[0]}: {reason}" for subset, reason in unfit.items() if len(subset) == 1), "")
    if alone:
        raise PlanError(f"fusion of {alone}. Take it out of the plan.")
    subsets = [subset for subset in subsets if tuple(subset) not in unfit]
    cases = {tuple(subset): _cases_with(tables, subset, labels) for subset in subsets}
    if method == "gated":
        return fit_gated(tables, subsets, labels, class_names, strength)
    if method == "logistic":
        return [fit_logistic(tables, subset, case_ids, np.array([labels[c] for c in case_ids]), class_names, strength)
                for subset, case_ids in cases.items()]  # fmt: skip
    weight_of = weigh_by_auc(tables, labels) if method == "weighted" else dict.fromkeys(tables, 1.0)
    return [pool_logits(tables, subset, labels, class_names, weight_of) for subset in cases]


def find_unfit(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], class_names: Sequence[str],
    *, method: Method, without_patients: frozenset[str] = frozenset(),
) -> dict[tuple[str, ...], str]:  # fmt: skip
    """Return the sets of tables that a method cannot be fitted for, and why: a table is not there, or a class has no case with all."""
    labels, found = known_labels(tables, without_patients), {}
    for subset in map(tuple, subsets):
        if absent := [name for name in subset if name not in tables]:
            found[subset] = f"no case has {' or '.join(absent)}"
            continue
        counts = np.bincount([labels[c] for c in _cases_with(tables, subset, labels)], minlength=len(class_names))
        needed = method == "logistic" or (method != "mean" and len(subset) == 1)
        if needed and (counts == 0).any():
            them = "it" if len(subset) == 1 else "all of them"
            found[subset] = f"no case of class {class_names[int(counts.argmin())]!r} has {them}"
    return found


def list_left_out(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], class_names: Sequence[str], method: Method,
    *, fold: int | None = None, held: Sequence[str] = (),
) -> list[LeftOut]:  # fmt: skip
    """List the sets without a model in a fit without the patients of a fold, or of nobody."""
    unfit = find_unfit(tables, subsets, class_names, method=method, without_patients=frozenset(held))
    return [LeftOut(modalities=list(subset), fold=fold, reason=reason) for subset, reason in unfit.items()]


def _cases_with(tables: Mapping[str, Predictions], subset: Sequence[str], labels: Labels) -> list[str]:
    having = set.intersection(*(set(tables[name].case_ids) for name in subset))
    return sorted(having & set(labels))


def fuse_out_of_fold(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], folds: Sequence[Sequence[str]],
    class_names: Sequence[str], strength: float, methods: Sequence[Method],
) -> Predictions:  # fmt: skip
    """Fuse each fold's patients with weights fitted on the other folds' patients, who alone say which sets have a model.

    Args:
        methods: of each fold.
    """
    parts = []
    for held, method in zip(folds, methods, strict=True):
        rows = {name: _of_patients(table, held) for name, table in tables.items()}
        if any(len(table) for table in rows.values()):
            models = fit_fusion(tables, subsets, class_names, strength, method=method, without_patients=frozenset(held))
            parts.append(apply_fusion({k: v for k, v in rows.items() if len(v)}, models))
    return make_predictions(
        [c for part in parts for c in part.case_ids], [p for part in parts for p in part.patient_ids],
        np.concatenate([part.probs for part in parts]),
        labels=[int(y) for part in parts for y in part.labels], folds=[f for part in parts for f in part.folds],
    )  # fmt: skip


def _of_patients(table: Predictions, patients: Sequence[str]) -> Predictions:
    return table.take(np.isin(table.patient_ids, list(patients)))


def select_method(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], folds: Sequence[Sequence[str]],
    class_names: Sequence[str], strength: float,
) -> Selection:  # fmt: skip
    """Choose the method for new cases on all folds, and the method of each fold on the others.

    Source:
        Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (the one-standard-error rule); Hastie,
        Tibshirani & Friedman 2009, section 7.10. Here the error is that of the difference to the best, patient by patient.
    """
    if len(folds) < LEAST_FOLDS:
        reason = f"needs at least {LEAST_FOLDS} folds, so that two are left to choose on when one is held out"
        return Selection(chosen="logistic", candidates=[_no_candidate("logistic", 0, reason)], per_fold=["logistic"] * len(folds))
    candidates = _estimate(tables, subsets, folds, class_names, strength)
    per_fold = []
    for k, held in enumerate(folds):
        rest = {name: table.take(~np.isin(table.patient_ids, list(held))) for name, table in tables.items()}
        others = [fold for i, fold in enumerate(folds) if i != k]
        per_fold.append(_simplest_good(_estimate(rest, subsets, others, class_names, strength)))
    return Selection(chosen=_simplest_good(candidates), candidates=candidates, per_fold=per_fold)


def _estimate(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], folds: Sequence[Sequence[str]],
    class_names: Sequence[str], strength: float,
) -> list[Candidate]:  # fmt: skip
    """Estimate every method out of fold."""
    losses: dict[Method, np.ndarray] = {}
    reasons: dict[Method, str] = {}
    for method in METHODS:
        reasons[method] = "the same as logistic: no case lacks a table" if method == "gated" and _complete(tables) else ""
        reasons[method] = reasons[method] or _why_not(tables, subsets, folds, class_names, method)
        if reasons[method]:
            continue
        try:
            fused = fuse_out_of_fold(tables, subsets, folds, class_names, strength, [method] * len(folds))
        except PlanError as error:
            reasons[method] = str(error)
        else:
            losses[method] = _loss_per_patient(fused)
    best = min(losses, key=lambda method: losses[method].mean())
    found = []
    for method in METHODS:
        n_parameters = _count_parameters(method, tables, subsets, len(class_names))
        if method not in losses:
            found.append(_no_candidate(method, n_parameters, reasons[method]))
            continue
        excess, n = losses[method] - losses[best], len(losses[method])
        found.append(Candidate(method=method, n_parameters=n_parameters, log_loss=float(losses[method].mean()), n_patients=n,
                               excess=float(excess.mean()), excess_se=float(excess.std(ddof=1) / np.sqrt(n)), reason=""))
    return found


def _why_not(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], folds: Sequence[Sequence[str]],
    class_names: Sequence[str], method: Method,
) -> str:  # fmt: skip
    """Say which set a method cannot be fitted for: a fold of an inner loop may hold all cases of a class that a set has."""
    found = (find_unfit(tables, subsets, class_names, method=method, without_patients=frozenset(held)) for held in folds)
    return next((f"fusion of {' + '.join(subset)}: {reason}" for unfit in found for subset, reason in unfit.items()), "")


def _no_candidate(method: Method, n_parameters: int, reason: str) -> Candidate:
    return Candidate(method=method, n_parameters=n_parameters, log_loss=None, excess=None, excess_se=None, n_patients=0,
                     reason=reason)


def _complete(tables: Mapping[str, Predictions]) -> bool:
    return len({table.case_ids for table in tables.values()}) == 1


def _loss_per_patient(fused: Predictions) -> np.ndarray:
    """Return the mean log loss of each patient's cases of known class, patients in the order of their names."""
    known = fused.take(fused.labels >= 0)
    loss = -np.log(np.maximum(known.probs[np.arange(len(known)), known.labels], EPS))
    _, place = np.unique(known.patient_ids, return_inverse=True)
    return np.bincount(place, weights=loss) / np.bincount(place)


def _count_parameters(
    method: Method, tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], n_classes: int
) -> int:
    n_logits, n_tables = n_classes - 1, len(tables)
    if method == "mean":
        return 0
    if method == "weighted":
        return n_tables
    if method == "logistic":
        return sum(n_logits * (1 + len(subset) * n_logits) for subset in subsets)
    return n_logits * (1 + n_tables * n_logits)


def describe_selection(selection: Selection) -> list[str]:
    """Return the choice as lines of text."""
    lines = [f"fusion chose {selection.chosen}: {selection.rule}; {selection.criterion}"]
    for c in selection.candidates:
        shown = c.reason if c.log_loss is None else f"log loss {c.log_loss:.4f}, {c.excess:.4f} ± {c.excess_se:.4f} above the best"
        lines.append(f"    {c.method} ({c.n_parameters} fitted numbers): {shown}")
    return [*lines, f"    chosen without each fold: {', '.join(selection.per_fold)}"]


def describe_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one line per set that lacks a model somewhere: why, and where."""
    lines = []
    for names, reason in dict.fromkeys((tuple(item.modalities), item.reason) for item in left_out):
        folds = [item.fold for item in left_out if (tuple(item.modalities), item.reason) == (names, reason)]
        where = "" if None in folds else f" without the patients of fold {', '.join(map(str, folds))}, who are held out"
        lines.append(f"{' + '.join(names)}: no model, for {reason}{where}. Such a case is predicted from the largest part of them "
                     "that has a model.")
    return lines


def _simplest_good(candidates: Sequence[Candidate]) -> Method:
    """Apply the one-standard-error rule."""
    good = [c for c in candidates if c.excess is not None and c.excess_se is not None and c.excess <= c.excess_se]
    return min(good, key=lambda c: (c.n_parameters, c.excess)).method
