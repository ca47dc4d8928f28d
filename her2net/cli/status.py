"""`her2net_status`: what is done, stale, running or missing."""

from __future__ import annotations

import argparse
import json

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_status`."""
    parser = make_parser("status", "Say what is done, stale, running or missing for a dataset, and what to type next.")
    add_dataset_options(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--timing", action="store_true", help="where the time of training went, phase by phase")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the state of every stage."""
    from her2net.status import report_status

    if args.timing:
        return _tell_timing(args)
    states = report_status(resolve_paths(args))
    if args.json:
        print(json.dumps([state.to_dict() for state in states], indent=2))
        return 0
    width = max(len(state.stage) for state in states)
    for state in states:
        print(f"{state.stage:<{width}}  {state.state:<11}  {state.why}".rstrip())
    todo = next((state for state in states if state.state not in ("done", "running")), None)
    print(f"next: {todo.command}" if todo else "everything is done")
    return 0


def _tell_timing(args: argparse.Namespace) -> int:
    """Print seconds per epoch of every fold, and the share of each phase."""
    from her2net.status import report_timing

    timings = report_timing(resolve_paths(args))
    if args.json:
        print(json.dumps([timing.to_dict() for timing in timings], indent=2))
        return 0
    phases = list(dict.fromkeys(phase for timing in timings for phase in timing.seconds))
    print("  ".join([f"{'fold':<12}", "epochs", "s/epoch", *(f"{phase:>10}" for phase in phases)]))
    for timing in timings:
        total = sum(timing.seconds.values())
        shares = (timing.seconds.get(phase, 0.0) / total if total else 0.0 for phase in phases)
        print("  ".join([f"{timing.modality + ' ' + timing.fold:<12}", f"{timing.epochs:>6}",
                         f"{total / max(timing.epochs, 1):>7.2f}", *(f"{share:>10.1%}" for share in shares)]))  # fmt: skip
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_status`."""
    return execute(run, build_parser(), argv)
