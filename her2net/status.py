"""What is done, stale, running or missing: the freshness of every artefact, by digest.

`her2net_status` prints it, `her2net_run` acts on it; nothing else decides what to repeat.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from her2net.ensemble import EnsembleRecord, ensemble_inputs
from her2net.errors import Her2netError, MissingArtefactError, StaleArtefactError
from her2net.evaluate.evaluation import evaluation_inputs, recorded_inputs
from her2net.evaluate.facts import facts_of_dataset
from her2net.fuse.stage import FUSION, FusionRecord, fusion_inputs
from her2net.paths import DatasetPaths
from her2net.preprocess.cache import cache_is_fresh
from her2net.project import Project, load_project
from her2net.report.stage import recorded_report, report_inputs
from her2net.train.data import select_fold
from her2net.train.fold import TrainOptions, effective_training, fold_inputs, read_record

State = Literal["done", "stale", "running", "interrupted", "missing"]


@dataclass(frozen=True)
class StageState:
    """State of one artefact, why, and the command that makes it."""

    stage: str
    state: State
    why: str
    command: str

    def to_dict(self) -> dict[str, str]:
        """Return the fields as plain values."""
        return asdict(self)


def report_status(paths: DatasetPaths) -> list[StageState]:
    """Return the state of every stage of a dataset under one plan, in pipeline order."""
    dataset = f"-d {paths.folder}"
    try:
        project = load_project(paths)
    except MissingArtefactError as error:
        return [StageState("plan", "missing", str(error), f"her2net_plan {dataset}")]
    except Her2netError as error:
        return [StageState("plan", "stale", str(error), f"her2net_plan {dataset}")]
    edits = ", ".join(project.plan.edited)
    states = [StageState("plan", "done", f"edited by you: {edits}" if edits else "", f"her2net_plan {dataset}")]
    for name in project.plan.modalities:
        states.append(cache_state(project, name))
        states += [fold_state(project, name, k) for k in range(project.plan.splits.n_folds)]
        states.append(ensemble_state(project, name))
    if len(project.plan.modalities) > 1:
        states.append(fusion_state(project))
    return [*states, evaluation_state(project), report_state(project)]


def cache_state(project: Project, modality: str) -> StageState:
    """State of the cache of one modality."""
    section = project.plan.modalities[modality]
    path = project.paths.cache(modality, section.preprocessing_digest)
    files = project.files(modality, project.training(modality))
    command = f"her2net_plan -d {project.paths.folder}"
    if cache_is_fresh(path, files, section.preprocessing):
        return StageState(f"cache {modality}", "done", f"{len(files)} cases", command)
    state: State = "stale" if path.exists() else "missing"
    return StageState(f"cache {modality}", state, "images, masks or the plan's preprocessing have changed" * path.exists(), command)


def fold_state(project: Project, modality: str, fold: int, options: TrainOptions | None = None) -> StageState:
    """State of one fold; a run made with other command-line options than `options` counts as what it is."""
    command = f"her2net_train {modality} {fold} -d {project.paths.folder}"
    stage = f"train {modality} fold {fold}"
    try:
        record = read_record(project.paths.fold(modality, fold))
    except Her2netError as error:
        return StageState(stage, "stale", str(error), f"{command} --restart")
    if record is None:
        return StageState(stage, "missing", "", command)
    section = project.plan.modalities[modality]
    cases = select_fold(project.dataset.train, modality, fold, project.plan, project.splits)
    digests = {"training": project.part_digest(modality, cases.training),
               "held_out": project.part_digest(modality, cases.held_out)}  # fmt: skip
    chosen = options or TrainOptions(epochs=record.training.epochs, seed=record.training.seed)
    training = effective_training(section, chosen)
    if options is None or options.pretrained is None:
        training = training.model_copy(update={"initialisation": record.training.initialisation})
    expected = fold_inputs(training, section, digests, "") | {"weights": record.made_from.get("weights", "")}
    changed = _changed(record.made_from, expected)
    if changed:
        return StageState(stage, "stale", f"changed since: {changed}", f"{command} --restart")
    if record.status == "finished" and record.epochs_done >= training.epochs:
        return StageState(stage, "done", f"{record.epochs_done} epochs", command)
    alive = record.status == "running" and _is_alive(record.pid)
    return StageState(stage, "running" if alive else "interrupted", f"{record.epochs_done} of {training.epochs} epochs", command)


def ensemble_state(project: Project, modality: str) -> StageState:
    """State of the pooled OOF and test tables of one modality."""
    paths, stage = project.paths, f"ensemble {modality}"
    command = f"her2net_ensemble {modality} -d {paths.folder}"
    try:
        record = EnsembleRecord.load(paths.model(modality) / "ensemble.json")
        files = project.files(modality, project.test(modality))
        expected = ensemble_inputs(paths, project.plan, modality, files, tta=record.tta)
    except MissingArtefactError as error:
        return StageState(stage, "missing", "" if "ensemble.json" in str(error) else str(error), command)
    return _judge(stage, record.made_from, expected, command)


def fusion_state(project: Project) -> StageState:
    """State of the fusion."""
    command = f"her2net_fuse -d {project.paths.folder}"
    try:
        record = FusionRecord.load(project.paths.model(FUSION) / "fusion.json")
        expected = fusion_inputs(project.paths, project.plan, fit_on=record.fitted_on)
    except MissingArtefactError:
        return StageState("fuse", "missing", "", command)
    return _judge("fuse", record.made_from, expected, command)


def evaluation_state(project: Project) -> StageState:
    """State of the evaluation."""
    command = f"her2net_evaluate -d {project.paths.folder}"
    try:
        recorded = recorded_inputs(project.paths)
        expected = evaluation_inputs(project.paths, model_names(project), facts_of_dataset(project.dataset))
    except MissingArtefactError:
        return StageState("evaluate", "missing", "", command)
    return _judge("evaluate", recorded, expected, command)


def require_evaluation(project: Project) -> None:
    """Refuse to go on without a fresh evaluation.

    Raises:
        MissingArtefactError: there is none.
        StaleArtefactError: it was made from other predictions.
    """
    found = evaluation_state(project)
    if found.state != "done":
        error = MissingArtefactError if found.state == "missing" else StaleArtefactError
        why = f" ({found.why})" if found.why else ""
        raise error(f"{project.paths.evaluation}: the evaluation is {found.state}{why}. Run {found.command} first.")


def report_state(project: Project) -> StageState:
    """State of the report."""
    command = f"her2net_report -d {project.paths.folder}"
    try:
        record = recorded_report(project)
    except MissingArtefactError:
        return StageState("report", "missing", "", command)
    expected = report_inputs(project, model_names(project), paper=record.paper)
    return _judge("report", record.made_from, expected, command + " --paper" * record.paper)


def report_has_paper(project: Project) -> bool:
    """Whether the report on disk compares with the published study; one made anew then does, too."""
    try:
        return recorded_report(project).paper
    except MissingArtefactError:
        return False


def model_names(project: Project) -> list[str]:
    """Names of the models that are evaluated: the modalities, and their fusion."""
    names = list(project.plan.modalities)
    return [*names, FUSION] if len(names) > 1 else names


def _judge(stage: str, recorded: dict[str, str], expected: dict[str, str], command: str) -> StageState:
    changed = _changed(recorded, expected)
    return StageState(stage, "stale" if changed else "done", f"changed since: {changed}" if changed else "", command)


def _changed(recorded: dict[str, str], expected: dict[str, str]) -> str:
    names: Sequence[str] = sorted({*recorded, *expected})
    return ", ".join(name for name in names if recorded.get(name) != expected.get(name))


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
