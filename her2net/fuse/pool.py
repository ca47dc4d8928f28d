"""Late fusion with fewer fitted numbers than a regression per set of tables: mean, weighted and gated.

Each is linear in the logits, as the regression is, so that all methods share one form, one archive and one predictor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from her2net.fuse.logistic import (
    MAX_LOG_ODDS,
    Coefficient,
    SubsetModel,
    fit_regression,
    join_logits,
    logits,
    present_modalities,
    wald_coefficient,
)
from her2net.predictions import Predictions

Labels = Mapping[str, int]
"""Case -> class."""


def pool_logits(
    tables: Mapping[str, Predictions], subset: Sequence[str], labels: Labels, class_names: Sequence[str],
    weight_of: Mapping[str, float],
) -> SubsetModel:  # fmt: skip
    """Average the logits of some tables, each with its weight; nothing else is fitted.

    Args:
        labels: of the cases that the weights come from.
        weight_of: table -> weight >= 0; scaled to a sum of 1 within `subset`, equal where all are 0.

    Source:
        Genest & Zidek 1986, doi:10.1214/ss/1177013825 (the logarithmic opinion pool).
    """
    shares = np.array([weight_of[name] for name in subset], dtype=float)
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(subset), 1 / len(subset))
    n_logits = len(class_names) - 1
    weights = np.concatenate([share * np.eye(n_logits) for share in shares], axis=1)
    used = [case_id for case_id in labels if all(case_id in tables[name].case_ids for name in subset)]
    coefficients = [
        _given_coefficient(name, class_names[c + 1], float(share), float(_logits_of(tables[name], labels)[:, c].std()))
        for name, share in zip(subset, shares, strict=True)
        for c in range(n_logits)
    ]
    counts = np.bincount([labels[case_id] for case_id in used], minlength=len(class_names)).tolist()
    return SubsetModel(modalities=list(subset), n_cases=len(used), n_per_class=counts, intercepts=[0.0] * n_logits,
                       weights=weights.tolist(), coefficients=coefficients)


def _given_coefficient(modality: str, class_name: str, value: float, sd: float) -> Coefficient:
    per_sd = float(np.exp(np.clip(value * sd, -MAX_LOG_ODDS, MAX_LOG_ODDS)))
    return Coefficient(modality=modality, class_name=class_name, value=value, odds_ratio=float(np.exp(value)), ci_low=None,
                       ci_high=None, odds_ratio_per_sd=per_sd, ci_low_per_sd=None, ci_high_per_sd=None)


def _logits_of(table: Predictions, labels: Labels) -> np.ndarray:
    return logits(table)[[case_id in labels for case_id in table.case_ids]]


def weigh_by_auc(tables: Mapping[str, Predictions], labels: Labels) -> dict[str, float]:
    """Return table -> how far its AUC (of more classes, the mean of each against the rest) lies above 0.5, at least 0."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for name, table in tables.items():
        rows = table.take(np.array([case_id in labels for case_id in table.case_ids], dtype=bool))
        y = np.array([labels[case_id] for case_id in rows.case_ids])
        auc = [roc_auc_score(y == c, rows.probs[:, c]) for c in range(1 if rows.n_classes == 2 else 0, rows.n_classes)]
        found[name] = max(float(np.mean(auc)) - 0.5, 0.0)
    return found


def fit_gated(
    tables: Mapping[str, Predictions], subsets: Sequence[Sequence[str]], labels: Labels, class_names: Sequence[str],
    strength: float,
) -> list[SubsetModel]:  # fmt: skip
    """Fit one regression on all cases, into which each table enters where the case has it.

    A logit that is not there counts as the mean of those that are, so it neither speaks for nor against a class. Cases that
    lack a table thus teach the weights of the others, which a regression per set of tables estimates anew for each set.
    Whether a table is there is not taken for a sign: it would be a weight learned from the few cases that lack it.

    Args:
        labels: of the cases to fit on; each class among them.
    """
    names = [name for name in tables if any(name in subset for subset in subsets)]
    case_ids = [case_id for case_id in present_modalities({name: tables[name] for name in names}) if case_id in labels]
    n_logits, y = len(class_names) - 1, np.array([labels[case_id] for case_id in case_ids])
    columns, means = [], []
    for name in names:
        here = np.isin(case_ids, tables[name].case_ids)
        z = np.zeros((len(case_ids), n_logits))
        z[here] = join_logits(tables, [name], [c for c, has in zip(case_ids, here, strict=True) if has])
        means.append(z[here].mean(axis=0))
        z[here] -= means[-1]
        columns.append(z)
    found = fit_regression(np.concatenate(columns, axis=1), y, strength)
    models = []
    for subset in subsets:
        weights, intercepts, coefficients = [], found.intercepts.copy(), []
        for name in subset:
            i = names.index(name)
            own = found.weights[:, i * n_logits : (i + 1) * n_logits]
            weights.append(own)
            intercepts -= own @ means[i]
            coefficients += [wald_coefficient(name, class_names[c + 1], found, c, i * n_logits + c) for c in range(n_logits)]
        models.append(SubsetModel(
            modalities=list(subset), n_cases=len(y), n_per_class=np.bincount(y, minlength=len(class_names)).tolist(),
            intercepts=intercepts.tolist(), weights=np.concatenate(weights, axis=1).tolist(), coefficients=coefficients,
        ))  # fmt: skip
    return models
