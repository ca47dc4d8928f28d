"""Who is explained by whom: a training case by the fold that never saw its patient, a test case by all folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from her2net.errors import Her2netError, MissingArtefactError, PlanError, describe, join_problems
from her2net.explain.record import Cohort, Method
from her2net.networks.build import network_spec
from her2net.plan.schema import Plan
from her2net.preprocess.cache import CaseFiles
from her2net.project import Project
from her2net.raw.dataset import Case
from her2net.train.fold import read_record


@dataclass(frozen=True)
class ExplainOptions:
    """What is explained and how.

    Attributes:
        target: class number, or the most probable class of each case.
        fold: this fold alone; `None`: a training case by the fold that held it out, a test case by all folds.
        case_ids: these cases alone; empty for all.
    """

    method: Method = "gradcam"
    target: int | Literal["predicted"] = "predicted"
    cohort: Cohort = "oof"
    fold: int | None = None
    case_ids: tuple[str, ...] = ()
    device: str = "cpu"
    quiet: bool = False


@dataclass(frozen=True)
class Subject:
    """One case and the folds whose networks explain it."""

    case: Case
    files: CaseFiles
    folds: tuple[int, ...]


def evenly_spaced(n: int, n_chosen: int) -> list[int]:
    """Return up to `n_chosen` of the indices 0 to n - 1, evenly spaced, so that nobody chose them."""
    n_chosen = min(n, n_chosen)
    return [round(i * (n - 1) / max(n_chosen - 1, 1)) for i in range(n_chosen)]


def find_class(plan: Plan, text: str) -> int | Literal["predicted"]:
    """Resolve a class name or number, or the word `predicted`.

    Raises:
        PlanError: no such class; lists those there are.
    """
    if text in plan.class_names:
        return plan.class_names.index(text)
    if text == "predicted":
        return "predicted"
    if text.isdecimal() and int(text) < plan.n_classes:
        return int(text)
    expected = "predicted, " + ", ".join(f"{name} ({i})" for i, name in enumerate(plan.class_names))
    raise PlanError(describe("no such class", where="--class", found=text, expected=expected))


def choose_subjects(project: Project, modality: str, options: ExplainOptions) -> list[Subject]:
    """Return the cases to be explained, each with networks that were not trained on its patient.

    Raises:
        PlanError: no such modality or fold, or a method that does not suit the network.
        Her2netError: a case that was asked for cannot be explained, or there is none at all; lists every problem.
        MissingArtefactError: a fold is not trained; names the command.
    """
    plan = project.plan
    if modality not in plan.modalities:
        raise PlanError(f"no modality {modality!r} in plan {plan.name!r}. There are: {', '.join(plan.modalities)}.")
    network = plan.modalities[modality].training.network
    if options.method == "gradcam++" and network_spec(network).weighs_places:
        raise PlanError(
            f"{modality}: Grad-CAM++ weighs whole channels, but the classifier of {network} weighs each place for itself. "
            "Use --method gradcam, which heeds that, or occlusion."
        )
    n_folds = plan.splits.n_folds
    if options.fold is not None and options.fold not in range(n_folds):
        raise PlanError(f"no fold {options.fold}: the plan has folds 0 to {n_folds - 1}.")
    cases = project.training(modality) if options.cohort == "oof" else project.test(modality)
    held_out = {p: k for k, patients in enumerate(project.splits.folds(plan.splits)) for p in patients}
    subjects = []
    for case, files in zip(cases, project.files(modality, cases), strict=True):
        folds = tuple(range(n_folds)) if options.cohort == "test" else (held_out[case.patient_id],)
        if options.fold is not None:
            folds = tuple(k for k in folds if k == options.fold)
        if folds:
            subjects.append(Subject(case, files, folds))
    subjects = _select(subjects, modality, options)
    _require_trained(project, modality, subjects)
    return subjects


def _select(subjects: list[Subject], modality: str, options: ExplainOptions) -> list[Subject]:
    where = f"{modality}, cohort {options.cohort}" + ("" if options.fold is None else f", fold {options.fold}")
    if not subjects:
        raise Her2netError(describe("there is no case to explain", where=where))
    if not options.case_ids:
        return subjects
    known = {subject.case.case_id for subject in subjects}
    absent = [case_id for case_id in options.case_ids if case_id not in known]
    if absent:
        headline = f"{where}: cases that are not there. Name the modality that has them, or other cases."
        raise Her2netError(join_problems(headline, absent))
    return [subject for subject in subjects if subject.case.case_id in options.case_ids]


def _require_trained(project: Project, modality: str, subjects: Sequence[Subject]) -> None:
    folds = sorted({fold for subject in subjects for fold in subject.folds})
    records = {fold: read_record(project.paths.fold(modality, fold)) for fold in folds}
    missing = [k for k, record in records.items() if record is None or record.status != "finished"]
    if missing:
        command = f"her2net_train {modality} {' '.join(map(str, missing))}"
        raise MissingArtefactError(
            f"{project.paths.model(modality)}: folds {missing} are not trained. Run {command} first, "
            "or explain a trained fold alone with --fold."
        )
