"""`her2net_fuse`: fusion of the modalities."""

from __future__ import annotations

import argparse

from her2net.cli.common import add_dataset_options, execute, make_parser, resolve_paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_fuse`."""
    parser = make_parser("fuse", "Fuse the modalities by what the plan says, fitted on their out-of-fold predictions.")
    add_dataset_options(parser)
    parser.add_argument("--fit-on", choices=("oof", "test"), default="oof",
                        help="test: as the paper did; its test figures are then marked apparent performance")
    parser.add_argument("--covariates", action="store_true", help="fuse the clinical covariates (CLIN) as well")
    return parser


def run(args: argparse.Namespace) -> int:
    """Fuse and print the odds ratios."""
    from her2net import pipeline
    from her2net.errors import PlanError
    from her2net.fuse.choose import METHOD_NAMES, describe_left_out, describe_selection
    from her2net.fuse.sources import fusion_sources
    from her2net.plan.table_schema import CLINICAL
    from her2net.project import load_project

    project = load_project(resolve_paths(args))
    if args.covariates and CLINICAL not in project.plan.tables:
        why = project.plan.unplanned_tables.get(CLINICAL)
        remedy = f"It was {why}. Leave --covariates out." if why else "Declare covariates in dataset.json and run her2net_plan."
        raise PlanError(f"--covariates: plan {project.plan.name!r} has no table {CLINICAL}. {remedy}")
    sources = fusion_sources(project.plan, covariates=args.covariates)
    if len(sources) < 2:
        raise PlanError(f"plan {project.plan.name!r} has one model to fuse, {', '.join(sources)}: nothing to fuse.")
    record = pipeline.fuse(project, fit_on=args.fit_on, covariates=args.covariates)
    print(f"Method: {METHOD_NAMES[record.method]}")
    for line in describe_selection(record.selection) if record.selection else []:
        print(line)
    for model in record.models:
        print(f"{' + '.join(model.modalities)} ({model.n_cases} cases)")
        for c in model.coefficients:
            if c.value == 0:
                print(f"    {c.modality}, {c.class_name}: left out, because the fit would have turned its predictions around")
                continue
            limits = "" if c.ci_low is None else f" [{c.ci_low:.2f}, {c.ci_high:.2f}]"
            print(f"    {c.modality}, {c.class_name}: odds ratio {c.odds_ratio:.2f} per unit of logit{limits}, "
                  f"{c.odds_ratio_per_sd:.2f} per SD")
    for line in describe_left_out(record.left_out):
        print(line)
    if record.remark:
        print(f"Warning: {record.remark}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_fuse`."""
    return execute(run, build_parser(), argv)
