"""Late fusion by logistic regression: one regression on the modalities' logits per set of modalities.

A case that lacks a modality is still fused: for every set of modalities that occurs
among the cases there is a model of its own, fitted on all training cases that have at
least these. A case of a set without a model is predicted by that of the largest part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from her2net.artefact import Strict
from her2net.errors import PlanError, describe
from her2net.predictions import Predictions, make_predictions

LOGIT_EPS = 1e-6
Z95 = 1.959963984540054
MAX_LOG_ODDS = 50.0  # a modality whose logits hardly differ has odds ratios per unit beyond all numbers


class Coefficient(Strict):
    """Weight of one modality's logit for one class against class 0.

    Attributes:
        value: log odds per unit of the modality's logit.
        odds_ratio, ci_low, ci_high: per unit, with the 95 % Wald interval of the penalised fit; `null` without one.
        odds_ratio_per_sd, ci_low_per_sd, ci_high_per_sd: per standard deviation of the logit, comparable between modalities.
    """

    modality: str
    class_name: str
    value: float
    odds_ratio: float
    ci_low: float | None
    ci_high: float | None
    odds_ratio_per_sd: float
    ci_low_per_sd: float | None
    ci_high_per_sd: float | None


class SubsetModel(Strict):
    """The fusion of cases that have exactly these modalities; linear in their logits, whatever the method.

    Attributes:
        n_cases, n_per_class: cases that it was fitted on.
        weights: (n_classes - 1, n_features) on the logits, class by class against class 0.
        intercepts: (n_classes - 1,).
    """

    modalities: list[str]
    n_cases: int
    n_per_class: list[int]
    intercepts: list[float]
    weights: list[list[float]]
    coefficients: list[Coefficient]


def logits(table: Predictions) -> np.ndarray:
    """Return (n, n_classes - 1): log odds of each class against class 0."""
    p = np.clip(table.probs, LOGIT_EPS, 1)
    return np.log(p[:, 1:]) - np.log(p[:, :1])


def present_modalities(tables: Mapping[str, Predictions]) -> dict[str, tuple[str, ...]]:
    """Return case id -> the modalities that predict it, in the order of `tables`."""
    found: dict[str, list[str]] = {}
    for name, table in tables.items():
        for case_id in table.case_ids:
            found.setdefault(case_id, []).append(name)
    return {case_id: tuple(names) for case_id, names in sorted(found.items())}


def join_logits(tables: Mapping[str, Predictions], subset: Sequence[str], case_ids: Sequence[str]) -> np.ndarray:
    """Return the logits of some tables side by side, (n, len(subset) * (n_classes - 1))."""
    columns = []
    for name in subset:
        place = {case_id: i for i, case_id in enumerate(tables[name].case_ids)}
        columns.append(logits(tables[name])[[place[case_id] for case_id in case_ids]])
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class Regression:
    """A penalised logistic regression.

    Attributes:
        weights: (n_classes - 1, n_columns) per unit of each column, class by class against class 0.
        per_sd: the same per standard deviation of the column.
        errors: standard errors of `per_sd`; NaN for a table that was left out.
        intercepts: (n_classes - 1,).
        sd: (n_columns,) standard deviation of each column.
    """

    weights: np.ndarray
    per_sd: np.ndarray
    errors: np.ndarray
    intercepts: np.ndarray
    sd: np.ndarray


def fit_regression(x: np.ndarray, labels: np.ndarray, strength: float) -> Regression:
    """Fit on standardised columns (n, n_columns); weights are given back on the columns themselves.

    The columns are blocks of `n_classes - 1` logits, one block per table. A table that would get a negative say is left out,
    the most negative first, and what remains is fitted anew: networks that learned nothing predict a held-out patient's class
    a little worse than chance, because their training cases lack just that patient, and a regression that may turn them
    around would make a good model out of noise.

    Source:
        Fan et al. 2025 (doi:10.17305/bb.2025.12475) fuse by logistic regression of the two probabilities;
        logits and a weak L2 penalty keep it stable when a fold separates the classes. Breiman 1996
        (doi:10.1007/BF00117832): stacking needs weights that are not negative.
    """
    n_logits = len(np.unique(labels)) - 1
    kept = np.arange(x.shape[1]).reshape(-1, n_logits)
    while True:
        found = _fit_unconstrained(x[:, kept.ravel()], labels, strength)
        says = np.array([np.trace(found.per_sd[:, i * n_logits : (i + 1) * n_logits]) for i in range(len(kept))])
        if (says >= 0).all():
            break
        kept = np.delete(kept, says.argmin(), axis=0)
    return _spread(found, kept.ravel(), x.shape[1])


def _fit_unconstrained(x: np.ndarray, labels: np.ndarray, strength: float) -> Regression:
    from sklearn.linear_model import LogisticRegression

    mean, sd = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    if not x.shape[1]:
        counts = np.bincount(labels)
        nothing = np.zeros((len(counts) - 1, 0))
        return Regression(nothing, nothing, nothing, np.log(counts[1:] / counts[0]), sd)
    z = (x - mean) / sd
    fit = LogisticRegression(C=strength, max_iter=1000, tol=1e-8).fit(z, labels)
    per_sd, intercepts = _against_first(fit.coef_), _against_first(fit.intercept_[:, None])[:, 0]
    errors = _standard_errors(z, fit.predict_proba(z), strength)
    return Regression(per_sd / sd, per_sd, errors, intercepts - (per_sd / sd) @ mean, sd)


def _spread(found: Regression, kept: np.ndarray, n_columns: int) -> Regression:
    """Put the fitted columns in their places; those left out weigh nothing, and no error is known of them."""

    def place(values: np.ndarray, empty: float) -> np.ndarray:
        full = np.full((*values.shape[:-1], n_columns), empty)
        full[..., kept] = values
        return full

    return Regression(place(found.weights, 0.0), place(found.per_sd, 0.0), place(found.errors, np.nan), found.intercepts,
                      place(found.sd, 1.0))  # fmt: skip


def fit_logistic(
    tables: Mapping[str, Predictions], subset: Sequence[str], case_ids: Sequence[str], labels: np.ndarray,
    class_names: Sequence[str], strength: float,
) -> SubsetModel:  # fmt: skip
    """Fit one regression for the cases that have these tables.

    Args:
        case_ids: cases in all of `subset`; `labels` (n,) theirs, each class among them.
    """
    found = fit_regression(join_logits(tables, subset, case_ids), labels, strength)
    n_logits = len(class_names) - 1
    coefficients = [
        wald_coefficient(subset[j // n_logits], class_names[c + 1], found, c, j)
        for c in range(n_logits)
        for j in range(len(subset) * n_logits)
        if j % n_logits == c
    ]
    return SubsetModel(
        modalities=list(subset), n_cases=len(labels), n_per_class=np.bincount(labels, minlength=len(class_names)).tolist(),
        intercepts=found.intercepts.tolist(), weights=found.weights.tolist(), coefficients=coefficients,
    )  # fmt: skip


def _against_first(values: np.ndarray) -> np.ndarray:
    """Turn scikit-learn's rows (one for two classes, one per class for more) into rows against class 0."""
    return values if len(values) == 1 else values[1:] - values[:1]


def wald_coefficient(modality: str, class_name: str, found: Regression, row: int, column: int) -> Coefficient:
    """Return one weight of a regression with its 95 % Wald interval; a table that was left out has none."""
    per_sd, error, sd = found.per_sd[row, column], found.errors[row, column], found.sd[column]
    if np.isnan(error):
        return Coefficient(modality=modality, class_name=class_name, value=0.0, odds_ratio=1.0, ci_low=None, ci_high=None,
                           odds_ratio_per_sd=1.0, ci_low_per_sd=None, ci_high_per_sd=None)  # fmt: skip
    log_odds = np.array([-Z95, 0, Z95]) * error + per_sd
    of_unit, of_sd = (np.exp(np.clip(x, -MAX_LOG_ODDS, MAX_LOG_ODDS)).tolist() for x in (log_odds / sd, log_odds))
    return Coefficient(
        modality=modality, class_name=class_name, value=float(per_sd / sd), odds_ratio=of_unit[1], ci_low=of_unit[0],
        ci_high=of_unit[2], odds_ratio_per_sd=of_sd[1], ci_low_per_sd=of_sd[0], ci_high_per_sd=of_sd[2],
    )  # fmt: skip


def _standard_errors(z: np.ndarray, probs: np.ndarray, strength: float) -> np.ndarray:
    """Return (n_classes - 1, n_features): square roots of the inverse penalised information, against class 0."""
    design = np.column_stack([np.ones(len(z)), z])
    n_classes, n_columns = probs.shape[1], design.shape[1]
    ridge = np.diag([0.0] + [1 / strength] * (n_columns - 1))
    if n_classes == 2:
        weight = probs[:, 1] * probs[:, 0]
        covariance = np.linalg.pinv((design * weight[:, None]).T @ design + ridge)
        return np.sqrt(np.diag(covariance)[1:])[None]
    information = np.kron(np.eye(n_classes), ridge)
    for a in range(n_classes):
        for b in range(n_classes):
            weight = probs[:, a] * ((a == b) - probs[:, b])
            block = (slice(a * n_columns, (a + 1) * n_columns), slice(b * n_columns, (b + 1) * n_columns))
            information[block] += (design * weight[:, None]).T @ design
    covariance = np.linalg.pinv(information).reshape(n_classes, n_columns, n_classes, n_columns)
    variance = [
        np.diag(covariance[c, :, c] + covariance[0, :, 0] - covariance[c, :, 0] - covariance[0, :, c])[1:]
        for c in range(1, n_classes)
    ]
    return np.sqrt(np.maximum(variance, 0))


def apply_subset(model: SubsetModel, features: np.ndarray) -> np.ndarray:
    """Return (n, n_classes) probabilities."""
    scores = features @ np.array(model.weights).T + np.array(model.intercepts)
    scores = np.concatenate([np.zeros((len(scores), 1)), scores], axis=1)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def choose_model(subset: Sequence[str], models: Sequence[SubsetModel]) -> SubsetModel:
    """Return the model of this set, else of its largest part that has one: of several, the one of most cases, then the first.

    Raises:
        PlanError: no part of it has a model.
    """
    fitting = [model for model in models if set(model.modalities) <= set(subset)]
    if not fitting:
        what, remedy = f"no model for cases that have only {' + '.join(subset)}", "Add them, or a part of them, and run her2net_fuse."
        found = "; ".join(" + ".join(model.modalities) for model in models) or "none"
        raise PlanError(describe(what, where="fusion.subsets of the plan", found=found, remedy=remedy))
    return max(fitting, key=lambda model: (len(model.modalities), model.n_cases))


def apply_fusion(tables: Mapping[str, Predictions], models: Sequence[SubsetModel]) -> Predictions:
    """Fuse every case with the model of the modalities it has, as `choose_model` says; labels are carried over."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for case_id, subset in present_modalities(tables).items():
        groups.setdefault(subset, []).append(case_id)
    rows: dict[str, tuple[str, int, str]] = {}
    for table in tables.values():
        columns = zip(table.case_ids, table.patient_ids, table.labels, table.folds, strict=True)
        rows |= {c: (p, int(y), f) for c, p, y, f in columns}
    names: list[str] = []
    probs = []
    for subset, case_ids in groups.items():
        model = choose_model(subset, models)
        names += case_ids
        probs.append(apply_subset(model, join_logits(tables, model.modalities, case_ids)))
    labels: list[Any] = [None if rows[c][1] < 0 else rows[c][1] for c in names]
    return make_predictions(names, [rows[c][0] for c in names], np.concatenate(probs), labels=labels,
                            folds=[rows[c][2] for c in names])
