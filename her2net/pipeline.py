"""The whole of her2net in the order in which it happens.

raw → fingerprint → plan → splits → preprocess → train → ensemble → fuse → evaluate

Each function is one command. Stages are plain functions from artefacts to artefacts;
this file only says in which order they run and which are fresh already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from her2net import status
from her2net.ensemble import EnsembleRecord, ensemble_modality
from her2net.evaluate.evaluation import Evaluation, Options, evaluate_dataset
from her2net.fuse.stage import FUSION, FusionRecord, fuse_modalities
from her2net.paths import DatasetPaths
from her2net.plan.machine import choose_device
from her2net.plan.schema import Plan
from her2net.plan.stage import PlanOptions, plan_dataset
from her2net.predict import Predictor
from her2net.predictions import Predictions, read_predictions
from her2net.progress import available_cores
from her2net.project import Project, load_project
from her2net.raw.dataset import read_test_labels
from her2net.selftest.record import SelfTest
from her2net.selftest.stage import run_selftest
from her2net.train.data import select_fold
from her2net.train.fold import RunRecord, TrainOptions, train_fold

Say = Callable[[str], None]


def plan(paths: DatasetPaths, options: PlanOptions) -> tuple[Plan, list[str]]:
    """Verify the raw data, fingerprint it, decide, split and preprocess."""
    return plan_dataset(paths, options)


def train(project: Project, modality: str, fold: int | str, options: TrainOptions) -> RunRecord:
    """Train one fold; `all` trains on every case."""
    cases = select_fold(project.dataset.train, modality, fold, project.plan, project.splits)
    options = replace(options, device=choose_device(options.device))
    return train_fold(project.paths, project.plan, modality, fold, cases, options)


def ensemble(project: Project, modality: str, *, tta: bool, device: str, quiet: bool) -> EnsembleRecord:
    """Pool the OOF predictions of a modality and predict imagesTs with all folds."""
    test = project.test(modality)
    return ensemble_modality(
        project.paths, project.plan, modality, project.training(modality), test, project.files(modality, test),
        tta=tta, device=choose_device(device), n_workers=available_cores(), quiet=quiet,
    )  # fmt: skip


def fuse(project: Project, *, fit_on: Literal["oof", "test"] = "oof") -> FusionRecord:
    """Fuse the modalities."""
    folds = project.splits.folds(project.plan.splits)
    labels = partial(read_test_labels, project.dataset, purpose="fuse --fit-on test", log=project.paths.test_openings)
    return fuse_modalities(project.paths, project.plan, folds, fit_on=fit_on, test_labels=labels)


def predict_test(project: Project, predictor: Predictor, *, tta: bool, quiet: bool) -> dict[str, Predictions]:
    """Predict the dataset's own test cases as if they were new."""
    files = {name: project.files(name, project.test(name)) for name in project.plan.modalities}
    patients = {case.case_id: case.patient_id for case in project.dataset.test}
    return predictor.predict_cases(files, patients=patients, tta=tta, quiet=quiet)


def evaluate(project: Project) -> Evaluation:
    """Evaluate every model on OOF and test predictions; the one stage that opens the test labels."""
    labels = partial(read_test_labels, project.dataset, purpose="evaluate", log=project.paths.test_openings)
    names = status.model_names(project)
    remarks = dict(project.plan.optimistic)
    if remarks and FUSION in names:
        remarks[FUSION] = next(iter(remarks.values()))
    if FUSION in names:
        fused = FusionRecord.load(project.paths.model(FUSION) / "fusion.json")
        remarks[FUSION] = "; ".join(part for part in (remarks.get(FUSION, ""), fused.remark) if part)
    return evaluate_dataset(
        project.paths, names, test_labels=labels if project.dataset.test else None, optimistic=remarks,
        resembling_test_cases=project.splits.resembling_test_cases, class_names=project.plan.class_names,
        options=Options(ordinal=project.dataset.spec.ordinal),
    )  # fmt: skip


def selftest(project: Project, *, n_permutations: int, device: str, quiet: bool) -> SelfTest:
    """Look for shortcuts and leaks; the real models are compared with where they are trained and fresh."""
    names = [name for name in project.plan.modalities if status.ensemble_state(project, name).state == "done"]
    real = {name: read_predictions(project.paths.model(name) / "oof.csv") for name in names}
    return run_selftest(project, real, n_permutations=n_permutations, device=choose_device(device), quiet=quiet)


def run(paths: DatasetPaths, plan_options: PlanOptions, train_options: TrainOptions, say: Say = print) -> Evaluation | None:
    """Do everything that is not done yet, in order; return the evaluation if it was made now."""
    _, remarks = plan(paths, plan_options)
    for remark in remarks:
        say(remark)
    project = load_project(paths)
    for name in project.plan.modalities:
        for fold in range(project.plan.splits.n_folds):
            found = status.fold_state(project, name, fold, train_options)
            if _needed(found, say):
                train(project, name, fold, replace(train_options, restart=found.state == "stale"))
        if _needed(status.ensemble_state(project, name), say):
            ensemble(project, name, tta=False, device=train_options.device, quiet=train_options.quiet)
    if len(project.plan.modalities) > 1 and _needed(status.fusion_state(project), say):
        fuse(project)
    return evaluate(project) if _needed(status.evaluation_state(project), say) else None


def _needed(found: status.StageState, say: Say) -> bool:
    if found.state == "done":
        say(f"{found.stage}: fresh, not repeated")
        return False
    say(f"{found.stage}: {found.state}" + (f" ({found.why})" if found.why else ""))
    return True

