"""Kill the pipeline at random points, resume it, and compare everything it made with an uninterrupted run.

    python benchmarks/kill_test.py --kills 50
    python benchmarks/kill_test.py --kills 4 --quick       plan and one fold only

A tiny synthetic cohort with two modalities goes through plan, training, ensemble, fusion and evaluation. Half of the kills
(SIGKILL) come after a random time, half right before or after a random call that changes the disk (rename, fsync, link,
unlink), which is where a loss would happen. After a few kills the run may end, and its results are compared by
hash with those of a run that was never killed: weights and optimizer states as tensors, caches as arrays, tables and pictures
as bytes. A loss is a file that is missing, differs, or is there in addition. Needs fork, so Linux or macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch

from her2net import pipeline
from her2net.paths import DatasetPaths, Roots
from her2net.plan.machine import Machine, speed_key
from her2net.plan.stage import PlanOptions
from her2net.project import load_project
from her2net.raw import synthetic
from her2net.raw.dataset import read_dataset
from her2net.train import run as train_run
from her2net.train.fold import TrainOptions

FOLDER = "Dataset001_Killed"
EPOCHS = 2
VOLATILE = {"duration_s", "pid", "time"}  # of a JSON file or a checkpoint: what differs between any two runs
LOG = "test_label_openings.jsonl"  # one line per opening, so a repeated evaluation has one more
DISK_CALLS = ("replace", "fsync", "link", "unlink")


def make_paths(root: Path) -> DatasetPaths:
    """Return the paths of the cohort below one folder."""
    return DatasetPaths(Roots(*(root / n for n in ("her2net_raw", "her2net_preprocessed", "her2net_results"))), FOLDER)


def make_cohort(root: Path, *, n_folds: int = 2, modalities: tuple[str, ...] = ("US", "MRI")) -> PlanOptions:
    """Make the raw data, the folds and a recorded machine that leads to the smallest networks; return how to plan."""
    paths = make_paths(root)
    if len(modalities) == 1:
        synthetic.MISSING[modalities[0]] = 0.0  # a case must have something
    synthetic.make_synthetic_dataset(paths.raw, n_train=16, n_test=4, us_size=(64, 72), mri_size=(8, 32, 32))
    declared = json.loads((paths.raw / "dataset.json").read_text())
    for name in set(declared["modalities"]) - set(modalities):
        del declared["modalities"][name]
        for folder in paths.raw.glob(f"*/{name}"):
            shutil.rmtree(folder)
    (paths.raw / "dataset.json").write_text(json.dumps(declared))
    by_class: dict[Any, list[str]] = {}
    for case in read_dataset(paths.raw).train:
        by_class.setdefault(case.label, []).append(case.patient_id)
    ordered = [p for patients in by_class.values() for p in dict.fromkeys(patients)]
    folds = root / "folds.json"
    folds.write_text(json.dumps([ordered[k::n_folds] for k in range(n_folds)]))
    slow = {"128x128": 1e-3, "96x96": 1e-3, "64x64": 1e4}
    speeds = {f"resnet10t|{size}|1|8": speed for size, speed in slow.items()}
    speeds |= {speed_key(f"resnet10_3d_s{stem}", [depth, n, n], 2, 8): 1e4 if n == 32 else 1e-3
               for stem in ("122", "2") for depth in (8, 16, 24, 32) for n in (64, 48, 32)}  # fmt: skip
    machine = Machine(device="cpu", name="recorded", n_threads=1, memory_gb=8, bf16=False, samples_per_s=speeds)
    machine.save(root / "machine.json")
    return PlanOptions(budget_h=1.0, machine=root / "machine.json", splits=str(folds), n_workers=1, quiet=True)


def work(root: Path, options: PlanOptions, say: Callable[[str], None], *, quick: bool) -> None:
    """Run the pipeline, or the plan and one fold, with a checkpoint after every epoch."""
    train_run.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    training = TrainOptions(epochs=EPOCHS, quiet=True)
    say("plan")
    if not quick:
        pipeline.run(make_paths(root), options, training, say=say)
        return
    pipeline.plan(make_paths(root), options)
    say("train US fold 0")
    pipeline.train(load_project(make_paths(root)), "US", 0, training)


def fork(function: Callable[[], None], log: Path) -> int:
    """Call a function in a forked process, its output in a file; return the process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        function()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


@dataclass
class Attempt:
    """How one attempt ended: exit status, last stage, duration, and calls that changed the disk."""

    status: int
    stage: str
    seconds: float
    calls: int


def attempt(
    root: Path, options: PlanOptions, *, quick: bool, after_s: float | None = None, at_call: int = 0
) -> Attempt:
    """Run until the end, or until it is killed after some time or at the n-th call that changes the disk."""
    stage_file, call_file, start = root / "stage.txt", root / "calls.txt", time.monotonic()

    def child() -> None:
        calls = _count_calls(die_at=at_call)
        work(root, options, lambda text: _note(stage_file, text.split(":")[0]), quick=quick)
        _note(call_file, str(calls[0]))

    pid = fork(child, root / "log.txt")
    if after_s is not None:
        while time.monotonic() - start < after_s:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the pipeline failed instead of resuming:\n{(root / 'log.txt').read_text()}")
    stage = stage_file.read_text() if stage_file.exists() else "start"
    calls = int(call_file.read_text()) if code == 0 else 0
    return Attempt(code, stage, time.monotonic() - start, calls)


def _note(path: Path, text: str) -> None:
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(handle, text.encode())
    os.close(handle)


def _count_calls(*, die_at: int) -> list[int]:
    """Count the calls of this process that change the disk; it dies right before (odd) or after (even) the n-th."""
    count = [0]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == die_at and die_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in DISK_CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    return count


def snapshot(root: Path) -> dict[str, str]:
    """Return file -> digest of everything the pipeline made, without what differs between any two runs."""
    found = {}
    for top in ("her2net_preprocessed", "her2net_results"):
        for path in sorted((root / top).rglob("*")):
            dead_lock = path.name.endswith(".lock")  # of a killed process; the next one that needs it takes it over
            if path.is_file() and path.name != LOG and not dead_lock:
                found[path.relative_to(root).as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    if path.suffix == ".pt":
        _feed(hasher, torch.load(path, weights_only=True))
    elif path.suffix == ".json":
        _feed(hasher, json.loads(path.read_text()))
    elif path.suffix == ".h5":
        with h5py.File(path, "r", locking=False) as file:
            _feed(hasher, {name: file[name][:] for name in file})
    else:
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            if key not in VOLATILE:
                hasher.update(str(key).encode())
                _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _feed(hasher, item)
    elif isinstance(value, torch.Tensor):
        _feed(hasher, value.detach().contiguous().numpy())
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.shape}{value.dtype.kind}".encode() + value.tobytes())
    else:
        hasher.update(repr(value).encode())


def losses(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """List the files that are missing, surplus or different."""
    return [
        f"{'missing' if name not in found else 'surplus' if name not in expected else 'different'}: {name}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]


def campaign(
    source: Path, root: Path, options: PlanOptions, n_kills: int, whole: Attempt, rng: random.Random, *, quick: bool
) -> list[Attempt]:
    """Copy the raw data, kill the pipeline up to `n_kills` times, and let it end; return the kills."""
    shutil.copytree(source / "her2net_raw", root / "her2net_raw", copy_function=shutil.copy2)
    kills: list[Attempt] = []
    while len(kills) < n_kills:
        share = rng.uniform(0.0, 1.5 / (n_kills - len(kills) + 1))
        when: dict[str, Any] = {"after_s": share * whole.seconds}
        if len(kills) % 2:
            when = {"at_call": 1 + int(share * whole.calls)}
        done = attempt(root, options, quick=quick, **when)
        if done.status == 0:
            return kills
        kills.append(done)
    attempt(root, options, quick=quick)
    return kills


def run_all(n_kills: int, seed: int, work_dir: Path, *, quick: bool = False) -> dict[str, Any]:
    """Kill at least `n_kills` times in campaigns of up to eight; return the figures."""
    source = work_dir / "reference"
    options = make_cohort(source)
    whole = attempt(source, options, quick=quick)
    expected = snapshot(source)
    rng, kills, lost, n_campaigns = random.Random(seed), [], [], 0
    while len(kills) < n_kills:
        root = work_dir / f"campaign_{n_campaigns}"
        root.mkdir()
        found = campaign(source, root, options, min(8, n_kills - len(kills)), whole, rng, quick=quick)
        here = [f"campaign {n_campaigns + 1}: {line}" for line in losses(snapshot(root), expected)]
        lost += here
        kills += found
        n_campaigns += 1
        print(f"campaign {n_campaigns}: {len(found)} kills, {len(kills)} in all, losses so far {len(lost)}", flush=True)
        if here:
            print("\n".join([*here, *(str(kill) for kill in found)]), flush=True)
        shutil.rmtree(root)
    stages = Counter(" ".join(kill.stage.split(" fold ")[0].split()) for kill in kills)
    return {"kills": len(kills), "campaigns": n_campaigns, "files_compared": len(expected), "stages": dict(stages),
            "losses": lost, "uninterrupted_s": round(whole.seconds, 1), "disk_calls": whole.calls}  # fmt: skip


def main() -> int:
    """Print a table of kills by stage, and the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="plan and one fold only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run_all(args.kills, args.seed, Path(folder), quick=args.quick)
    print(f"\n{'killed during':<20} kills")
    for stage, n in sorted(figures["stages"].items()):
        print(f"{stage:<20} {n:5d}")
    print(f"{'all':<20} {figures['kills']:5d}\n")
    print(f"{figures['files_compared']} files compared after each of {figures['campaigns']} campaigns; "
          f"losses: {len(figures['losses'])}")  # fmt: skip
    print("\n".join(figures["losses"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    return 1 if figures["losses"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
