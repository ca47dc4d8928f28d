"""Which way of fusing is best, and does choosing one pay?

    python benchmarks/fusion_methods.py --seeds 20 --cases 60 120 240

Prediction tables are simulated, not trained: each table's logit is a Gaussian reading of the class whose scale and shift
vary between folds, as those of fold models do. Each method is fitted on the out-of-fold tables and judged on 2000 new
cases; `nested` is the log loss of the fusion's own out-of-fold table, whose methods are chosen without the patients they
predict. Prints per scenario and cohort size the mean over seeds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from her2net.fuse.choose import METHODS, fit_fusion, fuse_out_of_fold, select_method
from her2net.fuse.logistic import apply_fusion
from her2net.predictions import Predictions, make_predictions

CLASSES = ["negative", "positive"]
N_FOLDS, N_NEW, STRENGTH = 5, 2000, 1.0


@dataclass(frozen=True)
class Scenario:
    """How the tables relate: distance of the class means of each, correlation of their errors, share without each."""

    distances: tuple[float, ...]
    correlation: float = 0.0
    missing: float = 0.06


SCENARIOS = {
    "two tables, independent": Scenario((1.47, 1.19)),
    "two tables, independent, all there": Scenario((1.47, 1.19), missing=0.0),
    "two tables, 30 % missing": Scenario((1.47, 1.19), missing=0.3),
    "two tables, correlated 0.6": Scenario((1.47, 1.19), correlation=0.6),
    "one of two knows nothing": Scenario((1.47, 0.0)),
    "five tables, correlated 0.4": Scenario((1.2, 1.2, 0.9, 0.6, 0.3), correlation=0.4),
    "no table knows anything": Scenario((0.0, 0.0)),
}


def draw(scenario: Scenario, n: int, rng: np.random.Generator, *, folds: int) -> dict[str, Predictions]:
    """Draw tables of n cases; with `folds` 0, the mean of many fold models predicts."""
    k = len(scenario.distances)
    y = (np.arange(n) < 0.4 * n).astype(int)
    fold = rng.permutation(n) % max(folds, 1)
    covariance = np.full((k, k), scenario.correlation) + (1 - scenario.correlation) * np.eye(k)
    latent = rng.multivariate_normal(np.zeros(k), covariance, n) + np.outer(y - 0.5, scenario.distances)
    here = rng.random((n, k)) >= scenario.missing
    here[~here.any(axis=1), 0] = True
    tables = {}
    for j, distance in enumerate(scenario.distances):
        scale = 0.7 * max(distance, 0.5) * np.exp(0.25 * rng.standard_normal(max(folds, 1)) * bool(folds))
        shift = -0.3 + 0.3 * rng.standard_normal(max(folds, 1)) * bool(folds)
        logit = scale[fold] * latent[:, j] + shift[fold]
        p, rows = 1 / (1 + np.exp(-logit)), np.flatnonzero(here[:, j])
        tables[f"T{j}"] = make_predictions(
            [f"{i:05d}" for i in rows], [f"{i:05d}" for i in rows], np.column_stack([1 - p, p])[rows],
            labels=[int(v) for v in y[rows]], folds=[str(v) if folds else "" for v in fold[rows]])  # fmt: skip
    return tables


def run(scenario: Scenario, n: int, seed: int) -> tuple[dict[str, tuple[float, float, float]], str]:
    """Return method -> (log loss and AUC on new cases, nested log loss), and the method that was chosen."""
    rng = np.random.default_rng((seed, n))
    tables, new = draw(scenario, n, rng, folds=N_FOLDS), draw(scenario, N_NEW, rng, folds=0)
    names = list(tables)
    subsets = sorted({tuple(m for m in names if c in t[m]) for t in ({k: set(v.case_ids) for k, v in tables.items()},
                      {k: set(v.case_ids) for k, v in new.items()}) for c in set().union(*t.values())} | {(m,) for m in names})
    fold_of = {p: f for t in tables.values() for p, f in zip(t.patient_ids, t.folds, strict=True)}
    folds = [[p for p, f in fold_of.items() if f == str(k)] for k in range(N_FOLDS)]
    chosen = select_method(tables, subsets, folds, CLASSES, STRENGTH)
    found = {}
    for name in (*METHODS, "auto"):
        method = chosen.chosen if name == "auto" else name
        per_fold = chosen.per_fold if name == "auto" else [method] * N_FOLDS
        fused = apply_fusion(new, fit_fusion(tables, subsets, CLASSES, STRENGTH, method=method))
        own = fuse_out_of_fold(tables, subsets, folds, CLASSES, STRENGTH, per_fold)
        found[name] = (log_loss(fused.labels, fused.probs), roc_auc_score(fused.labels, fused.probs[:, 1]),
                       log_loss(own.labels, own.probs))
    return found, chosen.chosen


def main() -> None:
    """Print every scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cases", type=int, nargs="+", default=[60, 120, 240])
    args = parser.parse_args()
    for title, scenario in SCENARIOS.items():
        for n in args.cases:
            runs = [run(scenario, n, seed) for seed in range(args.seeds)]
            print(f"{title}, n = {n}, chosen {dict(Counter(chosen for _, chosen in runs))}")
            best = np.array([[found[m][0] for m in (*METHODS, "auto")] for found, _ in runs])
            gap = best - best[:, [METHODS.index("logistic")]]
            for j, m in enumerate((*METHODS, "auto")):
                loss, auc, nested = np.mean([found[m] for found, _ in runs], axis=0)
                error = gap[:, j].std(ddof=1) / np.sqrt(len(runs))
                print(f"    {m:<9} log loss {loss:.4f} ({gap[:, j].mean():+.4f} ± {error:.4f} to logistic)  AUC {auc:.4f}  "
                      f"nested log loss {nested:.4f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
