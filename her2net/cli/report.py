"""`her2net_report`: one self-contained HTML file of everything that was done and found."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths
from her2net.errors import PlanError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_report`."""
    parser = make_parser("report", "Write one HTML file with the answer, the patients, the plan, every figure and the methods.")
    add_dataset_options(parser)
    parser.add_argument("--paper", action="store_true", help="add the comparison with Fan et al. 2025")
    parser.add_argument("--pseudonymise", action="store_true", help="write keyed hashes instead of case ids")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the report and print where it is."""
    from her2net import pipeline
    from her2net.project import load_project

    paths = resolve_paths(args)
    project = load_project(paths)
    if args.paper and project.plan.n_classes > 2:
        raise PlanError("--paper: Fan et al. 2025 tell two classes apart, to which three or more cannot be compared. Leave it out.")
    pipeline.report(project, paper=args.paper, pseudonymise=args.pseudonymise)
    if args.pseudonymise:
        print(f"key of the pseudonyms: {paths.pseudonym_key} (do not pass it on)")
    print(f"report: {paths.report}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_report`."""
    return execute(run, build_parser(), argv)
