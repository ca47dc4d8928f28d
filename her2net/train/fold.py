"""The training stage: plan, splits and cache → one trained fold with its OOF predictions.

A run that was killed continues where its last checkpoint was, and ends with the same
bits as one that was not (on the CPU). A finished run is not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from her2net.artefact import changed_inputs, digest_json, sweep_temporaries
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.locks import Lock, hold
from her2net.networks.pretrained import digest_source
from her2net.paths import DatasetPaths
from her2net.plan import rules
from her2net.plan.schema import ModalityPlan, Plan, TrainingPlan
from her2net.preprocess.cache import method_digest
from her2net.train.batchgenerators_engine import require_batchgenerators
from her2net.train.checkpoint import FINAL, find_damage
from her2net.train.data import FoldCases, PartLoader, load_part
from her2net.train.record import RunRecord, describe_environment

TRAINING_VERSION = 3  # raise when the same plan and data give other weights


@dataclass(frozen=True)
class TrainOptions:
    """Run-time choices of `her2net_train`; `None` keeps the plan's value."""

    device: str = "cpu"
    epochs: int | None = None
    seed: int | None = None
    pretrained: str | None = None
    restart: bool = False
    quiet: bool = False


def effective_training(plan: ModalityPlan, options: TrainOptions, record: RunRecord | None = None) -> TrainingPlan:
    """Return the plan's training section with what the command line changed.

    Args:
        record: of the fold as it is; an unfinished run that was given `--epochs` goes on to that number.
    """
    epochs = options.epochs
    if epochs is None and record is not None and record.status == "running" and record.epochs_from == "command line":
        epochs = record.training.epochs
    changes: dict[str, Any] = {"epochs": epochs, "seed": options.seed}
    if options.pretrained is not None:
        changes["initialisation"] = "scratch" if options.pretrained == "none" else "pretrained"
    return plan.training.model_copy(update={k: v for k, v in changes.items() if v is not None})


def recorded_training(plan: ModalityPlan, record: RunRecord, options: TrainOptions | None = None) -> TrainingPlan:
    """Return the plan's training section with what a run was given on the command line, or with `options` in its place."""
    if options is None:
        epochs = record.training.epochs if record.epochs_from == "command line" else None
        options = TrainOptions(epochs=epochs, seed=record.training.seed)
    training = effective_training(plan, options, record)
    if options.pretrained is None:
        training = training.model_copy(update={"initialisation": record.training.initialisation})
    return training


def plan_inputs(training: TrainingPlan, plan: ModalityPlan) -> dict[str, str]:
    """Digests of how a fold is trained; the number of epochs stands apart, so that a run can be extended."""
    exclude = {"epochs"} | ({"layer_decay"} if training.layer_decay == 1 else set())  # as all were trained before there was one
    settings = training.model_dump(mode="json", exclude=exclude) | {"augmentation": training.augmentation.used}
    return {
        "training_version": str(TRAINING_VERSION),
        "training_plan": digest_json([settings, plan.preprocessing.input_vox, plan.inference.tta]),
    }


def fold_inputs(training: TrainingPlan, plan: ModalityPlan, data_digests: dict[str, str], source: str) -> dict[str, str]:
    """Digests of what a fold is made from.

    Args:
        data_digests: `training` and `held_out` part -> digest.
        source: digest of what `--pretrained` names, see `digest_source`.
    """
    return {
        **plan_inputs(training, plan),
        "training_cases": data_digests["training"],
        "held_out_cases": data_digests["held_out"],
        "weights": source,
    }


def train_fold(
    paths: DatasetPaths, plan: Plan, modality: str, fold: int | str, cases: FoldCases, options: TrainOptions,
    load: PartLoader = load_part,
) -> RunRecord:  # fmt: skip
    """Train one fold and predict its held-out cases.

    Args:
        cases: of this modality and fold, see `select_fold`.
        load: reads the arrays of some cases; the self-test shows the network something else than the cache.

    Raises:
        LockError: another process trains this fold.
        StaleArtefactError: the folder holds a run made from other inputs, and no `--restart` was given.
        MemoryLimitError: it does not fit into the free memory.
        TrainingError: the loss is not finite.
        PlanError: the weights given do not fit.
    """
    with hold(paths.fold(modality, fold), f"{modality} fold {fold}", wait=False) as lock:
        return _train_locked(paths, plan, modality, fold, cases, options, load, lock)


def _train_locked(
    paths: DatasetPaths, plan: Plan, modality: str, fold: int | str, cases: FoldCases, options: TrainOptions,
    load: PartLoader, lock: Lock,
) -> RunRecord:  # fmt: skip
    from her2net.train.footprint import refuse_what_cannot_fit  # torch takes seconds; who asks for a state pays none
    from her2net.train.run import Task, TrainingRun

    section, folder = plan.modalities[modality], paths.fold(modality, fold)
    sweep_temporaries(folder)
    record = None if options.restart else read_record(folder)
    training = effective_training(section, options, record)
    ended = record is not None and is_complete(folder, record) and record.epochs_done >= training.epochs
    if not ended:
        if training.augmentation.engine == "batchgenerators":
            require_batchgenerators()
        n_cases = (len(cases.training), len(cases.held_out))
        refuse_what_cannot_fit(f"{modality} fold {fold}", section, training, n_cases, options.device)
    parts = {
        "training": load(paths, modality, section, cases.training),
        "held_out": load(paths, modality, section, cases.held_out),
    }
    made_from = fold_inputs(training, section, {k: p.digest for k, p in parts.items()}, digest_source(options.pretrained))
    if record is not None:
        _refuse_other_inputs(folder, record, made_from)
        if ended and not find_damage(folder / FINAL):
            return record
        _tell_what_differs(record, training, options.device)
    training = training.model_copy(update={"loss_weights": weigh_classes(plan, modality, parts["training"].labels)})
    from_command_line = options.epochs is not None or training.epochs != section.training.epochs
    return TrainingRun(Task(
        plan=plan, modality=modality, fold=fold, training=training, made_from=made_from, parts=parts, folder=folder,
        device=options.device, pretrained=options.pretrained, quiet=options.quiet, check=lock.check, restart=options.restart,
        epochs_from="command line" if from_command_line else "plan",
    )).train()  # fmt: skip


def weigh_classes(plan: Plan, modality: str, labels: np.ndarray) -> list[float]:
    """Return the weight of each class in the loss of one fold.

    The rule that planned them is applied to the training cases of the fold, so that no held-out case is counted. What the plan
    was edited to, or what another rule chose, is taken as it stands.

    Args:
        labels: (n,) class numbers of the fold's training cases.
    """
    planned, path = plan.modalities[modality].training.loss_weights, f"modalities.{modality}.training.loss_weights"
    by_rule = any(d.path == path and d.rule == "choose_loss_weights" and d.value == planned for d in plan.decisions)
    return rules.choose_loss_weights(np.bincount(labels, minlength=len(planned)).tolist()).value if by_rule else planned


def read_record(folder: Path) -> RunRecord | None:
    """Return the run record of a fold folder, `None` if there is none."""
    try:
        return RunRecord.load(folder / "run.json")
    except MissingArtefactError:
        return None


def is_complete(folder: Path, record: RunRecord) -> bool:
    """Whether a fold has finished, and what it made is still there."""
    files = [FINAL, "oof.csv"] if record.n_held_out_cases else [FINAL]
    return record.status == "finished" and all((folder / name).is_file() for name in files)


def refuse_other_plan(paths: DatasetPaths, plan: ModalityPlan, modality: str, folds: Sequence[int | str]) -> None:
    """Refuse networks that were trained, or whose images were prepared, in another way than the plan now says.

    Images, labels and folds are not compared: what was learned from the former ones predicts as it always did.

    Raises:
        StaleArtefactError: names the folds, what changed, and the command.
    """
    records = {fold: record for fold in folds if (record := read_record(paths.fold(modality, fold))) is not None}
    changed = {fold: names for fold, record in records.items() if (names := _explain_other_plan(plan, record))}
    if changed:
        what = ", ".join(sorted({name for names in changed.values() for name in names}))
        command = f"her2net_train {modality} {' '.join(map(str, changed))} --restart {paths.options}"
        raise StaleArtefactError(
            f"{paths.model(modality)}: folds {list(changed)} were trained otherwise than {paths.plan} says now "
            f"(changed since: {what}). Run {command}, or undo the change."
        )


def _explain_other_plan(plan: ModalityPlan, record: RunRecord) -> list[str]:
    """List what of the plan, and of how images are prepared, is no longer as it was when a fold was trained.

    That this her2net trains in another way does not matter: the weights predict as they did.
    """
    now = plan_inputs(recorded_training(plan, record), plan)
    changed = changed_inputs(record.made_from, {name: digest for name, digest in now.items() if name != "training_version"})
    other = record.preprocessing not in ("", method_digest(plan.preprocessing))
    return changed + ["preprocessing"] * other


def _refuse_other_inputs(folder: Path, record: RunRecord, made_from: dict[str, str]) -> None:
    changed = sorted(changed_inputs(record.made_from, made_from))
    if changed:
        raise StaleArtefactError(
            f"{folder}: this fold was trained from other inputs (changed since: {', '.join(changed)}). "
            "Train it again with --restart, or undo the change."
        )


def _tell_what_differs(record: RunRecord, training: TrainingPlan, device: str) -> None:
    """Say what keeps a resumed run from equalling an uninterrupted one."""
    if not record.epochs_done:
        return
    now = describe_environment(device)
    differs = [f"{k} {record.environment[k]} → {now[k]}" for k in ("torch", "device", "device_name", "threads")
               if k in record.environment and record.environment[k] != now[k]]  # fmt: skip
    if record.training.epochs != training.epochs:
        differs.append(f"epochs {record.training.epochs} → {training.epochs}, which changes the learning rate from here on")
    if differs:
        print(f"Note: continued under other conditions ({'; '.join(differs)}): the result is not that of one run.", file=sys.stderr)
