"""`her2net_evaluate`: metrics of a dataset's models, or of any prediction tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from her2net.cli.common import add_dataset_options, execute, make_parser, parse_fraction, resolve_paths

FITTED_RULES = ("sensitivity", "specificity", "cost")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_evaluate`."""
    parser = make_parser("evaluate", "Compute every metric with its interval, and compare the models.")
    add_dataset_options(parser)
    parser.add_argument("--predictions", type=Path, nargs="+", metavar="FILE",
                        help="evaluate these prediction tables instead of a dataset; needs -o")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="cases.csv with the labels, for tables without")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="with --predictions: where to write")
    parser.add_argument("--threshold", type=parse_rule, default=("youden", None), metavar="RULE",
                        help="youden, sensitivity=0.95, specificity=0.95, cost=5 (a missed positive costs 5 false "
                             "alarms), chosen on out-of-fold predictions; or a number (default: youden)")
    parser.add_argument("--prevalence", type=parse_fraction, metavar="SHARE",
                        help="give PPV and NPV at this share of positives too")
    parser.add_argument("--ordinal", action="store_true", help="three or more classes have an order: weighted kappa")
    return parser


def parse_rule(text: str) -> tuple[str, float | None]:
    """Parse `youden`, `sensitivity=0.95`, `specificity=0.95`, `cost=5` or a threshold into rule and parameter."""
    name, _, number = text.partition("=")
    if text == "youden":
        return "youden", None
    rule = name if name in FITTED_RULES else "given"
    try:
        value = float(number if rule != "given" else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not youden, sensitivity=X, specificity=X, cost=X or a number"
        ) from None
    if not (0 < value < float("inf") if rule == "cost" else 0 <= value <= 1):
        raise argparse.ArgumentTypeError(f"{text}: out of range; cost is positive, all others are between 0 and 1")
    return rule, value


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a summary."""
    from her2net.errors import PredictionTableError
    from her2net.evaluate.evaluation import Options, evaluate_files, format_summary, refuse_without_effect
    from her2net.evaluate.labels import read_labels

    rule, parameter = args.threshold
    options = Options(rule=rule, parameter=parameter, prevalence=args.prevalence, ordinal=args.ordinal)
    if args.predictions is None:
        from her2net import pipeline
        from her2net.project import load_project

        if args.labels or args.output:
            raise PredictionTableError("--labels and -o go with --predictions; a dataset has its own labels and folder.")
        paths = resolve_paths(args)
        project = load_project(paths)
        refuse_without_effect({project.plan.n_classes}, options)
        pipeline.evaluate(project, options)
        folder = paths.evaluation
    elif args.dataset is not None or args.plan is not None:
        surplus = "-d" if args.dataset is not None else "-p"
        raise PredictionTableError(f"--predictions evaluates tables instead of a dataset and its plan. Leave {surplus} out.")
    elif args.output is None:
        raise PredictionTableError("--predictions needs -o FOLDER, where metrics.csv is to be written.")
    else:
        folder = args.output
        evaluate_files(args.predictions, read_labels(args.labels) if args.labels else None, folder, options=options)
    print(format_summary(folder))
    print(f"tables: {folder}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_evaluate`."""
    return execute(run, build_parser(), argv)
