"""`her2net_explain`: where the networks looked, case by case, and whether that can be believed."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_explain`."""
    parser = make_parser("explain", "Show which places of each image speak for a class, and measure it.")
    parser.add_argument("modalities", metavar="MODALITY", nargs="*", help="as named in dataset.json (default: all)")
    add_dataset_options(parser)
    add_device_option(parser)
    parser.add_argument("--method", choices=("gradcam", "gradcam++", "occlusion"), default="gradcam",
                        help="how maps are made; occlusion is the slowest")
    parser.add_argument("--class", dest="target", metavar="CLASS", default="predicted",
                        help="name or number of a class, or predicted: the most probable one of each case")
    parser.add_argument("--cohort", choices=("oof", "test"), default="oof",
                        help="training cases, each by the fold that never saw the patient, or test cases by all folds")
    parser.add_argument("--fold", type=int, help="this fold alone: its held-out cases, or all test cases")
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=(), help="these cases alone")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--features", action="store_true", help="write the deep features of each case instead of maps")
    instead.add_argument("--contours", action="store_true",
                         help="predict with eroded, dilated and shifted masks instead: how many decisions flip")
    return parser


def run(args: argparse.Namespace) -> int:
    """Explain, and print what the figures say."""
    from her2net import pipeline
    from her2net.explain.contour_record import describe_contours
    from her2net.explain.subjects import ExplainOptions, choose_subjects, find_class
    from her2net.project import load_project

    project = load_project(resolve_paths(args))
    options = ExplainOptions(
        method=args.method, target=find_class(project.plan, args.target), cohort=args.cohort, fold=args.fold,
        case_ids=tuple(args.cases), device=args.device, quiet=args.quiet,
    )  # fmt: skip
    names = args.modalities or list(project.plan.modalities)
    for name in names:  # before anything is written
        choose_subjects(project, name, options)
    for name in names:
        if args.features:
            print(pipeline.features(project, name, options))
        elif args.contours:
            print(describe_contours(pipeline.contours(project, name, options)))
        else:
            _print_summary(project, pipeline.explain(project, name, options))
    return 0


def _print_summary(project, record) -> None:  # type: ignore[no-untyped-def]
    from her2net.evaluate.estimate import fixed
    from her2net.explain.measure import METRICS
    from her2net.explain.record import set_name

    where = f", layer {record.layer}" if record.layer else ""
    grid = " x ".join(map(str, record.grid))
    print(f"{record.modality}: {len(record.cases)} cases, {record.method_name}, {record.network}{where}, map of {grid} places")
    for name, mean in record.summary.items():
        if mean.value is not None:
            limits = "" if mean.ci_low is None else f" ({fixed(mean.ci_low)} to {fixed(mean.ci_high)})"
            print(f"  {name:<20} {fixed(mean.value):>6}{limits}, n = {mean.n}: {METRICS[name]}")
    folder = project.paths.explain(record.modality)
    print(f"pictures: {folder / set_name(record.cohort, record.method, record.target, record.fold)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_explain`."""
    return execute(run, build_parser(), argv)
