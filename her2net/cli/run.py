"""`her2net_run`: everything, in order; finished steps are not repeated."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths
from her2net.cli.plan import add_plan_options
from her2net.cli.train import add_train_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_run`."""
    parser = make_parser("run", "Plan, train, ensemble, fuse, evaluate and report a dataset. Finished steps are not repeated.")
    add_dataset_options(parser)
    add_plan_options(parser)
    add_train_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the pipeline and print the results."""
    from her2net import pipeline
    from her2net.evaluate.evaluation import format_summary
    from her2net.plan.stage import PlanOptions
    from her2net.train.fold import TrainOptions

    paths = resolve_paths(args)
    pipeline.run(
        paths,
        PlanOptions(preset=args.preset, budget_h=args.budget, device=args.device, quiet=args.quiet),
        TrainOptions(device=args.device, epochs=args.epochs, quiet=args.quiet),
    )
    print(format_summary(paths.evaluation))
    print(f"results: {paths.results}")
    print(f"report: {paths.report}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_run`."""
    return execute(run, build_parser(), argv)
