"""`her2net_export`: a trained model as one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_export`."""
    parser = make_parser("export", "Write a trained and evaluated model into one file, without patients and without pickle.")
    add_dataset_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="ends in .her2net, or is a folder (default: <dataset>_<plan>.her2net right here)")
    parser.add_argument("--licence", metavar="ID|FILE", help="an SPDX identifier such as CC-BY-4.0, or a text file")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the archive and say what the receiver needs to know."""
    from shlex import quote

    from her2net import pipeline
    from her2net.archive.licence import NONE_CHOSEN, read_licence

    written = pipeline.export(resolve_paths(args), args.output, read_licence(args.licence))
    print(f"archive: {written.path} ({written.n_bytes / 1e6:.1f} MB)")
    print(f"sha256:  {written.sha256}")
    print(f"licence: {written.licence.identifier or f'{NONE_CHOSEN} Choose one with --licence.'}")
    print(f"next:    her2net_predict --model {quote(str(written.path))} -i new_images -o predictions")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_export`."""
    return execute(run, build_parser(), argv)
