"""`her2net_predict`: the whole chain on new images."""

from __future__ import annotations

import argparse
from pathlib import Path

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_predict`."""
    parser = make_parser("predict", "Predict new images with all folds, the fusion and the thresholds of a dataset.")
    add_dataset_options(parser)
    add_device_option(parser)
    parser.add_argument("-i", "--input", type=Path, metavar="FOLDER",
                        help="holds MODALITY/<case>... and masks/MODALITY/<case>... (default: the dataset's test cases)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: predictions/ in the results")
    parser.add_argument("--tta", action="store_true", help="average over the flips that training used")
    return parser


def run(args: argparse.Namespace) -> int:
    """Predict and write one table per model, and the decisions."""
    from her2net import pipeline
    from her2net.errors import MissingArtefactError
    from her2net.predict import Predictor, write_tables
    from her2net.project import load_project

    paths = resolve_paths(args)
    predictor = Predictor(paths, device=args.device)
    if args.input is not None:
        tables = predictor.predict(args.input, tta=args.tta, quiet=args.quiet)
    else:
        project = load_project(paths)
        if not project.dataset.test:
            raise MissingArtefactError(f"{paths.raw}: has no test cases. Name a folder of new images with -i.")
        tables = pipeline.predict_test(project, predictor, tta=args.tta, quiet=args.quiet)
    for path in write_tables(args.output or paths.predictions, predictor, tables):
        print(path)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_predict`."""
    return execute(run, build_parser(), argv)
