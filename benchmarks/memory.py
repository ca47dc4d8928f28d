"""Peak memory of plan and preprocess at 100 and at 1,000 cases: it must not grow with their number.

    python benchmarks/memory.py [--cases 100 1000]

Small ultrasound images, the paper's plan at 64 x 64, one worker (all in one process, whose peak is what is reported).
What Python takes after its imports is told beside it, so that growth cannot hide behind them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cohorts import make_many_small, make_paths
from harness import Row, compare_numbers, finish, refuse

from her2net.artefact import load_json
from her2net.paths import DatasetPaths

CODE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from cohorts import make_paths, plan_cohort
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from her2net import pipeline
from her2net.plan.stage import PlanOptions
paths = make_paths(Path({root!r}))
for preprocess in (False, True):
    plan, _ = pipeline.plan(paths, PlanOptions(preset="paper", preprocess=preprocess, n_workers=1, quiet=True))
    section = plan.modalities["US"]
    sizes = section.preprocessing.model_copy(update={{"input_vox": [64, 64], "stored_vox": [80, 80]}})
    modalities = {{"US": section.model_copy(update={{"preprocessing": sizes}})}}
    plan.model_copy(update={{"modalities": modalities}}).save(paths.plan)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(paths: DatasetPaths, root: Path) -> tuple[float, float]:
    """Return the memory after the imports and the peak of plan and preprocess, in MiB."""
    code = CODE.format(here=str(Path(__file__).parent), root=str(root))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        refuse(done.stderr[-800:])
    if not list(paths.caches.glob("US_*.h5")) or not load_json(paths.splits):
        refuse("no cache was made")
    before, peak = done.stdout.split()[-2:]
    return int(before) / 1024, int(peak) / 1024


def run(sizes: list[int]) -> list[Row]:
    """Measure each size in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for n in sizes:
            root = Path(name) / str(n)
            paths = make_paths(root)
            make_many_small(paths, n)
            found[n] = peak_mib(paths, root)
    before = found[sizes[0]][0]
    grown = (found[sizes[-1]][1] - found[sizes[0]][1]) * 1024 / (sizes[-1] - sizes[0])
    note = f"{before:.0f} MiB are taken after the imports; {grown:.1f} KiB more per case (scan, digests and problems as text)"
    return [compare_numbers(f"peak memory of plan and preprocess, {n} cases: itself at {sizes[0]}", found[n][1],
                            found[sizes[0]][1], target=1.1, unit="MiB", note=note) for n in sizes[1:]]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000])
    raise SystemExit(finish(run(parser.parse_args().cases)))
