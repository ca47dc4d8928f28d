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

from her2net.errors import MissingArtefactError, RawDataError, StaleArtefactError, describe, join_problems
from her2net.input_check import Finding
from her2net.memory import largest_case
from her2net.networks.build import build_network
from her2net.new_case import Check, CheckedCase, prepare
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.preprocess.cache import CaseFiles
from her2net.progress import choose_workers, map_in_processes
from her2net.train.checkpoint import FINAL, compare_weights, read_checkpoint
from her2net.train.fold import refuse_other_plan
from her2net.train.loop import channels_last, predict_probs
from her2net.train.record import RunRecord


def load_networks(paths: DatasetPaths, plan: Plan, modality: str, device: str) -> list[torch.nn.Module]:
    """Load the trained network of every fold, in fold order, ready to predict.

    Raises:
        MissingArtefactError: a fold is not trained yet; names the commands that train them.
        StaleArtefactError: a fold was trained by another plan.
    """
    folds = range(plan.splits.n_folds)
    missing = [k for k in folds if not (paths.fold(modality, k) / FINAL).exists()]
    if missing:
        command = f"her2net_train {modality} {' '.join(map(str, missing))}"
        raise MissingArtefactError(f"{paths.model(modality)}: folds {missing} are not trained. Run {command} first.")
    refuse_other_plan(paths, plan.modalities[modality], modality, folds)
    return [_read_network(paths, plan.modalities[modality], modality, k, device) for k in folds]


def load_network(paths: DatasetPaths, section: ModalityPlan, modality: str, fold: int | str, device: str) -> torch.nn.Module:
    """Load the trained network of one fold.

    Raises:
        MissingArtefactError: not trained yet.
        StaleArtefactError: damaged, of another run, or trained by another plan.
    """
    refuse_other_plan(paths, section, modality, [fold])
    return _read_network(paths, section, modality, fold, device)


def _read_network(paths: DatasetPaths, section: ModalityPlan, modality: str, fold: int | str, device: str) -> torch.nn.Module:
    path = paths.fold(modality, fold) / FINAL
    state, record = read_checkpoint(path), RunRecord.load(path.with_name("run.json"))
    name, n_channels, n_classes = section.training.network, section.n_inputs, len(section.training.loss_weights)
    expected = {"network": name, "n_channels": n_channels, "n_classes": n_classes}
    problems = [describe(key, found=state.get(key), expected=value) for key, value in expected.items() if state.get(key) != value]
    if state["made_from"] != record.made_from:
        problems.append("made from other inputs than run.json says.")
    network = build_network(name, n_channels=n_channels, n_classes=n_classes)
    problems += [f"{problem}." for problem in compare_weights(state.get("weights"), network.state_dict())]
    if problems:
        remedy = f"Run her2net_train {modality} {fold} --restart {paths.options}."
        raise StaleArtefactError(join_problems(f"{path}: not the weights of this fold. {remedy}", problems, limit=5))
    network.load_state_dict(state["weights"])
    return channels_last(network, section.ndim).to(device).eval()


def predict_files(
    networks: Sequence[torch.nn.Module], section: ModalityPlan, cases: Sequence[CaseFiles], *,
    tta: bool, n_workers: int | None = None, quiet: bool = False, description: str = "Predict",
    check: Check | None = None,
) -> tuple[np.ndarray, list[Finding]]:  # fmt: skip
    """Predict each case with the mean of the networks' probabilities.

    Args:
        check: looks at each image as it was read; `None` asks nothing. Goes to worker processes.

    Returns:
        (n_cases, n_classes) float64, and the warnings of the check.

    Raises:
        RawDataError: cases cannot be read, or the check found an error; lists them all.
    """
    device = next(networks[0].parameters()).device
    axes = section.training.augmentation.mirrored_axes if tta else ()
    size = section.inference.batch_size
    batch: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    findings: list[Finding] = []
    problems: list[str] = []
    for case in _in_order(cases, section, check, n_workers, quiet, description):
        findings += case.findings
        if case.image is None:
            problems.append(case.problem)
        if case.image is None or problems:  # nothing will be predicted: look for further problems only
            continue
        batch.append(case.image)
        if len(batch) == size or len(rows) * size + len(batch) == len(cases):
            images = torch.from_numpy(np.stack(batch)).to(device)
            probs = [
                predict_probs(network, images, section.preprocessing.input_vox, batch_size=size, flip_axes=axes)
                for network in networks
            ]
            rows.append(np.mean(probs, axis=0))
            batch = []
    if problems:
        raise RawDataError(join_problems(f"{len(problems)} of {len(cases)} images cannot be predicted.", problems))
    return np.concatenate(rows), findings


def _in_order(
    cases: Sequence[CaseFiles], section: ModalityPlan, check: Check | None, n_workers: int | None, quiet: bool,
    description: str,
) -> Iterator[CheckedCase]:  # fmt: skip
    """Prepare cases in parallel, yield them in order; at most a few wait for an earlier one."""
    waiting: dict[int, CheckedCase] = {}
    upcoming = 0
    for index, prepared in map_in_processes(
        partial(prepare, plan=section, check=check), cases, description=description, quiet=quiet,
        n_workers=choose_workers(n_workers, largest_case(case.paths for case in cases)), name_of=lambda case: case.case_id,
    ):  # fmt: skip
        waiting[index] = prepared
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1
