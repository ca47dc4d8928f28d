"""The methods, all with one interface: a fold in, a score of each held-out case out.

`method(paths, seconds, seed)` finds in `paths.raw` what `folds.lay_out` wrote. Scores are probabilities of class 1.
Rivals get the lesion cut out and z-scored by her2net's own rule, which is more than a careful person would do by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from her2net import pipeline
from her2net.fuse.stage import FUSION
from her2net.inference import load_network, predict_files
from her2net.paths import DatasetPaths
from her2net.plan.machine import choose_device, inspect_machine, measure_speed
from her2net.plan.stage import PlanOptions
from her2net.predictions import read_predictions
from her2net.project import Project, load_project
from her2net.train.fold import TrainOptions

Scores = dict[str, float]
Method = Callable[[DatasetPaths, float, int], Scores]


def auto(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
    """her2net as it comes, one model on all training cases: as each fold predicts the cases it holds out."""
    project = _plan(paths, PlanOptions(preset="auto", budget_h=seconds / 3600, n_workers=1, quiet=True))
    return _train(project, TrainOptions(device=choose_device("auto"), seed=seed, quiet=True, restart=True), ["all"])


def auto_radiomics(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
    """The folds' mean for a new image, fused with that of its radiomics, which holds no outline shape. Needs mirp."""
    options = PlanOptions(preset="auto", budget_h=seconds / 3600, n_workers=1, quiet=True)
    project = _plan(paths, options)
    tables = {name: table.model_copy(update={"fused": True}) for name, table in project.plan.tables.items()}
    if not tables:
        raise SystemExit("auto_radiomics needs mirp: pip install 'her2net[radiomics]'")
    project.plan.model_copy(update={"tables": tables}).save(paths.plan)
    project = load_project(paths)
    (name,) = project.plan.modalities
    for fold in range(project.plan.splits.n_folds):
        pipeline.train(project, name, fold, TrainOptions(quiet=True, seed=seed, restart=True))
    pipeline.ensemble(project, name, tta=False, device="cpu", quiet=True)
    for table in tables:
        for fold in range(project.plan.splits.n_folds):
            pipeline.train_table(project, table, fold, restart=True, quiet=True)
        pipeline.ensemble_table(project, table, quiet=True)
    pipeline.fuse(project)
    paths.plan.unlink()  # edited; the next fold plans anew
    return _read(paths.model(FUSION) / "test.csv")


def paper(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
    """The paper's recipe from scratch, one model on all training cases, as many epochs as fit (at least one)."""
    project = _plan(paths, PlanOptions(preset="paper", n_workers=1, quiet=True))
    (name,) = project.plan.modalities
    section, n = project.plan.modalities[name], len(project.dataset.train)
    training, size = section.training, section.preprocessing.input_vox
    speed = measure_speed(training.network, size, section.n_inputs, training.batch_size, inspect_machine("cpu"))
    epochs = min(training.epochs, max(1, int(seconds * speed / n)))
    return _train(project, TrainOptions(epochs=epochs, seed=seed, pretrained="none", quiet=True, restart=True), ["all"])


def auto_folds(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
    """her2net as it comes, as `her2net_predict` predicts a new image: the mean of its folds."""
    project = _plan(paths, PlanOptions(preset="auto", budget_h=seconds / 3600, n_workers=1, quiet=True))
    options = TrainOptions(device=choose_device("auto"), seed=seed, quiet=True, restart=True)
    return _train(project, options, list(range(project.plan.splits.n_folds)))


def _plan(paths: DatasetPaths, options: PlanOptions) -> Project:
    pipeline.plan(paths, options)
    return load_project(paths)


def _train(project: Project, options: TrainOptions, folds: Sequence[int | str]) -> Scores:
    """Train models on the folds, or one on "all" cases; return the mean of what they say of the held-out cases."""
    (name,) = project.plan.modalities
    section, files = project.plan.modalities[name], project.files(name, project.test(name))
    for fold in folds:
        pipeline.train(project, name, fold, options)
    networks = [load_network(project.paths, section, name, fold, options.device) for fold in folds]
    probs, _ = predict_files(networks, section, files, tta=False, n_workers=1, quiet=True)
    return dict(zip((file.case_id for file in files), probs[:, 1].tolist(), strict=True))


def _read(path: Path) -> Scores:
    table = read_predictions(path)
    return dict(zip(table.case_ids, table.probs[:, 1], strict=True))
