"""Scale: verify, fingerprint, plan and splits of 1,000, 10,000 and 100,000 small cases; processor time per case.

    python benchmarks/scale.py [--cases 1000 10000] [--rounds 3]

Each size is planned anew (no scan at hand) by `her2net_plan --preset paper --no-preprocess` in a process of its own.
What a plan of 50 cases takes (imports, start of workers) is subtracted from both, so that the rest is what cases cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cohorts import make_many_small, make_paths
from harness import Cost, Row, compare_numbers, finish, measure, refuse

from her2net.paths import DatasetPaths
from her2net.splits import Splits

FEW, LIMIT = 50, 1.15


def plan(paths: DatasetPaths) -> None:
    """Verify, fingerprint, plan and split from nothing."""
    shutil.rmtree(paths.preprocessed, ignore_errors=True)
    roots = {f"her2net_{k}": str(getattr(paths.roots, k)) for k in ("raw", "preprocessed", "results")}
    code = "from her2net.cli.plan import main; raise SystemExit(main(['--preset', 'paper', '--no-preprocess', '--quiet']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | roots, check=False)
    if done.returncode:
        refuse(done.stderr[-500:])


def run(sizes: list[int], rounds: int) -> list[Row]:
    """Make the cohorts and plan them in turns."""
    with tempfile.TemporaryDirectory() as name:
        cohorts = {n: make_paths(Path(name) / str(n)) for n in (FEW, *sizes)}
        for n, paths in cohorts.items():
            make_many_small(paths, n)
        costs: dict[int, list[Cost]] = {n: [] for n in cohorts}
        for k in range(rounds):
            for n, paths in cohorts.items():
                if n < 50_000 or k == 0:  # the largest once
                    costs[n].append(measure(lambda paths=paths: plan(paths)))
        for n, paths in cohorts.items():
            patients = {p for part in Splits.load(paths.splits).partitions.values() for fold in part.folds for p in fold}
            if len(patients) != n:
                refuse(f"{len(patients)} of {n} patients are in the splits")
    median = {n: statistics.median(c.processor for c in found) for n, found in costs.items()}
    per_case = {n: (median[n] - median[FEW]) / (n - FEW) * 1e3 for n in sizes}
    note = f"wall {', '.join(f'{n}: {statistics.median(c.wall for c in costs[n]):.0f} s' for n in cohorts)}"
    return [
        compare_numbers(f"verify to splits, {n} cases: itself at {sizes[0]}, per case", per_case[n], per_case[sizes[0]],
                        target=LIMIT, unit="ms", n_rounds=len(costs[n]), note=note)
        for n in sizes[1:]
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    raise SystemExit(finish(run(args.cases, args.rounds)))
