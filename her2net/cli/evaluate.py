"""`her2net_evaluate`: metrics of a dataset's models, or of any prediction tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_evaluate`."""
    parser = make_parser("evaluate", "Compute every metric with its interval, and compare the models.")
    add_dataset_options(parser)
    parser.add_argument("--predictions", type=Path, nargs="+", metavar="FILE",
                        help="evaluate these prediction tables instead of a dataset; needs -o")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="cases.csv with the labels, for tables without")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="with --predictions: where to write")
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a summary."""
    from her2net.errors import PredictionTableError
    from her2net.evaluate.evaluation import evaluate_files, format_summary

    if args.predictions is None:
        from her2net import pipeline
        from her2net.project import load_project

        paths = resolve_paths(args)
        pipeline.evaluate(load_project(paths))
        folder = paths.evaluation
    elif args.output is None:
        raise PredictionTableError("--predictions needs -o FOLDER, where metrics.csv is to be written.")
    else:
        folder = args.output
        evaluate_files(args.predictions, _read_labels(args.labels) if args.labels else None, folder)
    print(format_summary(folder))
    print(f"tables: {folder}")
    return 0


def _read_labels(path: Path) -> dict[str, int]:
    """Read case_id and a numeric label from a table."""
    from her2net.errors import PredictionTableError, join_problems
    from her2net.raw.problems import errors_of
    from her2net.raw.table import read_table

    table, problems = read_table(path, where=path.name, required=("case_id", "label"))
    wrong = [f"{problem.where}: {problem.message}" for problem in errors_of(problems)]
    if table is None or wrong:
        raise PredictionTableError(join_problems(f"{path}: not a table of labels.", wrong))
    labels = {}
    for row in table.rows:
        text = row.cells["label"]
        if text:
            try:
                labels[row.cells["case_id"]] = int(float(text))
            except ValueError:
                wrong.append(f"row {row.number}: label {text!r} is not a number")
    if wrong:
        raise PredictionTableError(join_problems(f"{path}: labels must be class numbers here.", wrong))
    return labels


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_evaluate`."""
    return execute(run, build_parser(), argv)
