"""`her2net_predict`: the whole chain on new images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, resolve_paths

if TYPE_CHECKING:
    from her2net.input_check import Finding
    from her2net.paths import DatasetPaths
    from her2net.predict import Predictor
    from her2net.predictions import Predictions

MAX_SHOWN = 10


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_predict`."""
    parser = make_parser("predict", "Predict new images with all folds, the fusion and the thresholds of a trained model.")
    add_dataset_options(parser)
    add_device_option(parser)
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="a model archive; nothing else is needed then, but -i and -o")
    parser.add_argument("-i", "--input", type=Path, metavar="FOLDER",
                        help="holds MODALITY/<case>... and masks/MODALITY/<case>... (default: the dataset's test cases)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: predictions/ in the results")
    parser.add_argument("--tta", action="store_true", help="average over the flips that training used")
    parser.add_argument("--pseudonymise", action="store_true", help="write keyed hashes instead of case and patient ids")
    return parser


def run(args: argparse.Namespace) -> int:
    """Predict and write one table per model, the decisions and the warnings."""
    import warnings
    from dataclasses import replace

    from her2net.errors import ArchiveError, PlanError, describe
    from her2net.input_check import UnlikeTrainingWarning
    from her2net.paths import DatasetPaths, find_roots
    from her2net.predict import Predictor, write_tables
    from her2net.pseudonyms import load_key, pseudonym, pseudonymise_table
    from her2net.raw.rows import CASES

    surplus = args.dataset is not None or args.plan is not None
    if args.model is not None and (args.input is None or args.output is None or surplus):
        raise ArchiveError("--model FILE needs -i FOLDER and -o FOLDER, and takes no -d or -p: the file is all there is of the model.")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise PlanError(describe("is not a folder", where=f"-o {args.output}", remedy="Name another, or move that file away."))
    if args.model is None:
        paths = resolve_paths(args, trained=True)
        predictor = Predictor(paths, device=args.device)
    else:
        predictor = Predictor(args.model, device=args.device)
        paths = DatasetPaths(find_roots(), predictor.plan.dataset, predictor.plan.name)  # where a key would lie
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlikeTrainingWarning)  # printed below, with the place of the table
        tables = _predict(args, predictor, paths)
    if args.pseudonymise:
        key = load_key(paths.pseudonym_key)
        tables = {name: pseudonymise_table(table, key) for name, table in tables.items()}
        predictor.findings = [f if f.case_id == CASES else replace(f, case_id=pseudonym(f.case_id, key)) for f in predictor.findings]
        print(f"key of the pseudonyms: {paths.pseudonym_key} (do not pass it on)")
    folder = args.output or paths.predictions
    for path in write_tables(folder, predictor, tables):
        print(path)
    _warn(predictor.findings, folder)
    return 0


def _predict(args: argparse.Namespace, predictor: Predictor, paths: DatasetPaths) -> dict[str, Predictions]:
    """Predict the folder of new images, or the dataset's own test cases."""
    from her2net import pipeline
    from her2net.errors import MissingArtefactError
    from her2net.project import load_project

    if args.input is not None:
        return predictor.predict(args.input, tta=args.tta, quiet=args.quiet)
    if not paths.raw.is_dir():
        raise MissingArtefactError(f"{paths.imported}: an imported model has no test cases. Name a folder of new images with -i.")
    project = load_project(paths)
    if not project.dataset.test:
        raise MissingArtefactError(f"{paths.raw}: has no test cases. Name a folder of new images with -i.")
    return pipeline.predict_test(project, predictor, tta=args.tta, quiet=args.quiet)


def _warn(findings: Sequence[Finding], folder: Path) -> None:
    """Say on standard error what is unusual; the table has all of it."""
    from her2net.predict import summarise_findings

    if findings:
        print(f"Warning: {summarise_findings(findings)}, listed in {folder / 'warnings.csv'}", file=sys.stderr)
        for finding in findings[:MAX_SHOWN]:
            print(f"  - {finding}", file=sys.stderr)
        if len(findings) > MAX_SHOWN:
            print(f"  ... and {len(findings) - MAX_SHOWN} more", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_predict`."""
    return execute(run, build_parser(), argv)
