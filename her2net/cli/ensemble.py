"""`her2net_ensemble [MODALITY ...]`: pool OOF predictions, predict imagesTs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, resolve_paths

if TYPE_CHECKING:
    from her2net.ensemble import EnsembleRecord
    from her2net.tabular.record import TableEnsemble


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_ensemble`."""
    parser = make_parser("ensemble", "Pool the out-of-fold predictions and predict imagesTs with all folds.")
    parser.add_argument("modalities", metavar="MODALITY", nargs="*", help="or tables such as RAD:US, CLIN; all if left out")
    add_dataset_options(parser)
    add_device_option(parser)
    parser.add_argument("--tta", action="store_true", help="average over the flips that training used")
    return parser


def run(args: argparse.Namespace) -> int:
    """Ensemble the modalities."""
    from her2net import pipeline
    from her2net.errors import PlanError
    from her2net.project import load_project

    project = load_project(resolve_paths(args))
    there = [*project.plan.modalities, *project.plan.tables]
    unknown = sorted(set(args.modalities) - set(there))
    if unknown:
        raise PlanError(f"no modality or table {', '.join(unknown)} in the plan. There are: {', '.join(there)}.")
    for name in args.modalities or there:
        record: EnsembleRecord | TableEnsemble
        if name in project.plan.tables:
            record = pipeline.ensemble_table(project, name, quiet=args.quiet)
        else:
            record = pipeline.ensemble(project, name, tta=args.tta, device=args.device, quiet=args.quiet)
        print(f"{name}: {record.n_oof} OOF and {record.n_test} test predictions in {project.paths.model(name)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_ensemble`."""
    return execute(run, build_parser(), argv)
