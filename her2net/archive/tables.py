"""Table models in an archive: do they fit the plan, do they end, and do they give the probabilities they should? Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from her2net.archive.manifest import table_name
from her2net.plan.schema import Plan
from her2net.plan.table_schema import TablePlan
from her2net.tabular.encode import ColumnCode, Encoding
from her2net.tabular.features import FeatureTable, is_text
from her2net.tabular.learn import FittedModel, Tree, apply_model
from her2net.tabular.radiomics import family_of
from her2net.tabular.record import TableFold

TableModels = Mapping[str, Sequence[TableFold]]
MAX_NODES = 20_000_000
"""Trees of a forest times nodes of its largest tree, for that is how it lies in memory."""
MAX_WEIGHT = 1e6
SUM_TOLERANCE = 1e-6
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,39}")
SPACING_MM, MAX_BINS, LEAST_BIN_WIDTH = (0.02, 100.0), 1024, 0.01
"""What radiomics of a plan from elsewhere may ask for."""
N_ROWS = 2
"""Test cases with every column filled; one of which nothing is known comes on top."""
SEED = 0


def check_table_plans(plan: Plan) -> list[str]:
    """List what radiomics of a plan asks for that would exhaust the machine."""
    problems = []
    for name, table in plan.tables.items():
        r = table.radiomics
        if r is None:
            continue
        if r.spacing_mm is not None and not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in r.spacing_mm):
            problems.append(f"tables.{name}.radiomics.spacing_mm: {r.spacing_mm}, expected {SPACING_MM[0]} to {SPACING_MM[1]}.")
        if (r.bins or 1) > MAX_BINS or (r.bin_width or 1.0) < LEAST_BIN_WIDTH:
            what = f"at most {MAX_BINS} bins, no narrower than {LEAST_BIN_WIDTH}"
            problems.append(f"tables.{name}.radiomics: {r.bins} bins of width {r.bin_width}, expected {what}.")
    return problems


def check_tables(plan: Plan, tables: TableModels) -> list[str]:
    """List in what fitted table models do not fit their plan, or could not be computed."""
    return [
        f"{table_name(name, k)}: {problem}"
        for name, folds in tables.items()
        for k, record in enumerate(folds)
        for problem in _check_fold(record, name, k, plan)
    ]


def _check_fold(record: TableFold, name: str, fold: int, plan: Plan) -> Iterator[str]:
    table, model = plan.tables[name], record.model
    if (record.table, record.fold) != (name, str(fold)):
        yield f"is of {record.table[:80]!r} fold {record.fold[:80]!r}."
    if record.settings != table.model:
        yield "its settings are not those of the plan."
    if not all(VERSION.fullmatch(text) for text in record.environment.values()):
        yield "names a version that is none."
    if model.n_classes != plan.n_classes:
        yield f"is for {model.n_classes} classes, the plan has {plan.n_classes}."
    yield from _check_encoding(model.encoding, table)
    yield from _check_forest(model) if model.trees else _check_linear(model)


def _check_encoding(encoding: Encoding, table: TablePlan) -> Iterator[str]:
    codes = {code.name: code for code in encoding.columns}
    if len(codes) < len(encoding.columns):
        yield "a column is there twice."
    for code in encoding.columns:
        known = bool(family_of(code.name)) and code.kind == "continuous"
        if not (known if table.radiomics else table.columns.get(code.name) == code.kind):
            yield f"column {code.name[:80]!r} is none of the plan's."
        steps = np.diff(np.array(code.knots))
        if is_text(code.kind) != isinstance(code.fill, str) or len(code.knots) != len(code.scores) or not (steps > 0).all():
            yield f"column {code.name[:80]!r} cannot be encoded."
    for term in encoding.terms:
        column = codes.get(term.column)
        levels = [] if column is None else column.levels if is_text(column.kind) else [""]
        if term.level not in levels or not term.sd > 0:
            yield f"term {term.name[:80]!r} is of no column, or does not vary."


def _check_linear(model: FittedModel) -> Iterator[str]:
    shape = (model.n_classes - 1, len(model.encoding.terms))
    if len(model.weights) != shape[0] or {len(row) for row in model.weights} != {shape[1]} or len(model.intercepts) != shape[0]:
        yield f"expected weights of shape {shape} and {shape[0]} intercepts."
    elif max(map(abs, [*model.intercepts, *(w for row in model.weights for w in row)])) > MAX_WEIGHT:
        yield f"weights beyond {MAX_WEIGHT:g}."


def _check_forest(model: FittedModel) -> Iterator[str]:
    if model.weights or model.intercepts:
        yield "has weights beside its trees."
    if len(model.trees) * max(len(tree.term) for tree in model.trees) > MAX_NODES:
        yield "its trees are too large."
    wrong = sum(not _is_sound(tree, len(model.encoding.terms), model.n_classes) for tree in model.trees)
    if wrong:
        yield f"{wrong} of {len(model.trees)} trees lead nowhere, or do not end in probabilities."


def _is_sound(tree: Tree, n_terms: int, n_classes: int) -> bool:
    """Whether every way through a tree ends: children stand behind their node, as scikit-learn numbers them."""
    n = len(tree.term)
    if not n or {len(tree.threshold), len(tree.left), len(tree.right), len(tree.probs)} != {n}:
        return False
    children = zip(tree.term, tree.left, tree.right, strict=True)
    ends = all(term == -1 or (0 <= term < n_terms and i < left < n and i < right < n)
               for i, (term, left, right) in enumerate(children))  # fmt: skip
    return ends and all(
        len(row) == n_classes and min(row) >= 0 and math.isclose(sum(row), 1, abs_tol=SUM_TOLERANCE) for row in tree.probs
    )


def make_table_input(folds: Sequence[TableFold]) -> np.ndarray:
    """Return made-up cases (N_ROWS, n_columns) float64, columns as `as_table` takes them: numbers, and numbers of levels."""
    rng = np.random.default_rng(SEED)
    spread = {term.column: term.sd for record in folds for term in record.model.encoding.terms}
    values = np.empty((N_ROWS, len(_columns(folds))))
    for j, code in enumerate(_columns(folds)):
        if is_text(code.kind):
            values[:, j] = rng.integers(len(code.levels), size=N_ROWS)
        else:
            step = (code.knots[-1] - code.knots[0]) / 4 if code.knots else spread[code.name]
            values[:, j] = float(code.fill) + step * rng.standard_normal(N_ROWS)
    return values


def n_input_columns(folds: Sequence[TableFold]) -> int:
    """Return how many columns the made-up cases have."""
    return len(_columns(folds))


def predict_table_input(name: str, folds: Sequence[TableFold], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the probabilities (N_ROWS + 1, n_classes) of each fold, and their mean, of the made-up cases and an empty one."""
    columns: dict[str, np.ndarray] = {}
    for code, column in zip(_columns(folds), values.T, strict=True):
        if is_text(code.kind):
            levels = [code.levels[int(v)] if 0 <= v < len(code.levels) else "" for v in column]
            columns[code.name] = np.array([*levels, ""], dtype=object)
        else:
            columns[code.name] = np.append(column, np.nan)
    kinds = {code.name: code.kind for code in _columns(folds)}
    table = FeatureTable(tuple(map(str, range(N_ROWS + 1))), columns, kinds)
    probs = {f"{name}/fold_{k}": apply_model(record.model, table) for k, record in enumerate(folds)}
    return probs | {f"{name}/mean": np.mean(list(probs.values()), axis=0)}


def _columns(folds: Sequence[TableFold]) -> list[ColumnCode]:
    """Return the columns that any fold reads, as the first of them codes it, in the order of their names."""
    codes: dict[str, ColumnCode] = {}
    for record in folds:
        for code in record.model.encoding.columns:
            codes.setdefault(code.name, code)
    return [codes[name] for name in sorted(codes)]
