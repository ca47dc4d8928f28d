"""The whole of her2net in the order in which it happens.

raw → fingerprint → plan → splits → preprocess → train → ensemble → fuse → evaluate → report

Each function is one command. Stages are plain functions from artefacts to artefacts;
this file only says in which order they run and which are fresh already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from her2net import require, states, status
from her2net.archive.licence import Licence
from her2net.archive.write import WrittenArchive, export_model
from her2net.artefact import sweep_temporaries
from her2net.ensemble import EnsembleRecord, ensemble_modality
from her2net.errors import StaleArtefactError, join_problems
from her2net.evaluate.evaluation import Evaluation, Options, choose_thresholds, evaluate_dataset, recorded_options
from her2net.evaluate.facts import facts_of_dataset
from her2net.explain.contour_record import ContourRecord, contour_inputs
from her2net.explain.contours import move_contours
from her2net.explain.record import ExplainRecord, read_galleries, set_name
from her2net.explain.stage import explain_modality, write_features
from her2net.explain.subjects import ExplainOptions, Subject, choose_subjects, evenly_spaced
from her2net.fuse.sources import fusion_sources
from her2net.fuse.stage import FUSION, FusionRecord, fuse_modalities, read_tables
from her2net.locks import hold
from her2net.paths import DatasetPaths
from her2net.plan.machine import choose_device
from her2net.plan.schema import Plan
from her2net.plan.stage import PlanOptions, plan_dataset
from her2net.predict import Predictor
from her2net.predictions import Predictions, check_table, read_predictions
from her2net.project import Project, load_project
from her2net.pseudonyms import load_key
from her2net.raw.dataset import Case, digest_test_label_cells, read_test_labels
from her2net.report.material import OWN_PURPOSE
from her2net.report.stage import write_report
from her2net.selftest.record import SelfTest
from her2net.selftest.stage import run_selftest
from her2net.tabular.added import measure_added_value, remove_added_value, write_added_value
from her2net.tabular.features import cases_with
from her2net.tabular.record import TableFold
from her2net.tabular.stage import ensemble_table, train_table_fold
from her2net.train.fold import RunRecord, TrainOptions
from her2net.train.together import FoldJob, train_jobs

Say = Callable[[str], None]
Fold = tuple[str, int | str, TrainOptions]

N_EXPLAINED = 4
"""Cases of each modality that `run` explains; the rest is a matter of seconds per case, and of `her2net_explain`."""


def plan(paths: DatasetPaths, options: PlanOptions) -> tuple[Plan, list[str]]:
    """Verify the raw data, fingerprint it, decide, split and preprocess."""
    with hold(paths.preprocessed, f"the plan of {paths.folder}"):
        sweep_temporaries(paths.preprocessed, paths.plan.parent, paths.caches)
        return plan_dataset(paths, options)


def train(project: Project, modality: str, fold: int | str, options: TrainOptions) -> RunRecord:
    """Train one fold of a modality; `all` trains on every case."""
    return next(record for _, record in train_folds(project, [(modality, fold, options)]))


def train_folds(project: Project, folds: Sequence[Fold]) -> Iterator[tuple[FoldJob, RunRecord]]:
    """Train folds, and yield each when it is done; on a graphics card several at once."""
    jobs = [FoldJob(project.paths, name, fold, replace(options, device=choose_device(options.device)))
            for name, fold, options in folds]  # fmt: skip
    yield from train_jobs(project, jobs)


def train_table(project: Project, name: str, fold: int | str, *, restart: bool, quiet: bool) -> TableFold:
    """Fit one fold of a table model; `all` fits it to every case."""
    return train_table_fold(project, name, fold, restart=restart, quiet=quiet)


def ensemble(project: Project, modality: str, *, tta: bool, device: str, quiet: bool) -> EnsembleRecord:
    """Pool the OOF predictions of a modality and predict imagesTs with all folds."""
    test, folder = project.test(modality), project.paths.model(modality)
    with hold(folder, f"the ensemble of {modality}"):
        sweep_temporaries(folder)
        require.require_fresh_folds(project, modality, range(project.plan.splits.n_folds))
        return ensemble_modality(
            project.paths, project.plan, modality, project.training(modality), test, project.files(modality, test),
            tta=tta, device=choose_device(device), quiet=quiet,
        )  # fmt: skip


def fuse(project: Project, *, fit_on: Literal["oof", "test"] = "oof", covariates: bool = False) -> FusionRecord:
    """Fuse the modalities, the tables that the plan fuses, and the covariates if they are asked for."""
    folds = project.splits.folds(project.plan.splits)
    labels = partial(read_test_labels, project.dataset, purpose="fuse --fit-on test", log=project.paths.test_openings)
    with hold(project.paths.model(FUSION), "the fusion"):
        sweep_temporaries(project.paths.model(FUSION))
        _check_tables(project, fusion_sources(project.plan, covariates=covariates))
        return fuse_modalities(
            project.paths, project.plan, folds, fit_on=fit_on, test_labels=labels, covariates=covariates,
            label_cells=digest_test_label_cells(project.dataset) if fit_on == "test" else "",
        )  # fmt: skip


def _check_tables(project: Project, models: Sequence[str]) -> None:
    """Refuse OOF tables of stages that are not done, and those that somebody changed into tables of another dataset."""
    tables = {name: read_predictions(project.paths.model(name) / "oof.csv") for name in models}
    require.require_models(project, [name for name in models if name != FUSION])
    for name, table in tables.items():
        path = project.paths.model(name) / "oof.csv"
        cases = _predicted_cases(project, name)
        command = "her2net_fuse" if name == FUSION else f"her2net_ensemble {name}"
        check_table(path, table, cases, n_classes=project.plan.n_classes, made_by=command)
        absent = sorted({case.case_id for case in cases} - set(table.case_ids))
        if absent:
            raise StaleArtefactError(f"{path}: lacks {', '.join(absent[:5])}. Run {command} to make it anew.")
    if FUSION in models:  # last: a changed table makes it stale, and is what has to be named then
        require.require_models(project, [FUSION])


def _predicted_cases(project: Project, name: str) -> tuple[Case, ...]:
    """Training cases that the OOF table of a model holds."""
    if name == FUSION:
        return project.dataset.train
    if name in project.plan.tables:
        return cases_with(project.plan.tables[name], project.dataset.train, project.scan)
    return project.training(name)


def predict_test(project: Project, predictor: Predictor, *, tta: bool, quiet: bool) -> dict[str, Predictions]:
    """Predict the dataset's own test cases as if they were new."""
    files = {name: project.files(name, project.test(name)) for name in project.plan.modalities}
    patients = {case.case_id: case.patient_id for case in project.dataset.test}
    covariates = {case.case_id: case.covariates for case in project.dataset.test}
    return predictor.predict_cases(files, patients=patients, covariates=covariates, tta=tta, quiet=quiet)


def evaluate(project: Project, options: Options | None = None) -> Evaluation:
    """Evaluate every model on OOF and test predictions; the one stage that opens the test labels."""
    with hold(project.paths.evaluation, "the evaluation"):
        sweep_temporaries(project.paths.evaluation, project.paths.evaluation / "figures")
        return _evaluate_locked(project, options)


def _evaluate_locked(project: Project, options: Options | None) -> Evaluation:
    labels = cache(partial(read_test_labels, project.dataset, purpose="evaluate", log=project.paths.test_openings))
    names = status.model_names(project)
    _check_tables(project, names)
    if not project.plan.tables:
        remove_added_value(project.paths.evaluation)
    return evaluate_dataset(
        project.paths, names, test_labels=labels if project.dataset.test else None,
        optimistic=status.evaluation_remarks(project), resembling_test_cases=project.splits.resembling_test_cases,
        class_names=project.plan.class_names, options=options, facts=facts_of_dataset(project.dataset),
        label_cells=digest_test_label_cells(project.dataset), ordinal=project.dataset.spec.ordinal,
        write_more=partial(_evaluate_added_value, project, labels) if project.plan.tables else None,
    )  # fmt: skip


def _evaluate_added_value(project: Project, labels: Callable[[], Mapping[str, int]], evaluation: Evaluation) -> None:
    names = [*project.plan.modalities, *project.plan.tables]
    oof, test = (read_tables(project.paths, names, part) for part in ("oof", "test"))
    test = {name: table.with_labels(dict(labels())) for name, table in test.items()}
    rows = measure_added_value(oof, test, project.plan, project.splits.folds(project.plan.splits), evaluation.remarks)
    write_added_value(project.paths.evaluation, rows, evaluation.made_from)


def report(project: Project, *, paper: bool = False, pseudonymise: bool = False) -> Path:
    """Write the report of a fresh evaluation; opens the test labels once more, and records it."""
    require.require_evaluation(project)
    labels = partial(read_test_labels, project.dataset, purpose=OWN_PURPOSE, log=project.paths.test_openings)
    key = load_key(project.paths.pseudonym_key) if pseudonymise else None
    folder = project.paths.report.parent
    with hold(folder, "the report"):
        sweep_temporaries(folder, folder / "figures", folder / "tables")
        return write_report(project, status.model_names(project), test_labels=labels, paper=paper, pseudonym_key=key)


def export(paths: DatasetPaths, output: Path | None, licence: Licence) -> WrittenArchive:
    """Write what was trained and evaluated into one file, if nothing of it is stale."""
    needed = ("plan", "train", "ensemble", "fuse", "evaluate")
    undone = [s for s in status.report_status(paths) if s.state != "done" and s.stage.split()[0] in needed]
    if undone:
        lines = [f"{s.stage}: {s.state}{f' ({s.why})' if s.why else ''}. Run {s.command}" for s in undone]
        raise StaleArtefactError(join_problems(f"{paths.results}: cannot be exported yet.", lines))
    return export_model(paths, output, licence)


def explain(project: Project, modality: str, options: ExplainOptions) -> ExplainRecord:
    """Show what the networks of one modality saw."""
    subjects, options = _fresh_subjects(project, modality, options)
    folder = project.paths.explain(modality) / set_name(options.cohort, options.method, options.target, options.fold)
    with hold(folder, f"the explanations of {modality}"):
        return explain_modality(project.paths, project.plan, modality, subjects, options)


def explain_some(project: Project, train_options: TrainOptions, say: Say) -> None:
    """Explain a few training cases of each modality for the report, evenly spaced by name, where no set is fresh yet."""
    for name in project.plan.modalities:
        if any(not gallery.stale for gallery in read_galleries(project, name)):
            say(f"explain {name}: fresh, not repeated")
            continue
        cases = [case.case_id for case in project.training(name)]
        chosen = tuple(cases[i] for i in evenly_spaced(len(cases), N_EXPLAINED))
        say(f"explain {name}: {len(chosen)} of {len(cases)} cases; her2net_explain {name} {project.paths.options} explains all")
        explain(project, name, ExplainOptions(case_ids=chosen, device=train_options.device, quiet=train_options.quiet))


def features(project: Project, modality: str, options: ExplainOptions) -> Path:
    """Write the deep features of each case."""
    subjects, options = _fresh_subjects(project, modality, options)
    return write_features(project.paths, project.plan, modality, subjects, options)


def contours(project: Project, modality: str, options: ExplainOptions) -> ContourRecord:
    """Predict with masks eroded, dilated and shifted; decisions at the threshold that the last evaluation's rule picks on OOF ones."""
    subjects, options = _fresh_subjects(project, modality, options)
    table = read_predictions(project.paths.model(modality) / "oof.csv")
    thresholds = choose_thresholds({(modality, "oof"): table}, recorded_options(project.paths))
    return move_contours(
        project.paths, project.plan, modality, subjects, options,
        threshold=thresholds[modality].value if modality in thresholds else None,
        inputs=contour_inputs(project, modality, [s.files for s in subjects], sorted({k for s in subjects for k in s.folds})),
    )  # fmt: skip


def _fresh_subjects(
    project: Project, modality: str, options: ExplainOptions
) -> tuple[list[Subject], ExplainOptions]:
    subjects = choose_subjects(project, modality, options)
    require.require_fresh_folds(project, modality, sorted({fold for subject in subjects for fold in subject.folds}))
    return subjects, replace(options, device=choose_device(options.device))


def selftest(project: Project, *, n_permutations: int, device: str, quiet: bool) -> SelfTest:
    """Look for shortcuts and leaks; the real models are compared with where they are trained and fresh."""
    names = [name for name in project.plan.modalities if states.ensemble_state(project, name).state == "done"]
    real = {name: read_predictions(project.paths.model(name) / "oof.csv") for name in names}
    with hold(project.paths.selftest, "the self-test"):
        return run_selftest(project, real, n_permutations=n_permutations, device=choose_device(device), quiet=quiet)


def run(paths: DatasetPaths, plan_options: PlanOptions, train_options: TrainOptions, say: Say = print) -> Evaluation | None:
    """Do everything that is not done yet, in order; return the evaluation if it was made now."""
    _, remarks = plan(paths, plan_options)
    for remark in remarks:
        say(remark)
    project = load_project(paths)
    for job, _ in train_folds(project, list(_folds_to_train(project, train_options, say))):
        say(f"{job}: done")
    for name in project.plan.modalities:
        if _needed(states.ensemble_state(project, name), say):
            ensemble(project, name, tta=False, device=train_options.device, quiet=train_options.quiet)
    _run_tables(project, train_options.quiet, say)
    if FUSION in status.model_names(project) and _needed(status.fusion_state(project), say):
        fuse(project, **status.fusion_choices(project))
    evaluation = evaluate(project, recorded_options(paths)) if _needed(status.evaluation_state(project), say) else None
    explain_some(project, train_options, say)
    if _needed(status.report_state(project), say):
        report(project, **status.report_choices(project))
    return evaluation


def _folds_to_train(project: Project, options: TrainOptions, say: Say) -> Iterator[Fold]:
    for name in project.plan.modalities:
        for fold in range(project.plan.splits.n_folds):
            found = states.fold_state(project, name, fold, options)
            if _needed(found, say):
                yield name, fold, replace(options, restart=found.state == "stale")


def _run_tables(project: Project, quiet: bool, say: Say) -> None:
    for name in project.plan.tables:
        for fold in range(project.plan.splits.n_folds):
            found = states.table_fold_state(project, name, fold)
            if _needed(found, say):
                train_table(project, name, fold, restart=found.state == "stale", quiet=quiet)
        if _needed(states.table_ensemble_state(project, name), say):
            ensemble_table(project, name, quiet=quiet)


def _needed(found: states.StageState, say: Say) -> bool:
    if found.state == "done":
        say(f"{found.stage}: fresh, not repeated")
        return False
    say(f"{found.stage}: {found.state}" + (f" ({found.why})" if found.why else ""))
    return True

