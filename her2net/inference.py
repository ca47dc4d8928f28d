"""Trained folds → class probabilities of cases read from their files.

Used by the ensemble on imagesTs and by `her2net_predict` on anything else, so the two
cannot differ. No cache is involved: each case is read once, prepared once, and shown
to every fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from her2net.errors import MissingArtefactError
from her2net.memory import largest_case
from her2net.networks.build import build_network
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.preprocess.cache import CaseFiles, prepare_files
from her2net.preprocess.prepare import PreparedCase
from her2net.progress import choose_workers, map_in_processes
from her2net.train.checkpoint import FINAL, read_checkpoint
from her2net.train.loop import channels_last, flip_axes, predict_probs


def load_networks(paths: DatasetPaths, plan: Plan, modality: str, device: str) -> list[torch.nn.Module]:
    """Load the trained network of every fold, in fold order, ready to predict.

    Raises:
        MissingArtefactError: a fold is not trained yet; names the commands that train them.
    """
    folds = range(plan.splits.n_folds)
    missing = [k for k in folds if not (paths.fold(modality, k) / FINAL).exists()]
    if missing:
        command = f"her2net_train {modality} {' '.join(map(str, missing))}"
        raise MissingArtefactError(f"{paths.model(modality)}: folds {missing} are not trained. Run {command} first.")
    return [load_network(paths, plan.modalities[modality], modality, k, device) for k in folds]


def load_network(paths: DatasetPaths, section: ModalityPlan, modality: str, fold: int, device: str) -> torch.nn.Module:
    """Load the trained network of one fold."""
    state = read_checkpoint(paths.fold(modality, fold) / FINAL)
    network = build_network(state["network"], n_channels=state["n_channels"], n_classes=state["n_classes"])
    network.load_state_dict(state["weights"])
    return channels_last(network, section.ndim).to(device).eval()


def predict_files(
    networks: Sequence[torch.nn.Module], section: ModalityPlan, cases: Sequence[CaseFiles], *,
    tta: bool, n_workers: int | None = None, quiet: bool = False, description: str = "Predict",
) -> np.ndarray:  # fmt: skip
    """Return (n_cases, n_classes) float64: the mean of the networks' probabilities.

    Raises:
        RawDataError: a case cannot be read.
    """
    device = next(networks[0].parameters()).device
    axes = flip_axes(section.training) if tta else ()
    size = section.inference.batch_size
    rows: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for prepared in _in_order(cases, section, n_workers, quiet, description):
        batch.append(prepared.image)
        if len(batch) == size or len(rows) * size + len(batch) == len(cases):
            images = torch.from_numpy(np.stack(batch)).to(device)
            probs = [
                predict_probs(network, images, section.preprocessing.input_vox, batch_size=size, flip_axes=axes)
                for network in networks
            ]
            rows.append(np.mean(probs, axis=0))
            batch = []
    return np.concatenate(rows)


def _in_order(
    cases: Sequence[CaseFiles], section: ModalityPlan, n_workers: int | None, quiet: bool, description: str
) -> Iterator[PreparedCase]:
    """Prepare cases in parallel, yield them in order; at most a few wait for an earlier one."""
    waiting: dict[int, PreparedCase] = {}
    upcoming = 0
    for index, prepared in map_in_processes(
        partial(prepare_files, plan=section.preprocessing), cases, description=description, quiet=quiet,
        n_workers=choose_workers(n_workers, largest_case(case.paths for case in cases)), name_of=lambda case: case.case_id,
    ):  # fmt: skip
        waiting[index] = prepared
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1
