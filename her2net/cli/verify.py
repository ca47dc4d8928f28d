"""her2net_verify: check a raw dataset and list every problem, each with its file and remedy."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, add_worker_option, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = make_parser("verify", "Check a raw dataset and list every problem, each with its file and remedy.")
    parser.epilog = "Exit code 0: no error (there may be warnings). 2: at least one error."
    add_dataset_options(parser)
    add_worker_option(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Verify the dataset and print what was found; 2 if there is an error."""
    from her2net.errors import Her2netError
    from her2net.raw.scan import Scan
    from her2net.raw.verify import format_verification, verify_folder

    paths = resolve_paths(args)
    known: Scan | None = None
    if paths.scan.is_file():
        try:
            known = Scan.load(paths.scan)
        except Her2netError:
            known = None  # an old or damaged scan only saves time; everything is read again
    dataset, _, verification = verify_folder(paths.raw, args.num_workers, args.quiet or args.json, known)
    if args.json:
        print(verification.model_dump_json(indent=2))
        return 2 if verification.n_errors else 0
    print(paths.raw)
    if dataset is not None:
        modalities = ", ".join(dataset.spec.modalities)
        print(f"{len(dataset.train)} training and {len(dataset.test)} test cases; modalities {modalities}\n")
    print(format_verification(verification))
    return 2 if verification.n_errors else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return execute(run, build_parser(), argv)
