"""Does the whole pipeline find what was planted, and nothing where nothing was?

    python benchmarks/planted_effect.py --effect 0 --seeds 20 --cases 200     # AUC must scatter around 0.5: a leak shows here
    python benchmarks/planted_effect.py --effect 1 --seeds 5      # and reach what an ideal reader reaches

Each seed makes a new cohort in a temporary folder and goes through plan, training, ensemble and fusion, to the tables that
are evaluated; with `--test N`, N new cases are predicted, too. Prints one row per seed, then the means with their standard
errors, and how much of the way from 0.5 to the ideal reader's AUC on the same cases that is. Out of fold, the mean of the
AUCs within folds stands beside the pooled one, which is a little pessimistic where there is nothing to learn: two cases of
different folds each helped to train the model that judges the other (Airola et al. 2011, doi:10.1016/j.csda.2010.11.023).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from her2net import pipeline
from her2net.fuse.stage import FUSION
from her2net.paths import DatasetPaths, Roots
from her2net.plan.stage import PlanOptions
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.raw.synthetic import SyntheticTruth, make_synthetic_dataset
from her2net.train.fold import TrainOptions


def run_seed(seed: int, args: argparse.Namespace) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return (cohort, model) -> its AUC pooled and within folds, and that of the latents, for one cohort."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = DatasetPaths(Roots(root / "raw", root / "preprocessed", root / "results"), "Dataset900_Synthetic")
        truth = make_synthetic_dataset(paths.raw, n_train=args.cases, n_test=args.test, effect=args.effect, seed=seed)
        pipeline.plan(paths, PlanOptions(budget_h=args.budget_m / 60, machine=args.machine, n_workers=1, quiet=True))
        project = load_project(paths)
        for name in project.plan.modalities:
            for fold in range(project.plan.splits.n_folds):
                pipeline.train(project, name, fold, TrainOptions(quiet=True, seed=seed))
            pipeline.ensemble(project, name, tta=False, device="cpu", quiet=True)
        pipeline.fuse(project)
        found = {
            (cohort, name): (*read_aucs(paths.model(name) / f"{cohort}.csv", truth), truth.latent_auc[cohort][name])
            for cohort in truth.latent_auc for name in [*project.plan.modalities, FUSION]
        }  # fmt: skip
        print(f"seed {seed}: " + "  ".join(f"{c} {m} {a:.3f} (ideal {b:.3f})" for (c, m), (a, _, b) in found.items()), flush=True)
        return found


def read_aucs(path: Path, truth: SyntheticTruth) -> tuple[float, float]:
    """Return the AUC of a prediction table against the labels that the cohort was made with: pooled, and the mean within folds."""
    table, label_of = read_predictions(path), {case.case_id: case.label for case in truth.cases}
    labels, scores, folds = np.array([label_of[case_id] for case_id in table.case_ids]), table.probs[:, 1], np.array(table.folds)
    parts = [folds == fold for fold in dict.fromkeys(table.folds)]
    within = [roc_auc_score(labels[part], scores[part]) for part in parts if len(set(labels[part])) == 2]
    return float(roc_auc_score(labels, scores)), float(np.mean(within))


def main() -> None:
    """Run all seeds and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effect", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--test", type=int, default=0, help="new cases to predict")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--budget-m", type=float, default=0.3, help="minutes of training per seed")
    parser.add_argument("--machine", type=Path, help="reuse a recorded speed measurement")
    args = parser.parse_args()
    rows = [run_seed(seed, args) for seed in range(args.first, args.first + args.seeds)]
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(3, np.nan)
        pooled, within, ideal = values.mean(axis=0)
        way = f", {(pooled - 0.5) / (ideal - 0.5):.0%} of the way" if args.effect else ""
        print(f"{' '.join(key)}: mean AUC {pooled:.3f} (SE {error[0]:.3f}), within folds {within:.3f} ({error[1]:.3f}), "
              f"ideal {ideal:.3f}{way}, {len(values)} cohorts of {args.cases} cases, effect {args.effect:g}")  # fmt: skip


if __name__ == "__main__":
    main()
