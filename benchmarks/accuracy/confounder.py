"""Learn where lesion size goes with the class, and judge where it does not.

    python benchmarks/accuracy/confounder.py --methods auto forest elastic_net --seeds 3

Lesions of the positive class are larger in the cohort `size_2d_200`, by half a standard deviation to either side. All 200
cases train each method once; it then scores 200 new cases of the same kind, and 200 in which size says nothing
(`core_2d_200`). Who relies on size loses between the two; who does not is as good on both, up to chance.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cohorts import FOLDER, make_cohort
from folds import copy_case, in_order, make_paths
from run import METHODS

from her2net.artefact import write_csv
from her2net.evaluate.delong import auc
from her2net.raw.dataset import Case, read_dataset

TRAINED_ON, JUDGED_ON, OTHER_PATIENTS = "size_2d_200", ("size_2d_200", "core_2d_200"), 1000


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


def run_seed(methods: Sequence[str], seed: int, seconds: float) -> dict[str, list[float]]:
    """Return, per method, its AUC on each cohort it is judged on."""
    with tempfile.TemporaryDirectory() as root:
        make_cohort(TRAINED_ON, Path(root) / "training", raw=None, seed=seed)
        places = {f"{name}-": Path(root) / name for name in JUDGED_ON}
        for name in JUDGED_ON:
            make_cohort(name, places[f"{name}-"], raw=None, seed=OTHER_PATIENTS + seed)
        found = {}
        for method in methods:
            paths = make_paths(Path(root) / method, FOLDER)
            judged = lay_out_cohorts(Path(root) / "training", places, paths.raw)
            ids = [prefix + case.case_id for prefix, cases in judged.items() for case in cases]
            scores = dict(zip(ids, in_order(METHODS[method](paths, seconds, seed), ids, method), strict=True))
            found[method] = [_auc(cases, [scores[prefix + case.case_id] for case in cases]) for prefix, cases in judged.items()]
            print(f"seed {seed} {method}: {_in_words(found[method])}", flush=True)
    return found


def _auc(cases: Sequence[Case], scores: Sequence[float]) -> float:
    return auc(np.array([int(case.label or 0) for case in cases]), np.array(scores))


def _in_words(aucs: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(JUDGED_ON, aucs, strict=True))


def main() -> None:
    """Print the AUCs of each seed, and the mean loss of each method with its standard error over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["auto", "forest", "elastic_net"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="training time, for methods that can use it")
    args = parser.parse_args()
    rows = [run_seed(args.methods, seed, args.seconds) for seed in range(args.seeds)]
    for method in args.methods:
        aucs = np.array([row[method] for row in rows])
        lost = aucs[:, 0] - aucs[:, 1]
        error = lost.std(ddof=1) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
        print(f"{method}: {_in_words(aucs.mean(axis=0))}; lost {lost.mean():+.3f} (SE {error:.3f})")


if __name__ == "__main__":
    main()
