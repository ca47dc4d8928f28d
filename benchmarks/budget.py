"""Is a budget kept? Plans with several budgets, trains every fold, and compares the time with what was allowed.

    python benchmarks/budget.py                       # as planned
    python benchmarks/budget.py --cases 300 --minutes 4 8 --stepped

`--stepped` plans learned filters, as for more than a thousand cases, so that there are epochs to choose. Prints, for each
budget, what was planned, the minutes that training took, their share of the budget, and the AUC out of fold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent / "accuracy"))

from cohorts import COHORTS, FOLDER, Synthetic, make_cohort
from folds import make_paths

from her2net import pipeline
from her2net.evaluate.delong import auc
from her2net.plan import rules
from her2net.plan.stage import PlanOptions
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.train.fold import TrainOptions


def run_budget(whole: Path, minutes: float, *, stepped: bool) -> str:
    """Plan, train all folds and pool them; return a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make_paths(Path(folder), FOLDER)
        paths.raw.parent.mkdir(parents=True)
        paths.raw.symlink_to(whole, target_is_directory=True)
        limit = 0 if stepped else rules.SCATTERING_UP_TO
        with mock.patch("her2net.plan.rules.SCATTERING_UP_TO", limit):
            pipeline.plan(paths, PlanOptions(budget_h=minutes / 60, n_workers=1, quiet=True))
        project = load_project(paths)
        (name,) = project.plan.modalities
        section = project.plan.modalities[name]
        start = time.monotonic()
        for fold in range(project.plan.splits.n_folds):
            pipeline.train(project, name, fold, TrainOptions(quiet=True))
        spent = (time.monotonic() - start) / 60
        pipeline.ensemble(project, name, tta=False, device="cpu", quiet=True)
        table = read_predictions(paths.model(name) / "oof.csv")
        network = f"{section.training.network} {'x'.join(map(str, section.preprocessing.input_vox))}"
        return (f"| {minutes:g} | {network} | {section.training.epochs} | {spent:.2f} | {spent / minutes:.0%} "
                f"| {auc(table.labels, table.probs[:, 1]):.3f} |")  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--ndim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--stepped", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / FOLDER
        with mock.patch.dict(COHORTS, {"budget": Synthetic(args.ndim, args.cases)}):
            bayes = make_cohort("budget", whole, raw=None, seed=0)
        print(f"{args.cases} cases, {args.ndim}D, Bayes AUC {bayes:.3f}")
        print("| budget, min | network | epochs | took, min | of the budget | AUC |\n|---|---|---|---|---|---|")
        for minutes in args.minutes:
            print(run_budget(whole, minutes, stepped=args.stepped), flush=True)


if __name__ == "__main__":
    main()
