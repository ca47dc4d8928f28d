"""What is done, stale, running or missing: the freshness of every artefact, by digest.

`her2net_status` prints it, `her2net_run` acts on it; nothing else decides what to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from her2net.artefact import digest_json
from her2net.errors import Her2netError, MissingArtefactError
from her2net.evaluate.evaluation import evaluation_inputs, recorded_inputs
from her2net.evaluate.facts import facts_of_dataset
from her2net.fuse.sources import fusion_sources
from her2net.fuse.stage import FUSION, FusionRecord, fusion_inputs
from her2net.locks import find_holder
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.table_schema import CLINICAL
from her2net.project import Project, explain_plan_staleness, load_planned
from her2net.raw.dataset import digest_test_label_cells
from her2net.raw.scan import changed_files, rehash_changed
from her2net.report.stage import recorded_report, report_inputs
from her2net.states import (
    StageState,
    cache_state,
    ensemble_state,
    features_state,
    fold_state,
    judge,
    or_running,
    renamed_classes,
    table_ensemble_state,
    table_fold_state,
)
from her2net.train.data import ALL
from her2net.train.fold import read_record


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
        expected |= renamed_classes(project, (c.class_name for model in record.models for c in model.coefficients))
    except MissingArtefactError:
        return or_running(folder, StageState("fuse", "missing", "", command))
    except Her2netError as error:
        return StageState("fuse", "stale", str(error), command)
    return or_running(folder, judge("fuse", record.made_from, expected, command, [folder / "oof.csv"]))


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
        return or_running(folder, StageState("evaluate", "missing", "", command))
    except Her2netError as error:
        return StageState("evaluate", "stale", str(error), command)
    outputs = [folder / name for name in ("metrics.csv", "comparisons.csv", "thresholds.json")]
    return or_running(folder, judge("evaluate", recorded, expected, command, outputs))


def report_state(project: Project) -> StageState:
    """State of the report."""
    command, folder = f"her2net_report {project.paths.options}", project.paths.report.parent
    try:
        record = recorded_report(project)
        expected = report_inputs(project, model_names(project), paper=record.paper, pseudonymised=record.pseudonymised)
    except MissingArtefactError:
        return or_running(folder, StageState("report", "missing", "", command))
    command += " --paper" * record.paper + " --pseudonymise" * record.pseudonymised
    return or_running(folder, judge("report", record.made_from, expected, command, [project.paths.report]))


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
