"""The good datasets that are damaged: eight patients, two test patients, two modalities.

One is planned and preprocessed. The other, of two flat modalities, is trained, fused and evaluated, and has one run that was interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import make_paths
from raw_factory import write_dataset
from small_run import plan_options

from her2net import pipeline
from her2net.evaluate.evaluation import Evaluation, evaluation_inputs, write_evaluation
from her2net.evaluate.facts import facts_of_dataset
from her2net.evaluate.record import Metric
from her2net.evaluate.thresholds import Thresholds
from her2net.paths import DatasetPaths
from her2net.plan.stage import plan_dataset
from her2net.project import Project, load_project
from her2net.raw.dataset import digest_test_label_cells
from her2net.status import evaluation_remarks, model_names
from her2net.train import run as train_run
from her2net.train.fold import TrainOptions

FOLDER = "Dataset001_Tiny"
FOLDS = [["P000", "P001", "P002", "P003"], ["P004", "P005", "P006", "P007"]]


def make_good(root: Path) -> DatasetPaths:
    """Make the dataset and plan it."""
    paths = make_paths(root, FOLDER)
    write_dataset(paths.raw, n_patients=8, n_test=2)
    own = root / "own.json"
    own.write_text(json.dumps(FOLDS), encoding="utf-8")
    plan_dataset(paths, plan_options(root, splits=str(own)))
    return paths


def make_trained(root: Path) -> DatasetPaths:
    """Make a dataset of the flat modalities US and MG and run everything but the report on it."""
    paths = make_paths(root, FOLDER)
    flat = {name: {"channels": {"0": name}, "file_ending": ".png"} for name in ("US", "MG")}
    write_dataset(paths.raw, n_patients=8, n_test=2, modalities=flat)
    for folder in sorted(paths.raw.glob("*/MRI")):
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name("US"), folder.with_name("MG"))
    (root / "own.json").write_text(json.dumps(FOLDS), encoding="utf-8")
    plan_dataset(paths, plan_options(root, splits=str(root / "own.json")))
    project = load_project(paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "plot_progress", lambda *_: None)
        patch.setattr(train_run, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        for name in flat:
            for fold in (0, 1):
                pipeline.train(project, name, fold, TrainOptions(device="cpu", epochs=2, quiet=True))
            pipeline.ensemble(project, name, tta=False, device="cpu", quiet=True)
        pipeline.fuse(project)
        _record_evaluation(project)
        patch.setattr(train_run.TrainingRun, "_finish", _stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(project, "US", "all", TrainOptions(device="cpu", epochs=2, quiet=True))
    return paths


def _record_evaluation(project: Project) -> None:
    """Write the record of an evaluation of one figure: a whole one takes ten times as long."""
    paths = project.paths
    cells = digest_test_label_cells(project.dataset)
    facts, remarks = facts_of_dataset(project.dataset), evaluation_remarks(project)
    made_from = evaluation_inputs(paths, model_names(project), facts, cells, remarks, project.dataset.spec.ordinal)
    one = Metric(model="US", cohort="oof", metric="auc", value=0.5, ci_low=0.1, ci_high=0.9, ci_method="DeLong", n=8, n_positive=4,
                 threshold=None)  # fmt: skip
    evaluation = Evaluation(made_from=made_from, class_names=list(project.plan.class_names), remarks={}, metrics=[one], comparisons=[])
    write_evaluation(paths.evaluation, evaluation, Thresholds(made_from=made_from, models={}), {}, None)


def _stop(run: train_run.TrainingRun) -> None:
    raise KeyboardInterrupt


def copy_good(good: DatasetPaths, root: Path) -> DatasetPaths:
    """Copy a good dataset with all that was made from it; checkpoints are linked, as nothing writes into one that is there."""

    def copy(source: str, target: str) -> None:
        linked = source.endswith(".pt") and os.stat(source).st_dev == os.stat(os.path.dirname(target)).st_dev
        (os.link if linked else shutil.copy2)(source, target)

    shutil.copytree(good.roots.raw.parent, root, copy_function=copy)
    return make_paths(root, FOLDER)
