"""`her2net_selftest`: find shortcuts and leaks."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, positive_int, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_selftest`."""
    parser = make_parser("selftest", "Train quickly on the outline, on the surroundings, on file properties and on "
                         "permuted labels, to find shortcuts and leaks. Exit code 1 if there is a leak.")  # fmt: skip
    add_dataset_options(parser)
    add_device_option(parser)
    parser.add_argument("--permutations", type=positive_int, default=3, metavar="N", help="trainings on permuted labels")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the probes and print what they say."""
    from her2net import pipeline
    from her2net.project import load_project
    from her2net.selftest.record import format_table

    project = load_project(resolve_paths(args))
    record = pipeline.selftest(project, n_permutations=args.permutations, device=args.device, quiet=args.quiet)
    print(format_table(record))
    print(f"tables: {project.paths.selftest}")
    return 1 if record.leak else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_selftest`."""
    return execute(run, build_parser(), argv)
