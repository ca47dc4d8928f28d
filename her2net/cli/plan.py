"""`her2net_plan`: verify → fingerprint → plan → splits → cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from her2net.cli.common import (
    add_dataset_options,
    add_device_option,
    add_worker_option,
    execute,
    make_parser,
    parse_fraction,
    parse_hours,
    resolve_paths,
)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what kind of plan is made."""
    parser.add_argument("--preset", choices=("auto", "paper"),
                        help="auto: decided from the data and this machine; paper: Fan et al. 2025 "
                        "(default: that of the plan on disk, else auto)")
    parser.add_argument("--budget", type=parse_hours, metavar="TIME",
                        help="time for training all folds of all modalities, e.g. 2h or 30m (auto on a CPU: 2h)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_plan`."""
    parser = make_parser("plan", "Check a raw dataset, decide everything from it, and preprocess it.")
    add_dataset_options(parser)
    add_plan_options(parser)
    add_device_option(parser)
    add_worker_option(parser)
    parser.add_argument("--splits", metavar="FILE", help="your own folds (JSON), or the word leave-one-site-out")
    parser.add_argument("--holdout", type=parse_fraction, metavar="FRACTION",
                        help="seal this share of the patients as a test set, for a dataset without imagesTs")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="reuse the measurement in this plan or machine file")
    parser.add_argument("--no-preprocess", action="store_true", help="plan only")
    parser.add_argument("--explain", action="store_true", help="print every decision and its reason")
    parser.add_argument("--preview", type=Path, metavar="FILE.png", help="draw 12 cached cases per modality")
    return parser


def run(args: argparse.Namespace) -> int:
    """Plan the dataset."""
    from her2net import pipeline
    from her2net.fuse.choose import describe_selection
    from her2net.fuse.stage import FUSION, FusionRecord
    from her2net.plan.planner import explain
    from her2net.plan.preview import draw_preview
    from her2net.plan.stage import PlanOptions, list_edits

    paths = resolve_paths(args)
    plan, remarks = pipeline.plan(paths, PlanOptions(
        preset=args.preset, budget_h=args.budget, splits=args.splits, holdout=args.holdout, device=args.device,
        machine=args.machine, preprocess=not args.no_preprocess, n_workers=args.num_workers, quiet=args.quiet,
    ))  # fmt: skip
    print("\n".join([*remarks, *list_edits(plan)]))
    if args.explain:
        print(explain(plan))
        fusion = paths.model(FUSION) / "fusion.json"
        selection = FusionRecord.load(fusion).selection if plan.fusion.method == "auto" and fusion.exists() else None
        for line in describe_selection(selection) if selection else []:
            print(line)
    if args.preview:
        draw_preview(args.preview, paths, plan)
        print(f"preview: {args.preview}")
    print(f"plan: {paths.plan}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_plan`."""
    return execute(run, build_parser(), argv)
