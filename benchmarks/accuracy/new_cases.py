"""Train once on all cases of a synthetic cohort, and judge new cases of others.

    python benchmarks/accuracy/new_cases.py --trained-on size_2d_200 --judged-on size_2d_200 core_2d_200 --methods auto forest --seeds 3
    python benchmarks/accuracy/new_cases.py --trained-on core_2d_1600 --judged-on core_2d_1000 --methods auto_wavelets auto_resnet

The first asks who relies on a confounder: lesions of the positive class are larger in `size_2d_200`, and size says nothing in
`core_2d_200`. Who relies on size loses between the two; who does not is as good on both, up to chance. The second asks what large
cohorts are best described by; folds would make it five times as long.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cohorts import COHORTS, FOLDER, Synthetic, make_cohort
from folds import copy_case, in_order, make_paths
from run import METHODS

from her2net.artefact import write_csv
from her2net.evaluate.delong import auc
from her2net.raw.dataset import Case, read_dataset

OTHER_PATIENTS = 1000
"""Added to the seed of the cohorts that are judged."""


def lay_out_cohorts(training: Path, held_out: dict[str, Path], folder: Path) -> dict[str, list[Case]]:
    """Write one dataset: the cases of a cohort to train on, and those of others, renamed and without labels."""
    cases = read_dataset(training).train
    rows = [{"case_id": case.case_id, "label": case.label, "patient_id": case.patient_id} for case in cases]
    for case in cases:
        copy_case(case, folder, "Tr")
    judged = {}
    for prefix, place in held_out.items():
        judged[prefix] = list(read_dataset(place).train)
        for case in judged[prefix]:
            copy_case(case, folder, "Ts", prefix)
            rows.append({"case_id": prefix + case.case_id, "label": "", "patient_id": prefix + case.patient_id})
    shutil.copyfile(training / "dataset.json", folder / "dataset.json")
    write_csv(folder / "cases.csv", ("case_id", "label", "patient_id"), rows)
    return judged


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Return, per method, its AUC on each cohort it is judged on."""
    with tempfile.TemporaryDirectory() as root:
        make_cohort(args.trained_on, Path(root) / "training", raw=None, seed=seed)
        places = {f"{name}-": Path(root) / name for name in args.judged_on}
        for name in args.judged_on:
            make_cohort(name, places[f"{name}-"], raw=None, seed=OTHER_PATIENTS + seed)
        found = {}
        for method in args.methods:
            paths = make_paths(Path(root) / method, FOLDER)
            judged = lay_out_cohorts(Path(root) / "training", places, paths.raw)
            ids = [prefix + case.case_id for prefix, cases in judged.items() for case in cases]
            start = time.monotonic()
            scores = dict(zip(ids, in_order(METHODS[method](paths, args.seconds, seed), ids, method), strict=True))
            found[method] = [_auc(cases, [scores[prefix + case.case_id] for case in cases]) for prefix, cases in judged.items()]
            print(f"seed {seed} {method}: {_in_words(args.judged_on, found[method])}, {time.monotonic() - start:.0f} s", flush=True)
    return found


def _auc(cases: Sequence[Case], scores: Sequence[float]) -> float:
    return auc(np.array([int(case.label or 0) for case in cases]), np.array(scores))


def _in_words(cohorts: Sequence[str], aucs: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(cohorts, aucs, strict=True))


def main() -> None:
    """Print the AUCs of each seed, their means, and what is lost from the first cohort to the last (standard error over seeds)."""
    synthetic = [name for name, recipe in COHORTS.items() if isinstance(recipe, Synthetic)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained-on", choices=synthetic, default="size_2d_200")
    parser.add_argument("--judged-on", nargs="+", choices=synthetic, default=["size_2d_200", "core_2d_200"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["auto", "forest", "elastic_net"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="training time, for methods that can use it")
    args = parser.parse_args()
    rows = [run_seed(args, seed) for seed in range(args.seeds)]
    for method in args.methods:
        aucs = np.array([row[method] for row in rows])
        lost = aucs[:, 0] - aucs[:, -1]
        error = lost.std(ddof=1) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
        in_all = f"{method}: {_in_words(args.judged_on, aucs.mean(axis=0))}"
        print(in_all + (f"; lost {lost.mean():+.3f} (SE {error:.3f})" if len(args.judged_on) > 1 else ""))


if __name__ == "__main__":
    main()
