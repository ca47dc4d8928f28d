"""What a fold says about itself: `run.json`, `history.csv` and `progress.png`."""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from her2net.artefact import Artefact, write_bytes, write_csv
from her2net.plan.schema import TrainingPlan

MONITORED = ("val_loss", "val_auc", "val_accuracy", "val_recall", "val_f1")
HISTORY_COLUMNS = ("epoch", "learning_rate", "train_loss", *MONITORED)


class RunRecord(Artefact):
    """`run.json` of a fold.

    Attributes:
        status: `running` while the process lives or after it was killed, `finished` at the end.
        training: the plan's section with what the command line changed.
        preprocessing: digest of how the images were prepared; empty in a record from before it was kept.
        epochs_from: whether the number of epochs was given with `--epochs`.
        batch_parts: parts in which a batch went through the network for lack of graphics memory; 1 is the whole.
        pid: process that trains or trained it.
        initialisation: what became of the pretrained weights, in words.
        checkpoint: which weights predict, in words; carries the remark where they are optimistic.
        weights: digest of `checkpoint_final.pt`; empty while running, and in a record from before it was kept.
        duration_s: phase (see `her2net.train.timeline.PHASES`) -> seconds, summed over epochs and resumed sessions.
        environment: versions, device and threads.
    """

    MADE_BY: ClassVar[str] = "her2net_train"

    status: Literal["running", "finished"]
    dataset: str
    plan: str
    modality: str
    fold: str
    n_training_cases: int
    n_held_out_cases: int
    epochs_done: int
    training: TrainingPlan
    preprocessing: str = ""
    epochs_from: Literal["plan", "command line"] = "plan"
    batch_parts: int = 1
    pid: int
    initialisation: str
    checkpoint: str
    weights: str = ""
    duration_s: dict[str, float]
    environment: dict[str, str]

    @property
    def identity(self) -> list[object]:
        """What tells this training from any other: its inputs, and the weights, which may differ for the same inputs."""
        return [self.made_from, self.epochs_done, *([self.weights] if self.weights else [])]


def describe_environment(device: str) -> dict[str, str]:
    """Return versions, device and number of threads; MONAI and timm, which take seconds to import, are not imported for it."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "monai": version("monai"),
        "device": device,
        "device_name": name,
        "threads": str(torch.get_num_threads()),
    }


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch."""
    write_csv(path, HISTORY_COLUMNS, history)


def plot_progress(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss and validation AUC over the epochs; a single one, as of a solved network, as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs, marker = [row["epoch"] + 1 for row in history], "o" if len(history) == 1 else ""
    left = figure.add_subplot()
    lines = left.plot(epochs, [row["train_loss"] for row in history], marker=marker, color="#0072B2", label="training loss")
    left.set(xlabel="epoch", ylabel="cross-entropy", title=title)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if any(row["val_loss"] is not None for row in history):
        lines += left.plot(epochs, [row["val_loss"] for row in history], marker=marker, color="#56B4E9", label="held-out loss")
        right = left.twinx()
        aucs = [float("nan") if row["val_auc"] is None else row["val_auc"] for row in history]
        lines += right.plot(epochs, aucs, marker=marker, color="#D55E00", label="held-out AUC (not used for training)")
        right.set(ylabel="AUC", ylim=(0, 1))
    left.legend(handles=lines, loc="lower left", fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


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
