"""The training stage: plan, splits and cache → one trained fold with its OOF predictions.

A run that was killed continues where its last checkpoint was, and ends with the same
bits as one that was not (on the CPU). A finished run is not repeated.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from her2net.artefact import digest_json
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.networks.build import build_network
from her2net.networks.pretrained import load_pretrained
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan, TrainingPlan
from her2net.predictions import make_predictions, write_predictions
from her2net.progress import progress
from her2net.train.checkpoint import FINAL, PREVIOUS, read_latest, save_checkpoint, save_latest
from her2net.train.data import ALL, FoldCases, FoldData, PartLoader, load_part
from her2net.train.loop import channels_last, epoch_seed, make_average, make_optimizer, predict_probs, train_epoch
from her2net.train.record import RunRecord, describe_environment, plot_progress, write_history

TRAINING_VERSION = 1  # raise when the same plan and data give other weights
SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass(frozen=True)
class TrainOptions:
    """Run-time choices of `her2net_train`; `None` keeps the plan's value."""

    device: str = "cpu"
    epochs: int | None = None
    seed: int | None = None
    pretrained: str | None = None
    restart: bool = False
    quiet: bool = False


def effective_training(plan: ModalityPlan, options: TrainOptions) -> TrainingPlan:
    """Return the plan's training section with what the command line changed."""
    changes = {"epochs": options.epochs, "seed": options.seed}
    if options.pretrained is not None:
        changes["initialisation"] = "scratch" if options.pretrained == "none" else "pretrained"
    return plan.training.model_copy(update={k: v for k, v in changes.items() if v is not None})


def fold_inputs(training: TrainingPlan, plan: ModalityPlan, data_digests: dict[str, str], source: str) -> dict[str, str]:
    """Digests of what a fold is made from; the number of epochs stands apart, so that a run can be extended.

    Args:
        data_digests: `training` and `held_out` part -> digest.
        source: `--pretrained` as given, or ''.
    """
    settings = training.model_dump(mode="json", exclude={"epochs"})
    return {
        "training_plan": digest_json([TRAINING_VERSION, settings, plan.preprocessing.input_vox, plan.inference.tta]),
        "training_cases": data_digests["training"],
        "held_out_cases": data_digests["held_out"],
        "weights": digest_json(source),
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
        StaleArtefactError: the folder holds a run made from other inputs, and no `--restart` was given.
        TrainingError: the loss is not finite.
        PlanError: the weights given do not fit.
    """
    section, folder = plan.modalities[modality], paths.fold(modality, fold)
    training = effective_training(section, options)
    parts = {
        "training": load(paths, modality, section, cases.training),
        "held_out": load(paths, modality, section, cases.held_out),
    }
    made_from = fold_inputs(training, section, {k: p.digest for k, p in parts.items()}, options.pretrained or "")
    if options.restart and folder.exists():
        shutil.rmtree(folder)
    record = read_record(folder)
    if record is not None:
        _refuse_other_inputs(folder, record, made_from)
        if record.status == "finished" and record.epochs_done >= training.epochs:
            return record
    run = _Run(plan, modality, fold, training, made_from, parts, options, folder)
    return run.train()


def read_record(folder: Path) -> RunRecord | None:
    """Return the run record of a fold folder, `None` if there is none."""
    try:
        return RunRecord.load(folder / "run.json")
    except MissingArtefactError:
        return None


def _refuse_other_inputs(folder: Path, record: RunRecord, made_from: dict[str, str]) -> None:
    changed = sorted(name for name in made_from if record.made_from.get(name) != made_from[name])
    if changed:
        raise StaleArtefactError(
            f"{folder}: this fold was trained from other inputs (changed since: {', '.join(changed)}). "
            "Train it again with --restart, or undo the change."
        )


class _Run:
    """The state of one training run; a class because eight values change together each epoch."""

    def __init__(
        self, plan: Plan, modality: str, fold: int | str, training: TrainingPlan, made_from: dict[str, str],
        parts: dict[str, FoldData], options: TrainOptions, folder: Path,
    ) -> None:  # fmt: skip
        self.plan, self.section, self.training = plan, plan.modalities[modality], training
        self.modality, self.fold, self.folder = modality, fold, folder
        self.made_from, self.parts, self.options = made_from, parts, options
        self.device = torch.device(options.device)
        torch.manual_seed(epoch_seed(training.seed, modality, str(fold), "initialisation"))
        model = build_network(training.network, n_channels=self.section.n_inputs, n_classes=plan.n_classes,
                              drop_path=training.drop_path)
        source = options.pretrained or ("auto" if training.initialisation == "pretrained" else "none")
        state = read_latest(folder)
        resumed = state is not None and state["made_from"] == made_from
        report = load_pretrained(model, training.network, source="none" if resumed else source,
                                 n_channels=self.section.n_inputs)
        self.initialisation = state["initialisation"] if resumed and state else report.message
        self.model = channels_last(model, self.section.ndim).to(self.device)
        self.average = make_average(self.model, training.ema_decay)
        self.optimizer = make_optimizer(self.model, learning_rate=training.learning_rate,
                                        weight_decay=training.weight_decay)
        fp16 = training.precision == "fp16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda") if fp16 else None
        self.epochs_done, self.history, self.best = 0, [], None
        self.duration_s: dict[str, float] = {"train": 0.0, "validate": 0.0, "checkpoint": 0.0}
        if resumed and state:
            self._restore(state)

    def train(self) -> RunRecord:
        """Run the remaining epochs, then predict the held-out cases."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record("running")
        part = self.parts["training"]
        images = torch.from_numpy(part.cache.image).to(self.device)
        labels = torch.from_numpy(part.labels).to(self.device)
        epochs = range(self.epochs_done, self.training.epochs)
        bar = progress(epochs, description=f"{self.modality} fold {self.fold}", quiet=self.options.quiet)
        saved = time.monotonic()
        for epoch in bar:
            self._one_epoch(epoch, images, labels, bar)
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                saved = time.monotonic()
        if len(epochs):
            self._save()
        return self._finish()

    def _one_epoch(self, epoch: int, images: torch.Tensor, labels: torch.Tensor, bar: Any) -> None:
        start = time.perf_counter()
        loss = train_epoch(
            self.model, self.average, self.optimizer, images, labels, self.parts["training"].cache.case_ids,
            self.training, input_vox=self.section.preprocessing.input_vox, epoch=epoch, scaler=self.scaler,
            seed=epoch_seed(self.training.seed, self.modality, str(self.fold), epoch),
        )  # fmt: skip
        middle = time.perf_counter()
        row = {"epoch": epoch, "learning_rate": self.optimizer.param_groups[0]["lr"], "train_loss": loss}
        row |= self._validate()
        self.history.append(row)
        self.epochs_done = epoch + 1
        if self.training.checkpoint == "best" and row["val_auc"] is not None:
            score = float(np.mean([row["val_accuracy"], row["val_recall"], row["val_auc"], row["val_f1"]]))
            if self.best is None or score > self.best["score"]:
                weights = {k: v.detach().cpu().clone() for k, v in self._averaged().state_dict().items()}
                self.best = {"score": score, "epoch": epoch, "weights": weights}
        self.duration_s["train"] += middle - start
        self.duration_s["validate"] += time.perf_counter() - middle
        auc = "" if row["val_auc"] is None else f", AUC {row['val_auc']:.3f}"
        bar.set_postfix_str(f"loss {loss:.3f}{auc}")

    def _averaged(self) -> torch.nn.Module:
        return self.model if self.average is None else self.average.module

    def _predict_held_out(self, precision: str) -> np.ndarray:
        part, inference = self.parts["held_out"], self.section.inference
        flips = flip_axes(self.section) if inference.tta and precision == "fp32" else ()
        return predict_probs(
            self._averaged(), torch.from_numpy(part.cache.image).to(self.device),
            self.section.preprocessing.input_vox, batch_size=inference.batch_size, flip_axes=flips, precision=precision,
        )  # fmt: skip

    def _validate(self) -> dict[str, float | None]:
        """Metrics of the held-out cases for the progress bar; they steer nothing unless the plan says `best`."""
        labels = self.parts["held_out"].labels
        if self.fold == ALL or not len(labels):
            return dict.fromkeys(("val_loss", "val_auc", "val_accuracy", "val_recall", "val_f1"))
        return monitor(labels, self._predict_held_out(self.training.precision))

    def _save(self) -> None:
        start = time.perf_counter()
        save_latest(self.folder, {
            "made_from": self.made_from, "initialisation": self.initialisation, "epochs_done": self.epochs_done,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "history": self.history, "best": self.best, "duration_s": self.duration_s,
        })  # fmt: skip
        write_history(self.folder / "history.csv", self.history)
        plot_progress(self.folder / "progress.png", self.history, f"{self.modality}, fold {self.fold}")
        self._write_record("running")
        self.duration_s["checkpoint"] += time.perf_counter() - start

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epochs_done, self.history, self.best = state["epochs_done"], state["history"], state["best"]
        self.duration_s = state["duration_s"]

    def _finish(self) -> RunRecord:
        chosen = self._averaged()
        if self.best is not None:
            chosen.load_state_dict(self.best["weights"])
        save_checkpoint(self.folder / FINAL, {
            "made_from": self.made_from, "network": self.training.network, "n_channels": self.section.n_inputs,
            "n_classes": self.plan.n_classes, "weights": chosen.state_dict(),
        })  # fmt: skip
        part = self.parts["held_out"]
        if len(part.labels):
            cases = part.cases
            table = make_predictions(
                [c.case_id for c in cases], [c.patient_id for c in cases], self._predict_held_out("fp32"),
                labels=part.labels.tolist(), folds=[str(self.fold)] * len(cases),
            )  # fmt: skip
            write_predictions(self.folder / "oof.csv", table)
        (self.folder / PREVIOUS).unlink(missing_ok=True)
        return self._write_record("finished")

    def _write_record(self, status: Any) -> RunRecord:
        if self.training.checkpoint == "best":
            chosen = "best epoch" if self.best is None else f"epoch {self.best['epoch'] + 1}"
            words = f"{chosen} by accuracy, recall, AUC and F1; optimistic: epoch chosen on the reported fold"
        else:
            words = "last epoch" + (", running average of the weights" if self.average is not None else "")
        record = RunRecord(
            made_from=self.made_from, status=status, dataset=self.plan.dataset, plan=self.plan.name,
            modality=self.modality, fold=str(self.fold), n_training_cases=len(self.parts["training"].labels),
            n_held_out_cases=len(self.parts["held_out"].labels), epochs_done=self.epochs_done, training=self.training,
            pid=os.getpid(), initialisation=self.initialisation, checkpoint=words,
            duration_s={k: round(v, 2) for k, v in self.duration_s.items()},
            environment=describe_environment(self.options.device),
        )  # fmt: skip
        record.save(self.folder / "run.json")
        return record


def flip_axes(section: ModalityPlan) -> list[int]:
    """Spatial axes along which training flipped, hence along which test-time augmentation may."""
    return [axis for axis, flipped in enumerate(section.training.augmentation.flip_axes) if flipped]


def monitor(labels: np.ndarray, probs: np.ndarray) -> dict[str, float | None]:
    """Return loss, AUC, accuracy, recall and F1 (macro for several classes) of held-out cases."""
    from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

    n_classes, guess = probs.shape[1], probs.argmax(1)
    average = "binary" if n_classes == 2 else "macro"
    auc = None
    if len(np.unique(labels)) == n_classes:
        auc = roc_auc_score(labels, probs[:, 1]) if n_classes == 2 else roc_auc_score(labels, probs, multi_class="ovr")
    return {
        "val_loss": float(-np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-12)).mean()),
        "val_auc": None if auc is None else float(auc),
        "val_accuracy": float(accuracy_score(labels, guess)),
        "val_recall": float(recall_score(labels, guess, average=average, zero_division=0)),
        "val_f1": float(f1_score(labels, guess, average=average, zero_division=0)),
    }
