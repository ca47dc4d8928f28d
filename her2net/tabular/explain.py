"""What a table model goes by: odds ratios with intervals, and what shuffling a feature costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from her2net.evaluate.delong import auc
from her2net.plan.table_schema import CLINICAL
from her2net.project import Project
from her2net.raw.dataset import Case
from her2net.tabular.encode import Term, encode
from her2net.tabular.features import FeatureTable
from her2net.tabular.learn import FittedModel, Trial, against_first, estimate, fit_with, make_predictor
from her2net.tabular.radiomics import family_of
from her2net.tabular.record import Importance, TableExplanation, TableFold, TermWeight

N_RESAMPLES = 200
N_SHUFFLES = 20
N_FEATURES_SHOWN = 15
MAX_LOG_ODDS = 20.0


def explain_table(
    project: Project, name: str, folds: Sequence[TableFold], table: FeatureTable, training: Sequence[Case],
    made_from: dict[str, str],
) -> TableExplanation:  # fmt: skip
    """Explain the folds' models on their held-out cases, and the elastic net on all training cases.

    Args:
        table: features of the training cases, sorted by case id.
    """
    by_id = {case.case_id: case for case in training}
    cases = [by_id[case_id] for case_id in table.case_ids]
    losses: dict[str, list[float]] = {}
    for record in folds:
        for learner in project.plan.tables[name].model.learners:
            losses.setdefault(learner, []).append(min(t.log_loss for t in record.model.trials if t.learner == learner))
    weights, intercepts = _weigh(project, name, folds, table, cases)
    return TableExplanation(
        made_from=made_from, table=name, learners=[record.model.chosen.learner for record in folds],
        inner_log_losses={learner: float(np.mean(values)) for learner, values in losses.items()},
        n_features=len(table.columns), n_terms=len(folds[0].model.encoding.terms), weights=weights, intercepts=intercepts,
        ci_method=f"percentile bootstrap over patients, {N_RESAMPLES} resamples, penalty fixed" if weights else "",
        importance=_importance(project, folds, table, cases), n_shuffles=N_SHUFFLES,
    )  # fmt: skip


def _weigh(
    project: Project, name: str, folds: Sequence[TableFold], table: FeatureTable, cases: Sequence[Case]
) -> tuple[list[TermWeight], list[float]]:
    """Fit the elastic net to all training cases, with the setting that the folds found best on average."""
    plan = project.plan.tables[name].model
    if "elastic_net" not in plan.learners:
        return [], []
    chosen = _best_elastic_net(folds)
    labels, owners = np.array([case.label for case in cases]), np.array([case.patient_id for case in cases])
    n_classes = project.plan.n_classes
    model = fit_with(table, labels, n_classes, plan, chosen)
    terms = model.encoding.terms
    centre = np.array(model.weights)
    draws = _bootstrap(model, table, labels, owners, chosen, seed=plan.seed)
    found = []
    for c in range(n_classes - 1):
        for j, term in enumerate(terms):
            low, high = np.percentile(draws[:, c, j], (2.5, 97.5)) if len(draws) else (None, None)
            per_unit = 1 / term.sd if not term.level and _is_plain(model, term.column) else None
            if centre[c, j] == 0 and name != CLINICAL:
                continue
            found.append(TermWeight(
                term=term.name, reference=_reference(model, term), class_name=project.plan.class_names[c + 1],
                weight=float(centre[c, j]),
                odds_ratio=_ratio(centre[c, j], _step(term.level, term.sd)),
                ci_low=None if low is None else _ratio(low, _step(term.level, term.sd)),
                ci_high=None if high is None else _ratio(high, _step(term.level, term.sd)),
                odds_ratio_per_unit=None if per_unit is None else _ratio(centre[c, j], per_unit),
                unit_ci_low=None if per_unit is None or low is None else _ratio(low, per_unit),
                unit_ci_high=None if per_unit is None or high is None else _ratio(high, per_unit),
                n_folds_used=sum(_is_used(record.model, term.name, c) for record in folds), mean=term.mean, sd=term.sd,
            ))  # fmt: skip
    return sorted(found, key=lambda w: (w.class_name, -abs(w.weight))), model.intercepts


def _step(level: str, sd: float) -> float:
    """Of a level, the whole way from the reference; of a number, one standard deviation."""
    return 1 / sd if level else 1.0


def _reference(model: FittedModel, term: Term) -> str:
    """Return the levels of a term's column that have no term of their own; of a number, nothing."""
    if not term.level:
        return ""
    with_term = {other.level for other in model.encoding.terms if other.column == term.column}
    levels = next(code.levels for code in model.encoding.columns if code.name == term.column)
    return " or ".join(level for level in levels if level not in with_term)


def _ratio(weight: float, step: float) -> float:
    return float(np.exp(np.clip(weight * step, -MAX_LOG_ODDS, MAX_LOG_ODDS)))


def _is_plain(model: FittedModel, column: str) -> bool:
    """Whether a column enters as it is, so that an odds ratio per unit makes sense."""
    return next(not code.knots for code in model.encoding.columns if code.name == column)


def _best_elastic_net(folds: Sequence[TableFold]) -> Trial:
    scores: dict[str, list[float]] = {}
    trials: dict[str, Trial] = {}
    for record in folds:
        for trial in record.model.trials:
            if trial.learner == "elastic_net":
                key = str(sorted(trial.settings.items()))
                trials[key] = trial
                scores.setdefault(key, []).append(trial.log_loss)
    return trials[min(scores, key=lambda key: float(np.mean(scores[key])))]


def _is_used(model: FittedModel, term: str, c: int) -> bool:
    names = [t.name for t in model.encoding.terms]
    if model.trees:
        return term in names and any(names.index(term) in tree.term for tree in model.trees)
    return term in names and model.weights[c][names.index(term)] != 0


def _bootstrap(
    model: FittedModel, table: FeatureTable, labels: np.ndarray, owners: np.ndarray, chosen: Trial, *, seed: int
) -> np.ndarray:
    """Return (n_resamples, n_classes - 1, n_terms): weights of refits to resampled patients, encoding and penalty kept."""
    x = encode(table, model.encoding)
    rng = np.random.default_rng(seed)
    patients = np.unique(owners)
    rows_of = {patient: np.flatnonzero(owners == patient) for patient in patients}
    draws = []
    for _ in range(N_RESAMPLES):
        rows = np.concatenate([rows_of[p] for p in rng.choice(patients, len(patients))])
        if len(np.unique(labels[rows])) == model.n_classes and x.shape[1]:
            draws.append(against_first(estimate(x[rows], labels[rows], chosen, seed))["weights"])
    return np.array(draws).reshape(len(draws), model.n_classes - 1, x.shape[1])


def _importance(
    project: Project, folds: Sequence[TableFold], table: FeatureTable, cases: Sequence[Case]
) -> list[Importance]:
    """Shuffle one feature, and one family, between the held-out cases of each fold, and look at the pooled AUC."""
    labels = np.array([case.label for case in cases])
    parts = project.splits.folds(project.plan.splits)
    owners = np.array([case.patient_id for case in cases])
    held = [np.flatnonzero(np.isin(owners, list(part))) for part in parts]
    predictors = [make_predictor(record.model) for record in folds]
    n_classes = project.plan.n_classes
    base = _auc(labels, _predict(predictors, held, table, n_classes))
    used = sorted({code.name for record in folds for code in record.model.encoding.columns})
    families: dict[str, list[str]] = {}
    for column in used:
        if family_of(column):
            channel = column.rpartition(": ")[0]
            families.setdefault(f"{channel}: {family_of(column)}", []).append(column)
    singles = _most_used(folds, used)
    rng = np.random.default_rng(0)
    groups = [(name, "family", columns) for name, columns in families.items()]
    groups += [(column, "feature", [column]) for column in singles]
    found = []
    for name, kind, columns in groups:
        losses = []
        for _ in range(N_SHUFFLES):
            shuffled = table
            for rows in held:
                shuffled = _shuffle(shuffled, columns, rows, rng)
            losses.append(base - _auc(labels, _predict(predictors, held, shuffled, n_classes)))
        low, high = np.percentile(losses, (2.5, 97.5))
        found.append(Importance(name=name, kind=kind, loss=float(np.mean(losses)), low=float(low), high=float(high)))
    return sorted(found, key=lambda item: (item.kind, -item.loss))


def _most_used(folds: Sequence[TableFold], used: Sequence[str]) -> list[str]:
    """Return the features with the largest weight, or the most splits, over the folds."""
    weight = dict.fromkeys(used, 0.0)
    for record in folds:
        columns = [term.column for term in record.model.encoding.terms]
        if not columns:  # nothing varies among its training cases
            continue
        if record.model.trees:
            counts = np.zeros(len(columns))
            for tree in record.model.trees:
                at = np.array(tree.term)
                counts += np.bincount(at[at >= 0], minlength=len(columns))
            shares = counts / max(counts.sum(), 1)
        else:
            size = np.abs(np.array(record.model.weights)).reshape(-1, len(columns)).sum(axis=0)
            shares = size / max(size.sum(), 1e-12)
        for column, share in zip(columns, shares, strict=True):
            weight[column] += float(share)
    return [c for c in sorted(used, key=lambda c: (-weight[c], c)) if weight[c] > 0][:N_FEATURES_SHOWN]


def _shuffle(table: FeatureTable, columns: Sequence[str], rows: np.ndarray, rng: np.random.Generator) -> FeatureTable:
    order = rng.permutation(rows)
    changed = {name: table.columns[name].copy() for name in columns}
    for values in changed.values():
        values[rows] = values[order]
    return replace(table, columns={**table.columns, **changed})


def _predict(
    predictors: Sequence[Callable[[FeatureTable], np.ndarray]], held: Sequence[np.ndarray], table: FeatureTable,
    n_classes: int,
) -> np.ndarray:  # fmt: skip
    probs = np.zeros((len(table), n_classes))
    for predict, rows in zip(predictors, held, strict=True):
        if len(rows):
            probs[rows] = predict(table.take(rows))
    return probs


def _auc(labels: np.ndarray, probs: np.ndarray) -> float:
    """AUC of class 1, or the mean over the classes of each against the rest."""
    if probs.shape[1] == 2:
        return auc(labels, probs[:, 1])
    return float(np.mean([auc((labels == c).astype(int), probs[:, c]) for c in range(probs.shape[1])]))
