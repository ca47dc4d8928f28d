"""How long evaluation and report of a dataset take, and how large the file is.

    python benchmarks/report_speed.py [--train 140] [--test 60]

Makes a synthetic cohort, trains it for one epoch (not timed), then times the two stages in this one process. Images have the
size of the demo's. Wall and processor time are both printed: on a busy machine only the latter means anything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from her2net import pipeline
from her2net.paths import DatasetPaths, Roots
from her2net.plan.stage import PlanOptions
from her2net.project import load_project
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.fold import TrainOptions


def timed(name: str, stage: Callable[[], object]) -> tuple[float, float]:
    """Run a stage and print its wall and processor time in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    stage()
    found = time.perf_counter() - wall, time.process_time() - processor
    print(f"{name:<12}{found[0]:6.1f} s wall {found[1]:6.1f} s processor", flush=True)
    return found


def main() -> None:
    """Make, train, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=140, help="training cases")
    parser.add_argument("--test", type=int, default=60, help="test cases")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = DatasetPaths(Roots(root / "raw", root / "preprocessed", root / "results"), "Dataset900_Synthetic")
        make_synthetic_dataset(paths.raw, n_train=args.train, n_test=args.test)
        options = PlanOptions(budget_h=1 / 60, quiet=True)
        pipeline.run(paths, options, TrainOptions(quiet=True, epochs=1), say=lambda text: None)
        project = load_project(paths)
        evaluate = timed("evaluation", lambda: pipeline.evaluate(project))
        report = timed("report", lambda: pipeline.report(project, paper=True))
        wall, processor = (sum(pair) for pair in zip(evaluate, report, strict=True))
        print(f"{'together':<12}{wall:6.1f} s wall {processor:6.1f} s processor")
        print(f"report.html: {paths.report.stat().st_size / 1e6:.1f} MB for {args.train + args.test} cases")


if __name__ == "__main__":
    main()
