"""Kill the pipeline at random points, resume it, and compare everything it made with an uninterrupted run.

    python benchmarks/kill_test.py --kills 50
    python benchmarks/kill_test.py --kills 4 --quick       plan and one fold only

A tiny synthetic cohort with two modalities goes through plan, training, ensemble, fusion, evaluation and report. Each kill
(SIGKILL) falls into a stage that was drawn beforehand, so that the short ones get their share: half of them at a random time
within it, half right before or after a random call of it that changes the disk (rename, fsync, link, unlink), which is
where a loss would happen. After a few kills the run may end, and its results are compared by hash with those of a run
that was never killed: weights and optimizer states as tensors, caches as arrays, tables, pictures and the report as bytes.
A loss is a file that is missing, differs, or is there in addition. The images get the network that cohorts of this size get,
which is solved in one go; the volumes one that is trained in epochs. Needs fork, so Linux or macOS.

The clock stands still and each purpose opens the test labels once, so that reports can be compared to the byte: they tell when
they were made, how long training took, and how often labels were opened, which a repeated evaluation rightly raises.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
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
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch
from matplotlib.figure import Figure

from her2net import pipeline
from her2net.networks.build import NETWORKS
from her2net.paths import DatasetPaths, Roots
from her2net.plan import rules
from her2net.plan.machine import Machine, speed_key
from her2net.plan.stage import PlanOptions
from her2net.project import load_project
from her2net.raw import dataset as raw_dataset
from her2net.raw import synthetic
from her2net.raw.dataset import read_dataset
from her2net.report import page
from her2net.train import run as train_run
from her2net.train import timeline
from her2net.train.fold import TrainOptions

FOLDER = "Dataset001_Killed"
EPOCHS = 2
VOLATILE = {"duration_s", "pid", "time"}  # of a JSON file or a checkpoint: what differs between any two runs
LOG = "test_label_openings.jsonl"  # one line per opening, so a repeated evaluation has one more
KILLS_PER_CAMPAIGN = 8
DISK_CALLS = ("replace", "fsync", "link", "unlink")


def make_paths(root: Path) -> DatasetPaths:
    """Return the paths of the cohort below one folder."""
    return DatasetPaths(Roots(*(root / n for n in ("her2net_raw", "her2net_preprocessed", "her2net_results"))), FOLDER)


def make_cohort(root: Path, *, n_folds: int = 2, modalities: tuple[str, ...] = ("US", "MRI")) -> PlanOptions:
    """Make the raw data, the folds and a recorded machine that leads to the smallest networks; return how to plan."""
    paths = make_paths(root)
    make_networks_thin()
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
    speeds = {f"{network}|{size}|1|8": speed for network in ("resnet10t", "scattering_2d") for size, speed in slow.items()}
    speeds |= {speed_key(f"resnet10_3d_s{stem}", [depth, n, n], 2, 8): 1e4 if n == 32 else 1e-3
               for stem in ("122", "2") for depth in (8, 16, 24, 32) for n in (64, 48, 32)}  # fmt: skip
    machine = Machine(device="cpu", name="recorded", n_threads=1, memory_gb=8, bf16=False, samples_per_s=speeds)
    machine.save(root / "machine.json")
    return PlanOptions(budget_h=1.0, machine=root / "machine.json", splits=str(folds), n_workers=1, quiet=True)


def make_networks_thin() -> None:
    """Let the 3D ResNets of this process have an eighth of their channels: checkpoints of 4 MB, not of 230."""
    for name, spec in NETWORKS.items():
        if "_3d" in name and spec.library == "monai":
            NETWORKS[name] = replace(spec, options={**spec.options, "widen_factor": 0.125})


def step_through_volumes() -> None:
    """Let this process plan a ResNet for volumes, as for a large cohort: what is solved in one go has no epochs to die between."""
    choose = rules.list_candidates

    def list_candidates(modality: Any, **facts: Any) -> Any:
        return choose(modality, **(facts | {"n_training_cases": rules.SCATTERING_UP_TO + 1} if modality.ndim == 3 else facts))

    rules.list_candidates = list_candidates


def work(root: Path, options: PlanOptions, say: Callable[[str], None], *, quick: bool) -> None:
    """Run the pipeline, or the plan and one fold, with a checkpoint after every epoch."""
    train_run.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    stop_the_clock()
    draw_coarsely()
    training = TrainOptions(epochs=EPOCHS, quiet=True)
    say("plan")
    if not quick:
        pipeline.run(make_paths(root), options, training, say=say)
        return
    pipeline.plan(make_paths(root), options)
    say("train US fold 0: missing")
    pipeline.train(load_project(make_paths(root)), "US", 0, training)


def stop_the_clock() -> None:
    """Let this process record one time, no duration, and one opening of the test labels per purpose."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Still:
            return cls(2026, 11, 2, 12, tzinfo=tz)

    def record(log: Path, purpose: str, n_cases: int) -> None:
        if not log.exists() or f'"{purpose}"' not in log.read_text():
            record_opening(log, purpose, n_cases)

    record_opening = raw_dataset._record_opening
    raw_dataset._record_opening = record
    page.datetime = raw_dataset.datetime = Still  # type: ignore[assignment]
    timeline.time = SimpleNamespace(perf_counter=lambda: 0.0)  # type: ignore[assignment]


def draw_coarsely() -> None:
    """Let this process draw every picture at once and small: half of the time of a run would go into them."""
    original = Figure.savefig

    def save(figure: Figure, *args: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        original(figure, *args, **{**options, "dpi": 40})

    Figure.savefig = save  # type: ignore[method-assign]


def warm_up(source: Path, options: PlanOptions) -> None:
    """Let this process import and estimate what each of its forks would otherwise do again."""
    for name in ("monai.networks.nets", "timm", "sklearn.linear_model", "sklearn.metrics", "statsmodels.api", "scipy.stats",
                 "matplotlib.backends.backend_svg", "matplotlib.backends.backend_pdf", "matplotlib.pyplot"):  # fmt: skip
        importlib.import_module(name)
    root = source.parent / "warm_up"
    shutil.copytree(source / "her2net_raw", root / "her2net_raw")
    pipeline.plan(make_paths(root), options)
    shutil.rmtree(root)


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
    """How one attempt ended: exit status, last stage, and for each stage its seconds and calls that changed the disk."""

    status: int
    stage: str
    seconds: dict[str, float]
    calls: dict[str, int]


@dataclass(frozen=True)
class Kill:
    """When to kill: in which stage, and there at which share of its time, or of its calls that change the disk."""

    stage: str
    share: float
    at_call: bool


def attempt(root: Path, options: PlanOptions, *, quick: bool, kill: Kill | None = None, whole: Attempt | None = None) -> Attempt:
    """Run until the end, or until it is killed; at the latest right after the stage in which it should have been.

    Args:
        whole: an attempt that was not killed, by which the share is measured.
    """
    book = root / "stages.json"
    book.unlink(missing_ok=True)

    def child() -> None:
        diary = Diary(book, *_place(kill, whole), order=[] if whole is None else list(whole.calls))
        work(root, options, diary.enter, quick=quick)
        diary.enter("end")

    pid = fork(child, root / "log.txt")
    if kill is not None and whole is not None and not kill.at_call:
        _kill_in_time(pid, book, kill.stage, kill.share * whole.seconds[kill.stage])
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the pipeline failed instead of resuming:\n{(root / 'log.txt').read_text()}")
    entries = _read(book)
    stages = list(entries)
    seconds = {a: entries[b]["start"] - entries[a]["start"] for a, b in pairwise(stages)}
    return Attempt(code, stages[-1] if stages else "start", seconds, {name: entries[name]["calls"] for name in stages})


def _place(kill: Kill | None, whole: Attempt | None) -> tuple[str, int]:
    """Return the stage to die in, and at which of its calls (0: when it is over)."""
    if kill is None or whole is None:
        return "", 0
    return kill.stage, 1 + int(kill.share * whole.calls[kill.stage]) if kill.at_call else 0


def _kill_in_time(pid: int, book: Path, stage: str, after_s: float) -> None:
    """Kill a process some time after it has entered a stage, unless it ends before."""
    due = None
    while due is None or time.monotonic() < due:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        if due is None and stage in _read(book):
            due = time.monotonic() + after_s
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)


def _read(book: Path) -> dict[str, dict[str, Any]]:
    """Return what a diary holds; what was cut off by the kill is left out."""
    entries: dict[str, dict[str, Any]] = {}
    for line in book.read_text().splitlines() if book.exists() else ():
        if line.endswith("}"):
            entry = json.loads(line)
            entries[entry["stage"]] = entry
    return entries


class Diary:
    """Counts this process's calls that change the disk, stage by stage, writes them down, and dies where it is told to.

    At an odd call it dies right before, at an even one right after; and in any case when a later stage begins.
    """

    def __init__(self, book: Path, die_in: str, die_at: int, *, order: list[str]) -> None:
        self.handle = os.open(book, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.die_in, self.die_at = die_in, die_at
        self.later = order[order.index(die_in) + 1 :] if die_in else []
        self.stage, self.start, self.calls = "", 0.0, 0
        for name in DISK_CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def enter(self, text: str) -> None:
        """Note that a stage begins; what the pipeline says beside that, or of a stage that is not repeated, is none."""
        name = stage_of(text)
        if not name or name == self.stage or text.endswith("not repeated"):
            return
        self._note()
        if name in self.later:
            os.kill(os.getpid(), signal.SIGKILL)
        self.stage, self.start, self.calls = name, time.monotonic(), 0
        self._note()

    def _note(self) -> None:
        if self.stage:
            entry = {"stage": self.stage, "start": self.start, "calls": self.calls}
            os.write(self.handle, (json.dumps(entry) + "\n").encode())

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            due = self.stage == self.die_in and self.calls == self.die_at
            if due and self.die_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted


def stage_of(text: str) -> str:
    """Return the stage that a line of the pipeline announces, folds of a modality together; empty for other lines."""
    name = text.split(":")[0].split(" fold ")[0]
    return name if name.split()[0] in ("train", "ensemble", "fuse", "evaluate", "report", "end") or text == "plan" else ""


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


def draw_kills(whole: Attempt, n: int, number: int, rng: random.Random) -> list[Kill]:
    """Draw the kills of a campaign in the order of their stages: once in each stage, or in every second campaign anywhere."""
    stages = [name for name in whole.calls if name != "end"]
    drawn = [stages[i % len(stages)] for i in range(n)] if number % 2 == 0 else rng.choices(stages, k=n)
    ordered = sorted(drawn, key=stages.index)
    return [Kill(stage, rng.random(), at_call=bool((number + k) % 2)) for k, stage in enumerate(ordered)]


def campaign(
    source: Path, root: Path, options: PlanOptions, kills: list[Kill], whole: Attempt, *, quick: bool
) -> list[Attempt]:
    """Copy the raw data, kill the pipeline again and again, and let it end; return the kills."""
    shutil.copytree(source / "her2net_raw", root / "her2net_raw", copy_function=shutil.copy2)
    killed: list[Attempt] = []
    for kill in kills:
        done = attempt(root, options, quick=quick, kill=kill, whole=whole)
        if done.status == 0:  # it was too fast for the kill, which was due shortly before its end
            return killed
        killed.append(done)
    attempt(root, options, quick=quick)
    return killed


def run_all(n_kills: int, seed: int, work_dir: Path, *, quick: bool = False, n_jobs: int = 1) -> dict[str, Any]:
    """Kill at least `n_kills` times in campaigns of up to eight, some of them side by side; return the figures."""
    source = work_dir / "reference"
    options = make_cohort(source)
    step_through_volumes()
    warm_up(source, options)
    whole = attempt(source, options, quick=quick)
    print(f"uninterrupted: {sum(whole.seconds.values()):.0f} s", flush=True)
    expected, stages, lost, n_campaigns = snapshot(source), [], [], 0

    def one_campaign(number: int, n: int) -> None:
        root = work_dir / f"campaign_{number}"
        root.mkdir()
        kills = draw_kills(whole, n, number + seed, random.Random(f"{seed} {number}"))
        killed = campaign(source, root, options, kills, whole, quick=quick)
        found = {"stages": [kill.stage for kill in killed], "losses": losses(snapshot(root), expected)}
        (work_dir / f"{number}.json").write_text(json.dumps(found))
        shutil.rmtree(root)

    while len(stages) < n_kills:
        sizes = [min(KILLS_PER_CAMPAIGN, n_kills - n) for n in range(len(stages), n_kills, KILLS_PER_CAMPAIGN)][:n_jobs]
        running = {fork(lambda k=k, n=n: one_campaign(k, n), work_dir / f"{k}.log"): k for k, n in enumerate(sizes, n_campaigns)}
        for _ in sizes:
            pid, status = os.wait()
            number = running[pid]
            if status:
                raise SystemExit(f"campaign {number + 1} failed:\n{(work_dir / f'{number}.log').read_text()}")
            found = json.loads((work_dir / f"{number}.json").read_text())
            stages += found["stages"]
            lost += [f"campaign {number + 1}: {line}" for line in found["losses"]]
            print(f"campaign {number + 1}: {len(found['stages'])} kills ({', '.join(found['stages'])}); {len(stages)} in all, "
                  f"losses so far {len(lost)}", *found["losses"], sep="\n  ", flush=True)  # fmt: skip
        n_campaigns += len(sizes)
    return {"kills": len(stages), "campaigns": n_campaigns, "files_compared": len(expected), "stages": Counter(stages),
            "losses": lost, "uninterrupted_s": round(sum(whole.seconds.values()), 1), "disk_calls": whole.calls}  # fmt: skip


def main() -> int:
    """Print a table of kills by stage, and the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="campaigns side by side")
    parser.add_argument("--quick", action="store_true", help="plan and one fold only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run_all(args.kills, args.seed, Path(folder), quick=args.quick, n_jobs=args.jobs)
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
