"""How a method gets better with more patients: the same held-out cases, judged by models of a part of the training patients.

    python benchmarks/accuracy/learning_curve.py --cohort busi --methods auto forest --seeds 3 --raw her2net_raw

The folds are those of `run.py`. Of each fold's training patients a share is kept, drawn within each class; a smaller share
is part of every larger one. Printed are the AUC out of fold of each share, mean over seeds, and the line that the error,
1 - AUC, follows against the number of cases on logarithmic axes: it says how many cases a goal would take, if it went on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cohorts import COHORTS, FOLDER, make_cohort
from folds import find_linked, make_folds, make_paths
from run import METHODS, run_method

from her2net.raw.dataset import Case, read_dataset

SHARES = (0.25, 0.5, 0.75, 1.0)


def choose_left_out(training: Sequence[Case], share: float, seed: int) -> list[str]:
    """Return the cases of the patients that are not kept: the last ones of an order drawn within each class, never all but one."""
    left_out = []
    for label in sorted({case.label for case in training if case.label is not None}):
        patients = sorted({case.patient_id for case in training if case.label == label})
        shuffled = np.random.default_rng((seed, int(label))).permutation(patients)
        dropped = set(shuffled[max(2, round(share * len(patients))) :])
        left_out += [case.case_id for case in training if case.label == label and case.patient_id in dropped]
    return left_out


def run_share(
    method: str, cohort: Path, held_out: list[list[str]], work: Path, share: float, seed: int, seconds: float
) -> tuple[float, float]:
    """Return the mean number of training cases, and the AUC out of fold."""
    training = [[case for case in read_dataset(cohort).train if case.case_id not in set(held)] for held in held_out]
    left_out = [choose_left_out(cases, share, seed) for cases in training]
    n_training = [len(cases) - len(dropped) for cases, dropped in zip(training, left_out, strict=True)]
    return float(np.mean(n_training)), run_method(method, cohort, held_out, work, seconds, seed, left_out)["auc"]


def run_seed(args: argparse.Namespace, seed: int) -> np.ndarray:
    """Return (n_methods, n_shares, 2): training cases and AUC."""
    with tempfile.TemporaryDirectory() as folder:
        whole = make_paths(Path(folder) / "whole", FOLDER)
        make_cohort(args.cohort, whole.raw, raw=args.raw, seed=seed)
        held_out = make_folds(read_dataset(whole.raw).train, find_linked(whole), seed)
        rows = []
        for method in args.methods:
            work = Path(folder) / method
            rows.append([run_share(method, whole.raw, held_out, work, share, seed, args.seconds) for share in SHARES])
            print(f"seed {seed} {method}: " + ", ".join(f"{n:.0f} cases {a:.3f}" for n, a in rows[-1]), flush=True)
    return np.array(rows)


def main() -> None:
    """Print the curve of each method, and how many cases the goal would take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", choices=list(COHORTS), default="busi")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["auto", "forest"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a fold, for methods that can use it")
    parser.add_argument("--goal", type=float, default=0.94, help="AUC whose number of cases is extrapolated")
    parser.add_argument("--raw", type=Path, default=os.environ.get("her2net_raw"), help="root of the real datasets")  # noqa: SIM112
    args = parser.parse_args()
    args.raw = Path(args.raw) if args.raw else None
    found = np.array([run_seed(args, seed) for seed in range(args.seeds)])
    for method, curve in zip(args.methods, found.mean(axis=0), strict=True):
        slope, intercept = np.polyfit(np.log(curve[:, 0]), np.log(1 - curve[:, 1]), 1)
        needed = np.exp((np.log(1 - args.goal) - intercept) / slope)
        print(f"{method}: " + ", ".join(f"{n:.0f} cases {a:.3f}" for n, a in curve)
              + f"; 1 - AUC falls with the power {slope:.2f} of the cases, {args.goal:g} at {needed:.0f}")


if __name__ == "__main__":
    main()
