"""What is done, stale, running or missing: the freshness of every artefact, by digest.

`her2net_status` prints it, `her2net_run` acts on it; nothing else decides what to repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from her2net.artefact import digest_json
from her2net.ensemble import EnsembleRecord, ensemble_inputs
from her2net.errors import Her2netError, MissingArtefactError
from her2net.evaluate.evaluation import evaluation_inputs, recorded_inputs
from her2net.evaluate.facts import facts_of_dataset
from her2net.fuse.sources import fusion_sources
from her2net.fuse.stage import FUSION, FusionRecord, fusion_inputs
from her2net.locks import find_holder
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.table_schema import CLINICAL
from her2net.preprocess.cache import explain_staleness
from her2net.project import Project, explain_plan_staleness, load_planned
from her2net.raw.dataset import digest_test_label_cells
from her2net.raw.scan import changed_files, rehash_changed
from her2net.report.stage import recorded_report, report_inputs
from her2net.tabular.features import cases_with, missing_features
from her2net.tabular.record import TableEnsemble, TableExplanation
from her2net.tabular.stage import EXPLANATION, read_fold, split_fold
from her2net.tabular.stage import ensemble_inputs as ensemble_inputs_of_table
from her2net.tabular.stage import fold_inputs as fold_inputs_of_table
from her2net.train.data import ALL, select_fold
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


@dataclass(frozen=True)
class FoldTiming:
    """Where the training time of one fold went; `seconds` per phase, over all `epochs` done."""

    modality: str
    fold: str
    epochs: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values."""
        return asdict(self)


def report_timing(paths: DatasetPaths) -> list[FoldTiming]:
    """Return the timeline of every fold that has a run, fresh or not.

    Raises:
        MissingArtefactError: no plan, or nothing was trained.
    """
    plan = Plan.load(paths.plan)
    places = [(name, str(k)) for name in plan.modalities for k in (*range(plan.splits.n_folds), ALL)]
    records = [read_record(paths.fold(name, k)) for name, k in places]
    found = [FoldTiming(r.modality, r.fold, r.epochs_done, r.duration_s) for r in records if r is not None]
    if not found:
        raise MissingArtefactError(f"{paths.results}: nothing was trained yet. Run her2net_train {paths.options} first.")
    return found


def report_status(paths: DatasetPaths) -> list[StageState]:
    """Return the state of every stage of a dataset under one plan, in pipeline order. Nothing is written."""
    command = f"her2net_plan {paths.options}"
    holder = find_holder(paths.preprocessed)
    try:
        project = load_planned(paths)
        plan, project = _plan_state(project, command)
    except MissingArtefactError as error:
        plan, project = StageState("plan", "missing", str(error), command), None
    except Her2netError as error:
        plan, project = StageState("plan", "stale" if paths.plan.exists() else "missing", str(error), command), None
    if holder is not None:
        plan = StageState("plan", "running", f"by {holder}", command)
    return [plan] if project is None else [plan, *_later_states(project)]


def _plan_state(project: Project, command: str) -> tuple[StageState, Project]:
    """Judge the plan; where files have changed, the project returned holds their content as it is now."""
    changed = changed_files(project.dataset, project.scan)
    files = f"{len(changed)} files came, went or changed, the first {changed[0]}" if changed else ""
    if changed:
        project = replace(project, scan=rehash_changed(project.dataset, project.scan))
    why = explain_plan_staleness(project)
    if why or changed:
        same = "; the content that is trained on is the same, her2net_plan takes note of it" if not why else ""
        return StageState("plan", "stale", f"{files or why}{same}", command), project
    edits = ", ".join(project.plan.edited)
    return StageState("plan", "done", f"edited by you: {edits}" if edits else "", command), project


def _later_states(project: Project) -> list[StageState]:
    """States after the plan; what rests on a stage that is not done is not done either."""
    states, tables = [], []
    for name in (*project.plan.modalities, *project.plan.tables):
        *folds, pooled = model_states(project, name)
        tables.append(_after(folds, pooled))
        inputs = [cache_state(project, name)] if name in project.plan.modalities else features_state(project, name)
        states += [*inputs, *folds, tables[-1]]
    if FUSION in model_names(project):
        tables.append(_after(tables, fusion_state(project)))
        states.append(tables[-1])
    evaluation = _after(tables, evaluation_state(project))
    return [*states, evaluation, _after([evaluation], report_state(project))]


def model_states(project: Project, name: str) -> list[StageState]:
    """State of each fold of a model, then of its pooled tables; of the fusion, which has no folds, the latter alone."""
    if name == FUSION:
        return [fusion_state(project)]
    is_table = name in project.plan.tables
    of_fold, of_pooled = (table_fold_state, table_ensemble_state) if is_table else (fold_state, ensemble_state)
    pooled = of_pooled(project, name)  # first: a training that begins just now is seen below
    return [*(of_fold(project, name, fold) for fold in range(project.plan.splits.n_folds)), pooled]


def _after(earlier: Sequence[StageState], state: StageState) -> StageState:
    wanting = next((other for other in earlier if other.state != "done"), None)
    if wanting is None or state.state != "done":
        return state
    return replace(state, state="stale", why=f"rests on: {wanting.stage}, which is {wanting.state}")


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
        return _or_running(folder, StageState(stage, "missing", why, command))
    except Her2netError as error:
        return StageState(stage, "stale", str(error), command)
    outputs = [folder / "oof.csv", *([folder / "test.csv"] if record.n_test else [])]
    return _or_running(folder, _judge(stage, record.made_from, expected, command, outputs))


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
            return _or_running(folder, StageState(stage, "missing", "", command))
        training, held_out = split_fold(project, name, fold)
        expected = fold_inputs_of_table(project, name, training, held_out)
    except Her2netError as error:
        return StageState(stage, "stale", str(error), f"{command} --restart")
    found = _judge(stage, record.made_from, expected, f"{command} --restart", [folder / "oof.csv"] if held_out else [])
    why = found.why or f"{record.model.n_cases} cases, {record.model.chosen.learner.replace('_', ' ')}"
    return _or_running(folder, replace(found, why=why, command=command if found.state == "done" else found.command))


def table_ensemble_state(project: Project, name: str) -> StageState:
    """State of the pooled OOF and test tables of a table model."""
    folder = project.paths.model(name)
    stage, command = f"ensemble {name}", f"her2net_ensemble {name} {project.paths.options}"
    try:
        record = TableEnsemble.load(folder / "ensemble.json")
        expected = ensemble_inputs_of_table(project, name)
        if (folder / EXPLANATION).is_file():
            expected |= _renamed(project, (w.class_name for w in TableExplanation.load(folder / EXPLANATION).weights))
    except MissingArtefactError as error:
        return _or_running(folder, StageState(stage, "missing", "" if "ensemble.json" in str(error) else str(error), command))
    except Her2netError as error:
        return StageState(stage, "stale", str(error), command)
    outputs = [folder / name for name in ("oof.csv", EXPLANATION, *(["test.csv"] if record.n_test else []))]
    return _or_running(folder, _judge(stage, record.made_from, expected, command, outputs))


def fusion_has_covariates(project: Project) -> bool:
    """Whether the fusion on disk has the covariates; one made anew then does, too."""
    try:
        return FusionRecord.load(project.paths.model(FUSION) / "fusion.json").covariates and CLINICAL in project.plan.tables
    except Her2netError:
        return False


def fusion_choices(project: Project) -> dict[str, Any]:
    """Return the options of the fusion on disk, so that one made anew has them, too."""
    try:
        record = FusionRecord.load(project.paths.model(FUSION) / "fusion.json")
    except Her2netError:
        return {}
    return {"fit_on": record.fitted_on, "covariates": fusion_has_covariates(project)}


def fusion_state(project: Project) -> StageState:
    """State of the fusion."""
    covariates = fusion_has_covariates(project)
    command, folder = f"her2net_fuse {project.paths.options}" + " --covariates" * covariates, project.paths.model(FUSION)
    try:
        record = FusionRecord.load(folder / "fusion.json")
        on_test = record.fitted_on == "test"
        command += " --fit-on test" * on_test
        expected = fusion_inputs(project.paths, project.plan, fit_on=record.fitted_on, covariates=covariates,
                                 label_cells=digest_test_label_cells(project.dataset) if on_test else "")  # fmt: skip
        expected |= _renamed(project, (c.class_name for model in record.models for c in model.coefficients))
    except MissingArtefactError:
        return _or_running(folder, StageState("fuse", "missing", "", command))
    except Her2netError as error:
        return StageState("fuse", "stale", str(error), command)
    return _or_running(folder, _judge("fuse", record.made_from, expected, command, [folder / "oof.csv"]))


def evaluation_state(project: Project) -> StageState:
    """State of the evaluation."""
    command, folder = f"her2net_evaluate {project.paths.options}", project.paths.evaluation
    try:
        recorded = recorded_inputs(project.paths)
        cells = digest_test_label_cells(project.dataset)
        facts, remarks, ordinal = facts_of_dataset(project.dataset), evaluation_remarks(project), project.dataset.spec.ordinal
        expected = evaluation_inputs(project.paths, model_names(project), facts, cells, remarks, ordinal)
        expected["class_names"] = digest_json(project.plan.class_names)
    except MissingArtefactError:
        return _or_running(folder, StageState("evaluate", "missing", "", command))
    except Her2netError as error:
        return StageState("evaluate", "stale", str(error), command)
    outputs = [folder / name for name in ("metrics.csv", "comparisons.csv", "thresholds.json")]
    return _or_running(folder, _judge("evaluate", recorded, expected, command, outputs))


def report_state(project: Project) -> StageState:
    """State of the report."""
    command, folder = f"her2net_report {project.paths.options}", project.paths.report.parent
    try:
        record = recorded_report(project)
        expected = report_inputs(project, model_names(project), paper=record.paper, pseudonymised=record.pseudonymised)
    except MissingArtefactError:
        return _or_running(folder, StageState("report", "missing", "", command))
    command += " --paper" * record.paper + " --pseudonymise" * record.pseudonymised
    return _or_running(folder, _judge("report", record.made_from, expected, command, [project.paths.report]))


def report_choices(project: Project) -> dict[str, bool]:
    """Return the options of the report on disk, so that one made anew has them, too."""
    try:
        record = recorded_report(project)
    except MissingArtefactError:
        return {}
    return {"paper": record.paper, "pseudonymise": record.pseudonymised}


def model_names(project: Project) -> list[str]:
    """Names of the models that are evaluated: the modalities, the tables, and the fusion if there is more than one to fuse."""
    plan = project.plan
    fused = fusion_sources(plan, covariates=fusion_has_covariates(project))
    return [*plan.modalities, *plan.tables, *([FUSION] if len(fused) > 1 else [])]


def evaluation_remarks(project: Project) -> dict[str, str]:
    """Return model -> why its figures are optimistic; what is fused says so of the fusion, too.

    Raises:
        MissingArtefactError: not fused yet.
    """
    remarks = dict(project.plan.optimistic)
    if FUSION in model_names(project):
        fused = FusionRecord.load(project.paths.model(FUSION) / "fusion.json")
        remarks[FUSION] = "; ".join(filter(None, [*list(remarks.values())[:1], fused.remark]))
    return remarks


def _judge(
    stage: str, recorded: dict[str, str], expected: dict[str, str], command: str, outputs: Sequence[Path]
) -> StageState:
    changed = _changed(recorded, expected)
    if changed:
        return StageState(stage, "stale", f"changed since: {changed}", command)
    gone = [path.name for path in outputs if not path.is_file()]
    return StageState(stage, "stale" if gone else "done", f"vanished: {', '.join(gone)}" if gone else "", command)


def _renamed(project: Project, names: Iterable[str]) -> dict[str, str]:
    """Return an input that no record has where one names classes (but the first) as the dataset no longer does."""
    return {} if set(names) <= set(project.plan.class_names[1:]) else {"class_names": "renamed"}


def _or_running(folder: Path, state: StageState) -> StageState:
    holder = find_holder(folder)
    return state if holder is None else replace(state, state="running", why=f"by {holder}")


def _changed(recorded: dict[str, str], expected: dict[str, str]) -> str:
    names: Sequence[str] = sorted({*recorded, *expected})
    return ", ".join(name for name in names if recorded.get(name) != expected.get(name))
