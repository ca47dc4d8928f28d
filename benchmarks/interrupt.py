"""Press Ctrl-C while commands are at work, and time the end of every process of theirs.

    python benchmarks/interrupt.py --repeats 5

SIGINT goes to the whole process group, as a terminal sends it, at a random moment of the two seconds after
`her2net_plan` has started its worker processes, or the three after `her2net_train` has begun its epochs. A child that is
left after the command ended counts.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
from kill_test import make_cohort, make_paths

from her2net.plan import rules

N_WORKERS, LIMIT_S, START_S = 2, 2.0, 300.0
EPOCHS = 100_000  # no training ends by itself


def start(root: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    paths = make_paths(root)
    roots = {f"her2net_{name}": str(getattr(paths.roots, name)) for name in ("raw", "preprocessed", "results")}
    code = f"import sys; from her2net.cli.{words[0]} import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words[1:], "--quiet"]
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background is deaf to Ctrl-C
    with (root / "log.txt").open("wb") as log:
        return subprocess.Popen(command, env={**os.environ, **roots}, start_new_session=True, stdout=log, stderr=log, preexec_fn=hear)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], root: Path) -> None:
    """Wait for a moment of a running command.

    Raises:
        SystemExit: the command ended, or did not get there in time.
    """
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"the command did not get there:\n{(root / 'log.txt').read_text()}")
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[bytes]) -> tuple[float, int, int, int]:
    """Interrupt a command; return seconds to the end of its last process, how many it had, how many are left, exit code."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    code, left = None, family
    while left and time.monotonic() - began < 10 * LIMIT_S:
        code = process.poll()
        left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.005)
    seconds = time.monotonic() - began
    for orphan in left:
        orphan.kill()
    return seconds, len(family), len(left), process.wait() if code is None else code


def n_children(process: subprocess.Popen[bytes]) -> int:
    """Count the processes below a command."""
    return len(psutil.Process(process.pid).children(recursive=True))


def main() -> int:
    """Print one line per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng, late = random.Random(0), False
    rules.SCATTERING_UP_TO = 0  # a network that trains in epochs
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_cohort(root, modalities=("US",))
        machine = ("--machine", str(root / "machine.json"), "--splits", str(root / "folds.json"))
        ended: dict[str, list[tuple[float, int, int, int]]] = {"her2net_plan": [], "her2net_train": []}
        for _ in range(args.repeats):
            process = start(root, "plan", *machine, "--num-workers", str(N_WORKERS))
            wait_until(lambda p=process: n_children(p) >= N_WORKERS, process, root)
            time.sleep(rng.uniform(0, 2))
            ended["her2net_plan"].append(interrupt(process))
        prepare(root, machine)
        for _ in range(args.repeats):
            process = start(root, "train", "US", "0", "--restart", "--epochs", str(EPOCHS), "--device", "cpu")
            record = make_paths(root).fold("US", 0) / "run.json"
            record.unlink(missing_ok=True)
            wait_until(record.exists, process, root)
            time.sleep(rng.uniform(0, 3))
            ended["her2net_train"].append(interrupt(process))
    for name, rows in ended.items():
        seconds = [row[0] for row in rows]
        left, codes = sum(row[2] for row in rows), sorted({row[3] for row in rows})
        print(f"{name}: n={len(rows)}, {rows[0][1]} processes; ended within median {statistics.median(seconds):.2f} s, "
              f"longest {max(seconds):.2f} s; left: {left}; exit codes {codes}")  # fmt: skip
        late |= max(seconds) > LIMIT_S or left > 0
    return int(late)


def prepare(root: Path, machine: tuple[str, ...]) -> None:
    """Plan to the end."""
    process = start(root, "plan", *machine, "--num-workers", "1")
    if process.wait(START_S):
        raise SystemExit((root / "log.txt").read_text())


if __name__ == "__main__":
    sys.exit(main())
