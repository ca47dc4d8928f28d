"""`her2net_train MODALITY FOLD`: train folds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from her2net.cli.common import add_dataset_options, add_device_option, execute, make_parser, positive_int, resolve_paths

if TYPE_CHECKING:
    from her2net.project import Project

ALL_FOLDS = "all-folds"


def parse_fold(text: str) -> int | str:
    """Parse a fold number, `all` (train on every case) or `all-folds`."""
    if text in ("all", ALL_FOLDS):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a fold number, 'all' or '{ALL_FOLDS}'")
    return int(text)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that training shares with `her2net_run`."""
    add_device_option(parser)
    parser.add_argument("--epochs", type=positive_int, help="instead of the plan's; more than before extends a finished run")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `her2net_train`."""
    parser = make_parser("train", "Train folds of one modality or table. The same command continues an interrupted run.")
    parser.add_argument("modality", metavar="MODALITY", help="of dataset.json, e.g. US; or a table of the plan: RAD:US, CLIN")
    parser.add_argument("folds", metavar="FOLD", nargs="+", type=parse_fold,
                        help=f"numbers, {ALL_FOLDS}, or all (one model on every training case)")
    add_dataset_options(parser)
    add_train_options(parser)
    parser.add_argument("--seed", type=int, help="instead of the plan's")
    parser.add_argument("--pretrained", metavar="auto|none|FILE", help="instead of the plan's initialisation")
    parser.add_argument("--restart", action="store_true", help="discard what the fold has and start over")
    return parser


def run(args: argparse.Namespace) -> int:
    """Train the folds; on a graphics card several at once."""
    from her2net import pipeline
    from her2net.project import load_project
    from her2net.train.fold import TrainOptions

    project = load_project(resolve_paths(args))
    named = [range(project.plan.splits.n_folds) if fold == ALL_FOLDS else [fold] for fold in args.folds]
    folds = list(dict.fromkeys(fold for group in named for fold in group))
    options = TrainOptions(device=args.device, epochs=args.epochs, seed=args.seed, pretrained=args.pretrained,
                           restart=args.restart, quiet=args.quiet)
    if args.modality in project.plan.tables:
        return _train_table(args, project, folds)
    for job, record in pipeline.train_folds(project, [(args.modality, fold, options) for fold in folds]):
        seconds = sum(record.duration_s.values())
        print(f"{job}: {record.epochs_done} epochs, {seconds:.0f} s, {record.checkpoint}; "
              f"{record.initialisation}; {project.paths.fold(args.modality, job.fold)}")
    return 0


def _train_table(args: argparse.Namespace, project: Project, folds: list[int | str]) -> int:
    from her2net import pipeline
    from her2net.errors import PlanError

    unfit = [o for o in ("epochs", "seed", "pretrained") if getattr(args, o) is not None]
    if unfit:
        raise PlanError(f"--{', --'.join(unfit)}: {args.modality} is a table model, which has none. Leave it out.")
    for fold in folds:
        record = pipeline.train_table(project, args.modality, fold, restart=args.restart, quiet=args.quiet)
        model, settings = record.model, ", ".join(f"{k} {v:g}" for k, v in record.model.chosen.settings.items())
        print(f"{args.modality} fold {fold}: {model.n_cases} cases, {len(model.encoding.terms)} terms, "
              f"{model.chosen.learner.replace('_', ' ')} ({settings}), inner log loss {model.chosen.log_loss:.3f}; "
              f"{project.paths.fold(args.modality, fold)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of `her2net_train`."""
    return execute(run, build_parser(), argv)
