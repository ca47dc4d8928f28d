"""Does the whole pipeline find what was planted, and nothing where nothing was?

    python benchmarks/planted_effect.py --effect 0 --seeds 20     # OOF AUC must scatter around 0.5: a leak shows here
    python benchmarks/planted_effect.py --effect 1 --seeds 5      # and reach what an ideal reader reaches

Each seed makes a new cohort in a temporary folder and runs plan, training, ensemble, fusion and
evaluation on it. Prints one row per seed, then the mean with its standard error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from her2net import pipeline
from her2net.paths import DatasetPaths, Roots
from her2net.plan.stage import PlanOptions
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.fold import TrainOptions


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the OOF AUC of every model for one cohort."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = DatasetPaths(Roots(root / "raw", root / "preprocessed", root / "results"), "Dataset900_Synthetic")
        truth = make_synthetic_dataset(paths.raw, n_train=args.cases, n_test=0, effect=args.effect, seed=seed)
        options = PlanOptions(budget_h=args.budget_m / 60, machine=args.machine, quiet=True)
        found = pipeline.run(paths, options, TrainOptions(quiet=True, seed=seed), say=lambda text: None)
        aucs = {m.model: m.value for m in found.metrics if m.metric == "auc" and m.cohort == "oof"}
        shown = "  ".join(f"{name} {aucs[name]:.3f} (latent {truth.latent_auc['oof'][name]:.3f})" for name in aucs)
        print(f"seed {seed}: {shown}", flush=True)
        return aucs


def main() -> None:
    """Run all seeds and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effect", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--budget-m", type=float, default=0.3, help="minutes of training per seed")
    parser.add_argument("--machine", type=Path, help="reuse a recorded speed measurement")
    args = parser.parse_args()
    rows = [run_seed(seed, args) for seed in range(args.seeds)]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        print(f"{name}: mean OOF AUC {values.mean():.3f}, standard error {error:.3f}, {len(values)} cohorts, effect {args.effect:g}")


if __name__ == "__main__":
    main()
