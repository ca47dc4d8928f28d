"""What the state of an artefact is, and those of caches, features, folds and ensembles; `her2net.status` has the stages after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from her2net.ensemble import EnsembleRecord, ensemble_inputs
from her2net.errors import Her2netError, MissingArtefactError
from her2net.locks import find_holder
from her2net.preprocess.cache import explain_staleness
from her2net.project import Project
from her2net.tabular.features import cases_with, missing_features
from her2net.tabular.record import TableEnsemble, TableExplanation
from her2net.tabular.stage import EXPLANATION, read_fold, split_fold
from her2net.tabular.stage import ensemble_inputs as ensemble_inputs_of_table
from her2net.tabular.stage import fold_inputs as fold_inputs_of_table
from her2net.train.data import select_fold
from her2net.train.fold import TrainOptions, fold_inputs, is_complete, read_record, recorded_training

State = Literal["done", "stale", "running", "interrupted", "missing"]
VANISHED = "files of the finished fold have vanished"


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


def cache_state(project: Project, modality: str) -> StageState:
    """State of the cache of one modality; its pixels are not read."""
    section = project.plan.modalities[modality]
    path = project.paths.cache(modality, section.preprocessing_digest)
    files = project.files(modality, project.training(modality))
    stage, command = f"cache {modality}", f"her2net_plan {project.paths.options}"
    try:
        why = explain_staleness(path, files, section.preprocessing)
    except MissingArtefactError:
        return StageState(stage, "missing", "none for the preprocessing that the plan asks for", command)
    except Her2netError as error:
        return StageState(stage, "stale", str(error), command)
    return StageState(stage, "stale" if why else "done", why or f"{len(files)} cases", command)


def fold_state(project: Project, modality: str, fold: int, options: TrainOptions | None = None) -> StageState:
    """State of one fold; a run made with other command-line options than `options` counts as what it is."""
    command = f"her2net_train {modality} {fold} {project.paths.options}"
    stage, folder = f"train {modality} fold {fold}", project.paths.fold(modality, fold)
    holder = find_holder(folder)
    try:
        record = read_record(folder)
    except Her2netError as error:
        return StageState(stage, "stale", str(error), f"{command} --restart")
    if record is None:
        return StageState(stage, "running" if holder else "missing", f"by {holder}" if holder else "", command)
    section = project.plan.modalities[modality]
    training = recorded_training(section, record, options)
    if holder is not None:
        return StageState(stage, "running", f"{record.epochs_done} of {training.epochs} epochs, by {holder}", command)
    cases = select_fold(project.dataset.train, modality, fold, project.plan, project.splits)
    digests = {"training": project.part_digest(modality, cases.training),
               "held_out": project.part_digest(modality, cases.held_out)}  # fmt: skip
    expected = fold_inputs(training, section, digests, record.made_from.get("weights", ""))
    changed = _changed(record.made_from, expected)
    if changed:
        return StageState(stage, "stale", f"changed since: {changed}", f"{command} --restart")
    if record.status == "finished" and not is_complete(folder, record):
        return StageState(stage, "interrupted", VANISHED, command)
    if record.status == "finished" and record.epochs_done >= training.epochs:
        return StageState(stage, "done", f"{record.epochs_done} epochs", command)
    return StageState(stage, "interrupted", f"{record.epochs_done} of {training.epochs} epochs", command)


def ensemble_state(project: Project, modality: str) -> StageState:
    """State of the pooled OOF and test tables of one modality."""
    paths, folder = project.paths, project.paths.model(modality)
    stage, command = f"ensemble {modality}", f"her2net_ensemble {modality} {paths.options}"
    try:
        record = EnsembleRecord.load(folder / "ensemble.json")
        files = project.files(modality, project.test(modality))
        expected = ensemble_inputs(paths, project.plan, modality, files, tta=record.tta)
    except MissingArtefactError as error:
        why = "" if "ensemble.json" in str(error) else str(error)
        return or_running(folder, StageState(stage, "missing", why, command))
    except Her2netError as error:
        return StageState(stage, "stale", str(error), command)
    outputs = [folder / "oof.csv", *([folder / "test.csv"] if record.n_test else [])]
    return or_running(folder, judge(stage, record.made_from, expected, command, outputs))


def features_state(project: Project, name: str) -> list[StageState]:
    """State of the features of a radiomics table; covariates need none."""
    table = project.plan.tables[name]
    if table.modality is None:
        return []
    cases = cases_with(table, project.dataset.train, project.scan)
    stage, command = f"features {name}", f"her2net_plan {project.paths.options}"
    try:
        missing = missing_features(project.paths, name, table, project.files(table.modality, cases))
    except Her2netError as error:
        return [StageState(stage, "stale", str(error), command)]
    if len(missing) == len(cases):
        return [StageState(stage, "missing", "none for what the plan asks for", command)]
    why = f"{len(missing)} of {len(cases)} cases are to be computed" if missing else f"{len(cases)} cases"
    return [StageState(stage, "stale" if missing else "done", why, command)]


def table_fold_state(project: Project, name: str, fold: int) -> StageState:
    """State of one fold of a table model."""
    stage, folder = f"train {name} fold {fold}", project.paths.fold(name, fold)
    command = f"her2net_train {name} {fold} {project.paths.options}"
    try:
        record = read_fold(folder)
        if record is None:
            return or_running(folder, StageState(stage, "missing", "", command))
        training, held_out = split_fold(project, name, fold)
        expected = fold_inputs_of_table(project, name, training, held_out)
    except Her2netError as error:
        return StageState(stage, "stale", str(error), f"{command} --restart")
    found = judge(stage, record.made_from, expected, f"{command} --restart", [folder / "oof.csv"] if held_out else [])
    why = found.why or f"{record.model.n_cases} cases, {record.model.chosen.learner.replace('_', ' ')}"
    return or_running(folder, replace(found, why=why, command=command if found.state == "done" else found.command))


def table_ensemble_state(project: Project, name: str) -> StageState:
    """State of the pooled OOF and test tables of a table model."""
    folder = project.paths.model(name)
    stage, command = f"ensemble {name}", f"her2net_ensemble {name} {project.paths.options}"
    try:
        record = TableEnsemble.load(folder / "ensemble.json")
        expected = ensemble_inputs_of_table(project, name)
        if (folder / EXPLANATION).is_file():
            expected |= renamed_classes(project, (w.class_name for w in TableExplanation.load(folder / EXPLANATION).weights))
    except MissingArtefactError as error:
        return or_running(folder, StageState(stage, "missing", "" if "ensemble.json" in str(error) else str(error), command))
    except Her2netError as error:
        return StageState(stage, "stale", str(error), command)
    outputs = [folder / name for name in ("oof.csv", EXPLANATION, *(["test.csv"] if record.n_test else []))]
    return or_running(folder, judge(stage, record.made_from, expected, command, outputs))


def judge(
    stage: str, recorded: dict[str, str], expected: dict[str, str], command: str, outputs: Sequence[Path]
) -> StageState:
    """Return the state of what was made from recorded digests, beside those it would be made from now, and of its files."""
    changed = _changed(recorded, expected)
    if changed:
        return StageState(stage, "stale", f"changed since: {changed}", command)
    gone = [path.name for path in outputs if not path.is_file()]
    return StageState(stage, "stale" if gone else "done", f"vanished: {', '.join(gone)}" if gone else "", command)


def renamed_classes(project: Project, names: Iterable[str]) -> dict[str, str]:
    """Return an input that no record has where one names classes (but the first) as the dataset no longer does."""
    return {} if set(names) <= set(project.plan.class_names[1:]) else {"class_names": "renamed"}


def or_running(folder: Path, state: StageState) -> StageState:
    """Return the state, or that somebody is at work in the folder."""
    holder = find_holder(folder)
    return state if holder is None else replace(state, state="running", why=f"by {holder}")


def _changed(recorded: dict[str, str], expected: dict[str, str]) -> str:
    names: Sequence[str] = sorted({*recorded, *expected})
    return ", ".join(name for name in names if recorded.get(name) != expected.get(name))
