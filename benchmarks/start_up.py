"""Start-up: `--help` of every command and `her2net_status` of a finished run, against nnU-Net's commands.

    python benchmarks/start_up.py [--rounds 5]

Each call is a process of its own, as a user types it; files are in the page cache. nnU-Net has no `status`; beside it
stands the least that its commands take, their `--help`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cohorts import make_trained_run
from harness import Row, compare, compare_numbers, finish, refuse, take_turns

HELP_S, STATUS_S = 0.2, 1.0


def call(command: list[str], roots: dict[str, str]) -> str:
    """Run a command; return what it prints. Compiled modules are kept, as they are where a package is installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | roots
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not done.stdout:
        refuse(f"{command} ended with {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


def run(rounds: int) -> list[Row]:
    """Time the commands in turns."""
    with tempfile.TemporaryDirectory() as name:
        paths = make_trained_run(Path(name), n_cases=40)
        roots = {f"her2net_{k}": str(getattr(paths.roots, k)) for k in ("raw", "preprocessed", "results")}
        python = [sys.executable, "-c"]
        ours = {c: [*python, f"from her2net.cli.{c} import main; main(['--help'])"] for c in ("plan", "train", "predict")}
        theirs = {c: [*python, f"import sys; sys.argv = ['x', '--help']; from {module} import {entry}; {entry}()"]
                  for c, module, entry in (
                      ("plan", "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "plan_and_preprocess_entry"),
                      ("train", "nnunetv2.run.run_training", "run_training_entry"),
                      ("predict", "nnunetv2.inference.predict_from_raw_data", "predict_entry_point"))}  # fmt: skip
        status = [*python, "from her2net.cli.status import main; raise SystemExit(main([]))"]
        if "ensemble US" not in call(status, roots):
            refuse("her2net_status does not tell every stage")
        variants = {f"ours {c}": lambda c=c: call(ours[c], roots) for c in ours}
        variants |= {f"theirs {c}": lambda c=c: call(theirs[c], roots) for c in theirs}
        cost = take_turns(variants | {"status": lambda: call(status, roots)}, rounds)
    rows = [compare(f"{c} --help: nnU-Net's", cost[f"ours {c}"], cost[f"theirs {c}"], target=10) for c in ours]
    slowest = max(r.ours for r in rows)
    status_s = compare("her2net_status: nnU-Net's train --help", cost["status"], cost["theirs train"], target=2)
    return [
        *rows,
        compare_numbers("slowest --help: limit", slowest, HELP_S, target=1, unit="s", n_rounds=rounds),
        status_s,
        compare_numbers("her2net_status: limit", status_s.ours, STATUS_S, target=1, unit="s", n_rounds=rounds),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    raise SystemExit(finish(run(parser.parse_args().rounds)))
