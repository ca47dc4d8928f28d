"""One training run, from its last checkpoint to its end.

Between two epochs a run is its weights, their average, the optimizer's moments, the loss scale and the history. All
of them are in the checkpoint. Order, augmentation and dropout of an epoch follow from its number, and so does the
learning rate, so there is no sampler, generator or scheduler whose state could be lost.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from her2net.artefact import digest_file
from her2net.networks.build import build_network, network_spec
from her2net.networks.pretrained import load_pretrained
from her2net.networks.scattering import ScatteringNetwork
from her2net.plan.schema import ModalityPlan, Plan, TrainingPlan
from her2net.predictions import make_predictions, write_predictions
from her2net.preprocess.cache import method_digest
from her2net.progress import progress
from her2net.train.checkpoint import (
    FINAL,
    LATEST,
    PREVIOUS,
    compare_weights,
    find_damage,
    read_latest,
    save_checkpoint,
    save_latest,
)
from her2net.train.data import ALL, FoldData
from her2net.train.loop import (
    channels_last,
    epoch_seed,
    make_average,
    make_optimizer,
    make_scaler,
    predict_probs,
    train_epoch,
)
from her2net.train.record import MONITORED, RunRecord, describe_environment, monitor, plot_progress, write_history
from her2net.train.solve import describe_views, solve_classifier
from her2net.train.timeline import Timeline

SECONDS_BETWEEN_CHECKPOINTS = 30.0
KINDS: dict[str, tuple[type, ...]] = {
    "initialisation": (str,), "epochs_done": (int,), "optimizer": (dict,), "scaler": (dict, type(None)), "n_parts": (int,),
    "history": (list,), "best": (dict, type(None)), "duration_s": (dict,),
}  # fmt: skip
"""What a checkpoint holds besides weights -> its type."""


@dataclass(frozen=True)
class Task:
    """What is to be trained, from what, and where it goes.

    Attributes:
        made_from: name of each input -> its digest.
        parts: `training` and `held_out`.
        pretrained: `--pretrained` as given.
        epochs_from: where the number of epochs comes from.
        check: raises if this process may no longer write to the folder.
        restart: what the folder has is removed, once nothing stands in the way of training.
    """

    plan: Plan
    modality: str
    fold: int | str
    training: TrainingPlan
    made_from: dict[str, str]
    parts: dict[str, FoldData]
    folder: Path
    device: str
    pretrained: str | None
    epochs_from: Literal["plan", "command line"]
    check: Callable[[], None]
    quiet: bool = False
    restart: bool = False

    @property
    def section(self) -> ModalityPlan:
        return self.plan.modalities[self.modality]


class TrainingRun:
    """The state of one training run; a class because eight values change together each epoch."""

    def __init__(self, task: Task) -> None:
        """Take up the run where its newest sound checkpoint was, or start it."""
        self.task, training, section = task, task.training, task.section
        self.device = torch.device(task.device)
        torch.manual_seed(epoch_seed(training.seed, task.modality, str(task.fold), "initialisation"))
        n_channels = section.n_inputs
        model = build_network(training.network, n_channels=n_channels, n_classes=task.plan.n_classes,
                              drop_path=training.drop_path)
        state = None if task.restart else read_latest(task.folder, partial(explain_misfit, task=task, model=model))
        source = task.pretrained or ("auto" if training.initialisation == "pretrained" else "none")
        report = load_pretrained(model, training.network, source="none" if state else source, n_channels=n_channels)
        self.initialisation = state["initialisation"] if state else report.message
        self.solved = network_spec(training.network).solved
        self.model = channels_last(model, section.ndim).to(self.device)
        self.average = None if self.solved else make_average(self.model, training.ema_decay)
        self.optimizer = make_optimizer(self.model, learning_rate=training.learning_rate,
                                        weight_decay=training.weight_decay, layer_decay=training.layer_decay)
        self.scaler = make_scaler(training.precision, self.device)
        self.epochs_done, self.n_parts = 0, 1
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.timeline = Timeline(self.device)
        if state:
            self._restore(state)

    def train(self) -> RunRecord:
        """Run the remaining epochs, then predict the held-out cases."""
        task = self.task
        if task.restart and task.folder.exists():
            task.check()
            shutil.rmtree(task.folder)
        self._write_record("running")
        part = task.parts["training"]
        images, labels = self._place(torch.from_numpy(part.cache.image), torch.from_numpy(part.labels))
        epochs = range(self.epochs_done, task.training.epochs)
        bar = progress(epochs, description=f"{task.modality} fold {task.fold}", quiet=task.quiet)
        saved = time.monotonic()
        for epoch in bar:
            self._one_epoch(epoch, images, labels, bar)
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                self._write_history()
                self.timeline.lap("checkpoint")
                saved = time.monotonic()
        if len(epochs) or find_damage(task.folder / LATEST):  # a kill between two renames leaves the previous one only
            self._save()
        return self._finish()

    def _place(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Put tensors on the device, or leave them where they are if it has no room for them."""
        try:
            return tuple(tensor.to(self.device) for tensor in tensors)
        except torch.cuda.OutOfMemoryError:
            print("Note: the images do not fit into the graphics memory; each batch is moved there.", file=sys.stderr)
            return tensors

    def _one_epoch(self, epoch: int, images: torch.Tensor, labels: torch.Tensor, bar: Any) -> None:
        task = self.task
        row = self._solve(epoch, images) if self.solved else self._step_through(epoch, images, labels)
        self.timeline.start()
        row |= self._validate()
        self.history.append(row)
        self.epochs_done = epoch + 1
        if task.training.checkpoint == "best" and row["val_auc"] is not None:
            score = float(np.mean([row["val_accuracy"], row["val_recall"], row["val_auc"], row["val_f1"]]))
            if self.best is None or score > self.best["score"]:
                weights = {k: v.detach().cpu().clone() for k, v in self._averaged().state_dict().items()}
                self.best = {"score": score, "epoch": epoch, "weights": weights}
        self.timeline.lap("validation")
        self.timeline.settle()
        auc = "" if row["val_auc"] is None else f", AUC {row['val_auc']:.3f}"
        bar.set_postfix_str(f"loss {row['train_loss']:.3f}{auc}")

    def _step_through(self, epoch: int, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Update all weights, batch after batch; return the first columns of the history."""
        task = self.task
        loss, self.n_parts = train_epoch(
            self.model, self.average, self.optimizer, images, labels, task.parts["training"].cache.case_ids,
            task.training, input_vox=task.section.preprocessing.input_vox, epoch=epoch, scaler=self.scaler,
            seed=epoch_seed(task.training.seed, task.modality, str(task.fold), epoch), n_parts=self.n_parts,
            timeline=self.timeline,
        )  # fmt: skip
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        return {"epoch": epoch, "learning_rate": learning_rate, "train_loss": loss}

    def _solve(self, epoch: int, images: torch.Tensor) -> dict[str, Any]:
        """Solve the classifier; it is done in one epoch, and more change nothing. Return the first columns of the history."""
        if self.history:
            return {"epoch": epoch, "learning_rate": 0.0, "train_loss": self.history[-1]["train_loss"]}
        part, input_vox = self.task.parts["training"], self.task.section.preprocessing.input_vox
        model = cast(ScatteringNetwork, self.model)
        self.timeline.start()
        views = describe_views(model, images, self.task.training, input_vox)
        self.timeline.lap("forward")
        loss = solve_classifier(model, views, part.labels, [c.patient_id for c in part.cases], self.task.training)
        self.timeline.lap("solve")
        return {"epoch": epoch, "learning_rate": 0.0, "train_loss": loss}

    def _averaged(self) -> torch.nn.Module:
        return self.model if self.average is None else self.average.module

    def _predict_held_out(self, precision: str) -> np.ndarray:
        part, section = self.task.parts["held_out"], self.task.section
        tta = section.inference.tta and precision == "fp32"
        flips = section.training.augmentation.mirrored_axes if tta else ()
        return predict_probs(
            self._averaged(), torch.from_numpy(part.cache.image), section.preprocessing.input_vox,
            batch_size=section.inference.batch_size, flip_axes=flips, precision=precision,
        )  # fmt: skip

    def _validate(self) -> dict[str, float | None]:
        """Metrics of the held-out cases for the progress bar; they steer nothing unless the plan says `best`."""
        labels = self.task.parts["held_out"].labels
        if self.task.fold == ALL or not len(labels):
            return dict.fromkeys(MONITORED)
        return monitor(labels, self._predict_held_out(self.task.training.precision))

    def _save(self) -> None:
        self.timeline.start()
        self.task.check()
        save_latest(self.task.folder, {
            "made_from": self.task.made_from, "initialisation": self.initialisation, "epochs_done": self.epochs_done,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(), "n_parts": self.n_parts,
            "history": self.history, "best": self.best, "duration_s": self.timeline.seconds,
        })  # fmt: skip
        self._write_record("running")
        self.timeline.lap("checkpoint")
        self.timeline.settle()

    def _write_history(self) -> None:
        write_history(self.task.folder / "history.csv", self.history)
        plot_progress(self.task.folder / "progress.png", self.history, f"{self.task.modality}, fold {self.task.fold}")

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epochs_done, self.history, self.best = state["epochs_done"], state["history"], state["best"]
        self.timeline, self.n_parts = Timeline(self.device, state["duration_s"]), state["n_parts"]

    def _finish(self) -> RunRecord:
        """Write what the run made; all of it, because a kill may have come between the checkpoint and the rest."""
        task, chosen = self.task, self._averaged()
        task.check()
        self.timeline.start()
        self._write_history()
        if self.best is not None:
            chosen.load_state_dict(self.best["weights"])
        save_checkpoint(task.folder / FINAL, {
            "made_from": task.made_from, "network": task.training.network, "n_channels": task.section.n_inputs,
            "n_classes": task.plan.n_classes, "weights": chosen.state_dict(),
        })  # fmt: skip
        self.timeline.lap("checkpoint")
        part = task.parts["held_out"]
        if len(part.labels):
            cases = part.cases
            table = make_predictions(
                [c.case_id for c in cases], [c.patient_id for c in cases], self._predict_held_out("fp32"),
                labels=part.labels.tolist(), folds=[str(task.fold)] * len(cases),
            )  # fmt: skip
            write_predictions(task.folder / "oof.csv", table)
        self.timeline.lap("validation")
        self.timeline.settle()
        (task.folder / PREVIOUS).unlink(missing_ok=True)
        return self._write_record("finished")

    def _write_record(self, status: Literal["running", "finished"]) -> RunRecord:
        task = self.task
        if task.training.checkpoint == "best":
            chosen = "best epoch" if self.best is None else f"epoch {self.best['epoch'] + 1}"
            words = f"{chosen} by accuracy, recall, AUC and F1; optimistic: epoch chosen on the reported fold"
        elif self.solved:
            words = "solved on all views of the training cases"
        else:
            words = "last epoch" + (", running average of the weights" if self.average is not None else "")
        record = RunRecord(
            made_from=task.made_from, status=status, dataset=task.plan.dataset, plan=task.plan.name,
            modality=task.modality, fold=str(task.fold), n_training_cases=len(task.parts["training"].labels),
            n_held_out_cases=len(task.parts["held_out"].labels), epochs_done=self.epochs_done, training=task.training,
            preprocessing=method_digest(task.section.preprocessing), epochs_from=task.epochs_from,
            batch_parts=self.n_parts, pid=os.getpid(),
            initialisation=self.initialisation, checkpoint=words,
            weights=digest_file(task.folder / FINAL) if status == "finished" else "",
            duration_s={k: round(v, 3) for k, v in self.timeline.seconds.items()},
            environment=describe_environment(task.device),
        )  # fmt: skip
        record.save(task.folder / "run.json")
        return record


def explain_misfit(state: dict[str, Any], task: Task, model: torch.nn.Module) -> str:
    """Say why a run cannot continue from the state of a checkpoint; empty if it can."""
    if state["made_from"] != task.made_from:
        return "made from other inputs"
    absent = object()
    odd = [name for name, kinds in KINDS.items() if not isinstance(state.get(name, absent), kinds)]
    if odd:
        return f"{', '.join(odd)} missing or of another type"
    own = model.state_dict()
    problems = compare_weights(state.get("model"), own)
    if task.training.ema_decay == 0 or network_spec(task.training.network).solved:
        problems += [] if state.get("average", absent) is None else ["average: this run has none"]
    else:
        averaged = {"n_averaged": torch.tensor(0), **{f"module.{name}": tensor for name, tensor in own.items()}}
        problems += [f"average: {problem}" for problem in compare_weights(state.get("average"), averaged)]
    if state["best"] is not None:
        problems += [f"best: {problem}" for problem in compare_weights(state["best"].get("weights"), own)]
    return "; ".join(problems[:3]) or _explain_moments(state["optimizer"], model, task.training.layer_decay)


def _explain_moments(found: dict[str, Any], model: torch.nn.Module, layer_decay: float) -> str:
    """Say in what the state of an optimizer is not one of this network; torch would notice at the first step only."""
    groups = make_optimizer(model, learning_rate=1.0, weight_decay=0.0, layer_decay=layer_decay).param_groups
    shapes = [tuple(p.shape) for group in groups for p in group["params"]]
    try:
        fits = [len(group["params"]) for group in found["param_groups"]] == [len(group["params"]) for group in groups]
        fits &= all(tuple(found["state"][i][name].shape) == shapes[i] for i in found["state"] for name in ("exp_avg", "exp_avg_sq"))
    except (KeyError, IndexError, TypeError, AttributeError):
        fits = False
    return "" if fits else "optimizer is not one of this network"
