"""Late fusion: one logistic regression on the modalities' logits per set of modalities.

A case that lacks a modality is still fused: for every set of modalities that occurs
among the cases there is a model of its own, fitted on all training cases that have at
least these. The fusion's own OOF predictions come from a patient-grouped loop over
the same folds: no patient's fused probability comes from weights fitted on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from her2net.artefact import Strict
from her2net.errors import PlanError
from her2net.predictions import Predictions, make_predictions

LOGIT_EPS = 1e-6
Z95 = 1.959963984540054


class Coefficient(Strict):
    """Weight of one modality's logit for one class against class 0.

    Attributes:
        value: log odds per unit of the modality's logit.
        odds_ratio, ci_low, ci_high: per unit, with the 95 % Wald interval of the penalised fit.
        odds_ratio_per_sd: per standard deviation of the logit, comparable between modalities.
    """

    modality: str
    class_name: str
    value: float
    odds_ratio: float
    ci_low: float
    ci_high: float
    odds_ratio_per_sd: float


class SubsetModel(Strict):
    """The regression for cases that have exactly these modalities.

    Attributes:
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


def _features(tables: Mapping[str, Predictions], subset: Sequence[str], case_ids: Sequence[str]) -> np.ndarray:
    """Return (n, len(subset) * (n_classes - 1))."""
    columns = []
    for name in subset:
        place = {case_id: i for i, case_id in enumerate(tables[name].case_ids)}
        columns.append(logits(tables[name])[[place[case_id] for case_id in case_ids]])
    return np.concatenate(columns, axis=1)


def fit_subset(
    tables: Mapping[str, Predictions], subset: Sequence[str], case_ids: Sequence[str], labels: np.ndarray,
    class_names: Sequence[str], strength: float,
) -> SubsetModel:  # fmt: skip
    """Fit one regression on standardised logits; weights are given back on the logits themselves.

    Raises:
        PlanError: a class is absent among the cases.

    Source:
        Fan et al. 2025 (doi:10.17305/bb.2025.12475) fuse by logistic regression of the two probabilities;
        logits and a weak L2 penalty keep it stable when a fold separates the classes.
    """
    from sklearn.linear_model import LogisticRegression

    n_per_class = np.bincount(labels, minlength=len(class_names))
    if (n_per_class == 0).any():
        lacking = class_names[int(n_per_class.argmin())]
        raise PlanError(f"fusion of {' + '.join(subset)}: no case of class {lacking!r} has all of them. Leave one out.")
    x = _features(tables, subset, case_ids)
    mean, sd = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    z = (x - mean) / sd
    fit = LogisticRegression(C=strength, max_iter=1000, tol=1e-8).fit(z, labels)
    weights, intercepts = _against_first(fit.coef_), _against_first(fit.intercept_[:, None])[:, 0]
    errors = _standard_errors(z, fit.predict_proba(z), strength)
    n_logits = len(class_names) - 1
    coefficients = [
        _coefficient(subset[j // n_logits], class_names[c + 1], weights[c, j], errors[c, j], sd[j])
        for c in range(n_logits)
        for j in range(x.shape[1])
        if j % n_logits == c
    ]
    raw = weights / sd
    return SubsetModel(
        modalities=list(subset), n_cases=len(labels), n_per_class=n_per_class.tolist(),
        intercepts=(intercepts - raw @ mean).tolist(), weights=raw.tolist(), coefficients=coefficients,
    )  # fmt: skip


def _against_first(values: np.ndarray) -> np.ndarray:
    """Turn scikit-learn's rows (one for two classes, one per class for more) into rows against class 0."""
    return values if len(values) == 1 else values[1:] - values[:1]


def _coefficient(modality: str, class_name: str, per_sd: float, error: float, sd: float) -> Coefficient:
    low, middle, high = np.exp(np.clip((np.array([-Z95, 0, Z95]) * error + per_sd) / sd, -50, 50))
    return Coefficient(modality=modality, class_name=class_name, value=float(per_sd / sd), odds_ratio=float(middle),
                       ci_low=float(low), ci_high=float(high), odds_ratio_per_sd=float(np.exp(np.clip(per_sd, -50, 50))))


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


def _cases_with(tables: Mapping[str, Predictions], subset: Sequence[str]) -> list[str]:
    return sorted(set.intersection(*(set(tables[name].case_ids) for name in subset)))


def fit_fusion(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], class_names: Sequence[str], strength: float,
    *, without_patients: frozenset[str] = frozenset(),
) -> list[SubsetModel]:  # fmt: skip
    """Fit a model per subset on the cases that have at least its modalities.

    Args:
        tables: modality -> predictions with labels.
        without_patients: left out of the fit.
    """
    rows: dict[str, tuple[str, int]] = {}
    for table in tables.values():
        rows |= {c: (p, int(y)) for c, p, y in zip(table.case_ids, table.patient_ids, table.labels, strict=True)}
    models = []
    for subset in subsets:
        case_ids = [c for c in _cases_with(tables, subset) if rows[c][0] not in without_patients and rows[c][1] >= 0]
        labels = np.array([rows[c][1] for c in case_ids], dtype=np.int64)
        models.append(fit_subset(tables, subset, case_ids, labels, class_names, strength))
    return models


def apply_fusion(tables: Mapping[str, Predictions], models: Sequence[SubsetModel]) -> Predictions:
    """Fuse every case with the model of the modalities it has; labels are carried over."""
    by_subset = {frozenset(model.modalities): model for model in models}
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
        model = by_subset.get(frozenset(subset))
        if model is None:
            raise PlanError(f"fusion: no model for cases that have only {' + '.join(subset)}. Run her2net_fuse again.")
        names += case_ids
        probs.append(apply_subset(model, _features(tables, model.modalities, case_ids)))
    labels: list[Any] = [None if rows[c][1] < 0 else rows[c][1] for c in names]
    return make_predictions(names, [rows[c][0] for c in names], np.concatenate(probs), labels=labels,
                            folds=[rows[c][2] for c in names])


def fuse_out_of_fold(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], folds: Sequence[Sequence[str]],
    class_names: Sequence[str], strength: float,
) -> Predictions:  # fmt: skip
    """Fuse each fold's patients with weights fitted on the other folds' patients."""
    parts = []
    for held in folds:
        models = fit_fusion(tables, subsets, class_names, strength, without_patients=frozenset(held))
        rows = {name: table.take(np.isin(table.patient_ids, list(held))) for name, table in tables.items()}
        if any(len(table) for table in rows.values()):
            parts.append(apply_fusion({k: v for k, v in rows.items() if len(v)}, models))
    return make_predictions(
        [c for part in parts for c in part.case_ids], [p for part in parts for p in part.patient_ids],
        np.concatenate([part.probs for part in parts]),
        labels=[int(y) for part in parts for y in part.labels], folds=[f for part in parts for f in part.folds],
    )  # fmt: skip
