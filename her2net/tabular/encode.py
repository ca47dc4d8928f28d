"""From a table as it is to the numbers a model reads: imputed, one-hot, transformed, standardised, filtered.

All of it is fitted on training patients alone and kept as JSON, so that it can be applied to anyone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from her2net.artefact import Strict
from her2net.plan.table_schema import CovariateKind, TableModelPlan
from her2net.raw.names import word_key
from her2net.tabular.features import FeatureTable, is_text

MIN_SD = 1e-9
LIMIT_SD = 6.0
"""Standardised values beyond are cut: a new case far outside must not decide alone."""
LEVELS = np.concatenate([[0.01], np.arange(0.05, 0.96, 0.05), [0.99]])
"""Quantiles of the training cases that become knots of the transform."""


class ColumnCode(Strict):
    """How one column becomes one or several numbers.

    Attributes:
        fill: what stands in for a missing value: the median, or the most frequent level.
        levels: of a binary or categorical column; the first is the reference, each other one gets a number. Upper and
            lower case are not told apart; a level that was not seen in training counts as missing.
        knots, scores: the transform to normal scores, linear between the knots and constant beyond; empty leaves the
            values as they are.
    """

    name: str
    kind: CovariateKind
    fill: float | str
    levels: list[str] = Field(default_factory=list)
    knots: list[float] = Field(default_factory=list)
    scores: list[float] = Field(default_factory=list)


class Term(Strict):
    """One number that the model reads: a column, or one level of it; standardised by mean and SD of the training cases."""

    column: str
    level: str = ""
    mean: float
    sd: float

    @property
    def name(self) -> str:
        return f"{self.column} = {self.level}" if self.level else self.column


class Encoding(Strict):
    """Fitted on training cases; see `encode`."""

    columns: list[ColumnCode]
    terms: list[Term]


def fit_encoding(table: FeatureTable, plan: TableModelPlan) -> Encoding:
    """Fit imputation, levels, transform, scale and filters on training cases. Labels are not looked at."""
    codes = [_fit_column(name, table.columns[name], table.kinds[name], plan.transform) for name in table.columns]
    pairs = [(code, level) for code in codes for level in (code.levels[1:] if is_text(code.kind) else [""])]
    if not pairs:
        return Encoding(columns=[], terms=[])
    values = np.column_stack([_numbers(table.columns[code.name], code, level) for code, level in pairs])
    mean, sd = values.mean(axis=0), values.std(axis=0)
    varying = np.flatnonzero(sd > np.maximum(MIN_SD, 1e-9 * np.abs(mean)))
    kept = _leave_out_alike((values[:, varying] - mean[varying]) / sd[varying], plan.max_correlation)
    terms = [Term(column=pairs[i][0].name, level=pairs[i][1], mean=float(mean[i]), sd=float(sd[i])) for i in varying[kept]]
    used = {term.column for term in terms}
    return Encoding(columns=[code for code in codes if code.name in used], terms=terms)


def encode(table: FeatureTable, encoding: Encoding) -> np.ndarray:
    """Return (n, n_terms) standardised values; a column that the table lacks is missing in every case."""
    codes = {code.name: code for code in encoding.columns}
    out = np.empty((len(table), len(encoding.terms)))
    for j, term in enumerate(encoding.terms):
        code = codes[term.column]
        absent = np.full(len(table), "", dtype=object) if is_text(code.kind) else np.full(len(table), np.nan)
        values = _numbers(table.columns.get(term.column, absent), code, term.level)
        out[:, j] = np.clip((values - term.mean) / term.sd, -LIMIT_SD, LIMIT_SD)
    return out


def find_unseen(table: FeatureTable, encodings: Sequence[Encoding]) -> list[tuple[str, str, str, list[str]]]:
    """Return (case id, column, level, known levels) wherever a level is one that no encoding knows: each takes it for missing."""
    known: dict[str, list[str]] = {}
    for code in (code for encoding in encodings for code in encoding.columns if is_text(code.kind)):
        known[code.name] = list(dict.fromkeys([*known.get(code.name, []), *code.levels]))
    found = []
    for name in (name for name in known if name in table.columns):
        keys = {word_key(level) for level in known[name]}
        cells = zip(table.case_ids, table.columns[name].tolist(), strict=True)
        found += [(case_id, name, level, known[name]) for case_id, level in cells if level and word_key(level) not in keys]
    return found


def _fit_column(name: str, values: np.ndarray, kind: CovariateKind, transform: str) -> ColumnCode:
    if is_text(kind):
        known = [v for v in values.tolist() if v]
        by_count = sorted(set(known), key=lambda level: (-known.count(level), level))
        levels = sorted(by_count) if kind == "binary" else by_count
        return ColumnCode(name=name, kind=kind, fill=by_count[0] if by_count else "", levels=levels)
    finite = values[np.isfinite(values)]
    fill = float(np.median(finite)) if len(finite) else 0.0
    knots, scores = _fit_scores(finite) if transform == "normal_scores" else ([], [])
    return ColumnCode(name=name, kind=kind, fill=fill, knots=knots, scores=scores)


def _fit_scores(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Return knots and their normal scores; equal knots share the mean of theirs; empty where there are not two.

    Source:
        van der Waerden 1952, Proc. KNAW 55:453 (normal scores), at a few quantiles instead of at every rank.
    """
    from scipy.stats import norm

    if len(values) < 2:
        return [], []
    quantiles, normal = np.quantile(values, LEVELS), norm.ppf(LEVELS)
    knots, place = np.unique(quantiles, return_inverse=True)
    if len(knots) < 2:
        return [], []
    scores = np.bincount(place, weights=normal) / np.bincount(place)
    return knots.tolist(), scores.tolist()


def _numbers(values: np.ndarray, code: ColumnCode, level: str) -> np.ndarray:
    """Return the values of one term before standardisation."""
    if is_text(code.kind):
        spelled = {word_key(known): known for known in code.levels} | {known: known for known in code.levels}
        known = np.array([spelled.get(v, spelled.get(word_key(v), code.fill)) for v in values.tolist()], dtype=object)
        return (known == level).astype(np.float64)
    filled = np.where(np.isfinite(values.astype(np.float64)), values, code.fill).astype(np.float64)
    return np.interp(filled, code.knots, code.scores) if code.knots else filled


def _leave_out_alike(z: np.ndarray, limit: float) -> np.ndarray:
    """Return the indices of the columns that stay: each correlates with every earlier one by at most the limit."""
    if limit >= 1 or z.shape[1] < 2:
        return np.arange(z.shape[1])
    correlation = np.abs(np.atleast_2d(np.corrcoef(z, rowvar=False)))
    kept: list[int] = []
    for j in range(z.shape[1]):
        if not (correlation[j, kept] > limit).any():
            kept.append(j)
    return np.array(kept, dtype=int)
