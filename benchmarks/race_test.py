"""Start commands of one dataset at the same moment and look whether they get into each other's way.

    python benchmarks/race_test.py --rounds 20

Each round, in forked processes: two `plan` at once; eight folds at once, with a ninth process on one of the same folds; an
`evaluate` while a fold trains. A round is good if every process ends in time with the outcome it should have (the
ninth process refuses with the name of the holder, or finds the fold finished) and every file equals that of a run one after the other.
Pictures are written, but not drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from kill_test import fork, losses, make_cohort, make_paths, snapshot, warm_up
from matplotlib.figure import Figure

from her2net import pipeline
from her2net.errors import LockError
from her2net.plan.stage import PlanOptions
from her2net.project import load_project
from her2net.train.fold import TrainOptions

N_FOLDS, EPOCHS, PATIENCE_S = 8, 1, 900.0
REFUSED = 7  # exit code of a process that found the fold in use


def draw_nothing() -> None:
    """Let this process write pictures without drawing them, which would take two thirds of a round."""

    def save(figure: Figure, buffer: BinaryIO, **options: Any) -> None:
        buffer.write(b"a picture")

    Figure.savefig = save  # type: ignore[method-assign]


def plan(root: Path, options: PlanOptions) -> None:
    """Plan and preprocess."""
    pipeline.plan(make_paths(root), options)


def train(root: Path, fold: int, *, restart: bool = False) -> None:
    """Train one fold of US."""
    try:
        options = TrainOptions(epochs=EPOCHS, quiet=True, restart=restart)
        pipeline.train(load_project(make_paths(root)), "US", fold, options)
    except LockError as error:
        print(error, flush=True)
        os._exit(REFUSED)


def finish(root: Path) -> None:
    """Pool US, fit and pool the tables, and evaluate."""
    project = load_project(make_paths(root))
    pipeline.ensemble(project, "US", tta=False, device="cpu", quiet=True)
    for name in project.plan.tables:
        for fold in range(N_FOLDS):
            pipeline.train_table(project, name, fold, restart=False, quiet=True)
        pipeline.ensemble_table(project, name, quiet=True)
    evaluate(root)


def evaluate(root: Path) -> None:
    """Evaluate US and the tables."""
    pipeline.evaluate(load_project(make_paths(root)))


def together(root: Path, calls: dict[str, Callable[[], None]]) -> dict[str, tuple[int | None, str]]:
    """Run all calls at once in forked processes; return name -> (exit code, output). `None` is a deadlock."""
    pids = {fork(call, root / f"{name}.log"): name for name, call in calls.items()}
    codes: dict[str, int | None] = dict.fromkeys(calls)
    deadline = time.monotonic() + PATIENCE_S
    while any(code is None for code in codes.values()) and time.monotonic() < deadline:
        for pid in [p for p, name in pids.items() if codes[name] is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pids[pid]] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid, name in pids.items():
        if codes[name] is None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return {name: (code, (root / f"{name}.log").read_text()) for name, code in codes.items()}


def one_round(source: Path, root: Path, options: PlanOptions, expected: dict[str, str], number: int) -> list[str]:
    """Race once; return what went wrong."""
    shutil.copytree(source / "her2net_raw", root / "her2net_raw", copy_function=shutil.copy2)
    wrong = []

    def race(what: str, calls: dict[str, Callable[[], None]], allowed: tuple[int, ...] = (0,)) -> dict[str, tuple[int | None, str]]:
        ended = together(root, calls)
        wrong.extend(f"{what}: {name} {'hangs' if code is None else f'ends with {code}'}: {text[-500:]}"
                     for name, (code, text) in ended.items() if code not in allowed)  # fmt: skip
        return ended

    race("two plans", {"first": lambda: plan(root, options), "second": lambda: plan(root, options)})
    twice = number % N_FOLDS
    folds = {f"fold {k}": lambda k=k: train(root, k) for k in range(N_FOLDS)}
    ended = race("eight folds", {**folds, "again": lambda: train(root, twice)}, allowed=(0, REFUSED))
    both = [ended["again"], ended[f"fold {twice}"]]
    if [code for code, _ in ended.values()].count(REFUSED) > 1 or all(code == REFUSED for code, _ in both):
        wrong.append("eight folds: more than the surplus process was refused")
    wrong += [f"eight folds: the refusal does not name the holder: {text}"
              for code, text in ended.values() if code == REFUSED and "process " not in text]  # fmt: skip
    finish_in_child = together(root, {"finish": lambda: finish(root)})["finish"]
    if finish_in_child[0] != 0:
        wrong.append(f"finish: {finish_in_child}")
    race("evaluate while a fold trains", {"fold": lambda: train(root, 0, restart=True), "evaluate": lambda: evaluate(root)})
    return [f"round {number + 1}: {text}" for text in [*wrong, *losses(snapshot(root), expected)]]


def run_all(n_rounds: int, work_dir: Path) -> dict[str, Any]:
    """Make the reference one after the other, then race; return the figures."""
    source = work_dir / "reference"
    options = make_cohort(source, n_folds=N_FOLDS, modalities=("US",))
    warm_up(source, options)
    draw_nothing()
    steps = {"plan": lambda: plan(source, options)}
    steps |= {f"fold {k}": lambda k=k: train(source, k) for k in range(N_FOLDS)}
    for name, call in {**steps, "finish": lambda: finish(source)}.items():
        code, text = together(source, {name: call})[name]
        if code != 0:
            raise SystemExit(f"{name} failed:\n{text}")
    expected, wrong, start = snapshot(source), [], time.monotonic()
    for number in range(n_rounds):
        root = work_dir / f"round_{number}"
        root.mkdir()
        found = one_round(source, root, options, expected, number)
        wrong += found
        print("\n".join([f"round {number + 1}: {'good' if not found else 'BAD'}", *found]), flush=True)
        shutil.rmtree(root)
    return {"rounds": n_rounds, "files_compared": len(expected), "wrong": wrong, "seconds": round(time.monotonic() - start)}


def main() -> int:
    """Race, and print how many rounds went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run_all(args.rounds, Path(folder))
    print(f"{figures['rounds']} rounds of two plans, nine trainings and an evaluation beside a training; "
          f"{figures['files_compared']} files compared after each; wrong: {len(figures['wrong'])}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
