"""Fitting one model to the table of one fold's training patients: encoding, inner loop, elastic net or forest.

A fitted model is plain numbers. Applying it needs neither scikit-learn nor pickle, so that it can be stored as JSON,
looked at, and applied anywhere to the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field

from her2net.artefact import Strict
from her2net.errors import PlanError
from her2net.plan.table_schema import Learner, TableModelPlan
from her2net.tabular.encode import Encoding, encode, fit_encoding
from her2net.tabular.features import FeatureTable

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strength C of the elastic net on standardised terms."""
MIXES = (0.0, 0.5)
"""Share of L1: ridge, and half and half."""
LEAVES = (3,)
"""Least number of cases per leaf of the forest."""
N_TREES = 300
MAX_ITERATIONS = 300
EPS = 1e-6


class Trial(Strict):
    """One setting that the inner loop tried, and its log loss on the inner held-out patients."""

    learner: Learner
    settings: dict[str, float]
    log_loss: float


class Tree(Strict):
    """A decision tree as columns: node i sends a case to `left[i]` if term `term[i]` <= `threshold[i]`, else to `right[i]`.

    Attributes:
        term: -1 at a leaf.
        probs: (n_nodes, n_classes); of the training cases at the node.
    """

    term: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    probs: list[list[float]]


class FittedModel(Strict):
    """A fitted model; see `apply_model`.

    Attributes:
        chosen: the setting that the inner loop took; the others are in `trials`.
        intercepts: (n_classes - 1,) of the elastic net, against class 0.
        weights: (n_classes - 1, n_terms) log odds per standard deviation of each term.
        trees: of the forest.
    """

    encoding: Encoding
    n_classes: int
    n_cases: int
    n_per_class: list[int]
    chosen: Trial
    trials: list[Trial]
    intercepts: list[float] = Field(default_factory=list)
    weights: list[list[float]] = Field(default_factory=list)
    trees: list[Tree] = Field(default_factory=list)


def fit_model(
    table: FeatureTable, labels: np.ndarray, patients: Sequence[str], n_classes: int, plan: TableModelPlan
) -> FittedModel:
    """Choose learner and hyper-parameters by an inner loop over patients, and fit them on all of these cases.

    Args:
        table: training cases only; nothing else is looked at.
        labels: (n,) class numbers.

    Raises:
        PlanError: a class is absent.
    """
    trials = _search(table, labels, np.array(patients), n_classes, plan)
    return fit_with(table, labels, n_classes, plan, min(trials, key=lambda trial: trial.log_loss), trials)


def fit_with(
    table: FeatureTable, labels: np.ndarray, n_classes: int, plan: TableModelPlan, chosen: Trial, trials: Sequence[Trial] = ()
) -> FittedModel:
    """Fit a given setting."""
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise PlanError(f"no training case of class {int(counts.argmin())} has the features. Use fewer folds.")
    encoding = fit_encoding(table, plan)
    x = encode(table, encoding)
    fitted: dict[str, Any]
    if not encoding.terms:  # nothing to learn from: the share of each class
        fitted = {"intercepts": np.log(counts[1:] / counts[0]).tolist(), "weights": [[] for _ in range(n_classes - 1)]}
    elif chosen.learner == "forest":
        fitted = {"trees": [_tree(estimator.tree_) for estimator in estimate(x, labels, chosen, plan.seed).estimators_]}
    else:
        fitted = against_first(estimate(x, labels, chosen, plan.seed))
    return FittedModel(encoding=encoding, n_classes=n_classes, n_cases=len(labels), n_per_class=counts.tolist(),
                       chosen=chosen, trials=list(trials), **fitted)  # fmt: skip


def apply_model(model: FittedModel, table: FeatureTable) -> np.ndarray:
    """Return (n, n_classes) probabilities."""
    return make_predictor(model)(table)


def make_predictor(model: FittedModel) -> Callable[[FeatureTable], np.ndarray]:
    """Return what `apply_model` does, with the trees made ready once for many calls."""
    if model.trees:
        forest = _Forest(model.trees)
        return lambda table: forest.predict(encode(table, model.encoding))
    weights, intercepts = np.array(model.weights).reshape(model.n_classes - 1, -1), np.array(model.intercepts)

    def predict(table: FeatureTable) -> np.ndarray:
        scores = encode(table, model.encoding) @ weights.T + intercepts
        scores = np.concatenate([np.zeros((len(scores), 1)), scores], axis=1)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    return predict


class _Forest:
    """Trees padded to one size, so that all of them are walked at once."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        size = max(len(tree.term) for tree in trees)
        pad = lambda values, fill, kind: np.array([v + [fill] * (size - len(v)) for v in values], dtype=kind)
        self.term = pad([t.term for t in trees], -1, int)
        self.threshold = pad([t.threshold for t in trees], 0.0, float)
        self.left, self.right = pad([t.left for t in trees], 0, int), pad([t.right for t in trees], 0, int)
        self.probs = pad([t.probs for t in trees], [0.0] * len(trees[0].probs[0]), float)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return (n, n_classes): mean over the trees of the share of each class in the leaf."""
        values = x.astype(np.float32)  # as scikit-learn compares
        trees, rows = np.arange(len(self.term))[None], np.arange(len(x))[:, None]
        node = np.zeros((len(x), len(self.term)), dtype=int)
        while (inner := (term := self.term[trees, node]) >= 0).any():
            below = values[rows, term] <= self.threshold[trees, node]
            node = np.where(inner, np.where(below, self.left[trees, node], self.right[trees, node]), node)
        return self.probs[trees, node].mean(axis=1)


def _search(
    table: FeatureTable, labels: np.ndarray, patients: np.ndarray, n_classes: int, plan: TableModelPlan
) -> list[Trial]:
    """Score every setting on the same inner folds; the encoding is fitted anew inside each of them."""
    settings = [setting for learner in plan.learners for setting in _settings(learner)]
    losses = np.zeros(len(settings))
    for train, held in _inner_folds(labels, patients, plan):
        part = table.take(train)
        encoding = fit_encoding(part, plan)
        x, x_held = encode(part, encoding), encode(table.take(held), encoding)
        for i, trial in enumerate(settings):
            probs = estimate(x, labels[train], trial, plan.seed).predict_proba(x_held) if encoding.terms else (
                np.tile(np.bincount(labels[train], minlength=n_classes) / len(train), (len(held), 1)))
            losses[i] -= np.log(np.clip(probs[np.arange(len(probs)), labels[held]], EPS, 1)).sum()
    return [trial.model_copy(update={"log_loss": float(loss / len(labels))}) for trial, loss in zip(settings, losses, strict=True)]


def _settings(learner: Learner) -> list[Trial]:
    if learner == "forest":
        return [Trial(learner=learner, settings={"min_cases_per_leaf": float(n)}, log_loss=0.0) for n in LEAVES]
    return [Trial(learner=learner, settings={"C": c, "l1_share": mix}, log_loss=0.0) for mix, c in product(MIXES, PENALTIES)]


def _inner_folds(labels: np.ndarray, patients: np.ndarray, plan: TableModelPlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training, held-out) indices, patients whole, stratified by class.

    Raises:
        PlanError: a class has one patient only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    smallest = min(len(set(patients[labels == c])) for c in np.unique(labels))
    if smallest < 2:
        raise PlanError("a class has a single training patient with these features: no inner loop can be made. Use fewer folds.")
    splitter = StratifiedGroupKFold(min(plan.inner_folds, smallest), shuffle=True, random_state=plan.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for train, held in splitter.split(np.zeros(len(labels)), labels, patients):
            if len(np.unique(labels[train])) == len(np.unique(labels)):
                yield train, held


def estimate(x: np.ndarray, labels: np.ndarray, trial: Trial, seed: int) -> Any:
    """Fit scikit-learn's estimator of a setting.

    Source:
        Elastic net: Zou and Hastie 2005, doi:10.1111/j.1467-9868.2005.00503.x. Forest: extremely randomised trees,
        Geurts et al. 2006, doi:10.1007/s10994-006-6226-1; better than a random forest on BUSI (docs/LOG.md).
    """
    from sklearn import __version__
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if trial.learner == "forest":
        leaf = int(trial.settings["min_cases_per_leaf"])
        return ExtraTreesClassifier(N_TREES, min_samples_leaf=leaf, random_state=seed, n_jobs=1).fit(x, labels)
    mix, c = trial.settings["l1_share"], trial.settings["C"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if mix == 0:
            return LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(x, labels)
        # until scikit-learn 1.7 the mixed penalty had to be named; since 1.8 naming it is deprecated
        named = {"penalty": "elasticnet"} if tuple(map(int, __version__.split(".")[:2])) < (1, 8) else {}
        return LogisticRegression(C=c, l1_ratio=mix, solver="saga", tol=1e-3, max_iter=MAX_ITERATIONS, random_state=seed,
                                  **named).fit(x, labels)  # fmt: skip


def against_first(model: Any) -> dict[str, Any]:
    """Return intercepts and weights of each class against class 0."""
    weights, intercepts = model.coef_, model.intercept_
    if len(weights) > 1:  # one row per class
        weights, intercepts = weights[1:] - weights[0], intercepts[1:] - intercepts[0]
    return {"intercepts": intercepts.tolist(), "weights": weights.tolist()}


def _tree(tree: Any) -> Tree:
    leaf = tree.children_left < 0
    probs = tree.value[:, 0, :] / tree.value[:, 0, :].sum(axis=1, keepdims=True)
    return Tree(term=np.where(leaf, -1, tree.feature).tolist(), threshold=np.where(leaf, 0.0, tree.threshold).tolist(),
                left=np.where(leaf, 0, tree.children_left).tolist(), right=np.where(leaf, 0, tree.children_right).tolist(),
                probs=probs.tolist())  # fmt: skip
