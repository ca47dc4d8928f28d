"""`her2net_demo`: a synthetic cohort with a planted effect, through the whole pipeline."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from her2net.cli.common import execute, make_parser, positive_int

if TYPE_CHECKING:
    from her2net.raw.synthetic import SyntheticTruth

DEMO_BUDGET_H = 6 / 60
MIN_TEST_CASES = 20


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_demo`."""
    parser = make_parser("demo", "Make a synthetic US + MRI cohort with a planted effect and run everything on it.")
    parser.add_argument("--out", type=Path, default=Path("her2net_demo"), help="folder for the three roots")
    parser.add_argument("--cases", type=positive_int, default=120, help="training cases; a third as many for the test")
    parser.add_argument("--effect", type=float, default=1.0, help="strength of the planted effect; 0 plants none")
    parser.add_argument("--seed", type=int, default=0, help="of the cohort")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def run(args: argparse.Namespace) -> int:
    """Make the cohort, run the pipeline, and compare the AUC with what the cohort allows."""
    from her2net import pipeline
    from her2net.evaluate.evaluation import format_summary
    from her2net.paths import DatasetPaths, Roots
    from her2net.plan.stage import PlanOptions
    from her2net.train.fold import TrainOptions

    out = args.out.resolve()
    paths = DatasetPaths(Roots(out / "her2net_raw", out / "her2net_preprocessed", out / "her2net_results"),
                         "Dataset900_Synthetic")
    truth = _make_cohort(paths.raw, args)
    pipeline.run(paths, PlanOptions(budget_h=DEMO_BUDGET_H, quiet=args.quiet), TrainOptions(quiet=args.quiet))
    print(format_summary(paths.evaluation))
    print("AUC of an ideal reader (Bayes): " + ", ".join(f"{k} {v:.3f}" for k, v in truth.bayes_auc.items()))
    print(f"results: {os.path.relpath(paths.results)}")
    print(f"report: {os.path.relpath(paths.report)}")
    return 0


def _make_cohort(folder: Path, args: argparse.Namespace) -> SyntheticTruth:
    """Make the cohort, or keep the one that is there if it was made with the same arguments."""
    from her2net.errors import RawDataError
    from her2net.raw.synthetic import SyntheticTruth, make_synthetic_dataset, truth_path

    if truth_path(folder).exists():
        truth = SyntheticTruth.load(truth_path(folder))
        n_train = sum(case.cohort == "oof" for case in truth.cases)
        if (truth.effect, truth.seed, n_train) != (args.effect, args.seed, args.cases):
            raise RawDataError(
                f"{folder}: holds a cohort of {n_train} training cases, effect {truth.effect:g}, seed {truth.seed}; asked "
                f"for {args.cases}, {args.effect:g}, {args.seed}. Name another folder with --out."
            )
        print(f"synthetic cohort: {folder}, kept")
        return truth
    truth = make_synthetic_dataset(folder, n_train=args.cases, n_test=max(args.cases // 3, MIN_TEST_CASES),
                                   effect=args.effect, seed=args.seed)
    print(f"synthetic cohort: {folder}, {len(truth.cases)} cases")
    return truth


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_demo`."""
    return execute(run, build_parser(), argv)
