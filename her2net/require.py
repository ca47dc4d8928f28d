"""What a stage asks of the stages before it: it refuses to go on from what is stale, missing or interrupted."""

from __future__ import annotations

from collections.abc import Sequence

from her2net import status
from her2net.errors import MissingArtefactError, StaleArtefactError, join_problems
from her2net.project import Project
from her2net.states import VANISHED, StageState, fold_state


def require_fresh_folds(project: Project, modality: str, folds: Sequence[int]) -> None:
    """Refuse to go on with folds that were trained from other inputs than there are now.

    Raises:
        StaleArtefactError: names each, what changed, and the command.
    """
    states = [fold_state(project, modality, fold) for fold in folds]
    headline = f"{project.paths.model(modality)}: folds were trained from other inputs than there are now."
    _refuse(headline, [found for found in states if found.state == "stale"])


def require_models(project: Project, models: Sequence[str]) -> None:
    """Refuse to go on with tables of models that are not done, or whose folds are not.

    What another process is making just now is no hindrance: its former tables are whole, and what is made from them is
    stale as soon as others stand in their place.

    Raises:
        StaleArtefactError: names each fold, ensemble or fusion, why, and the command.
    """
    undone = [found for name in models for found in _first_undone(status.model_states(project, name))]
    _refuse(_headline(project), [found for found in undone if found.state != "running"])


def require_evaluation(project: Project) -> None:
    """Refuse to go on without a fresh evaluation of models that are done, and with one that is being made just now.

    Raises:
        MissingArtefactError: there is no evaluation.
        StaleArtefactError: names each stage that is not done, why, and the command.
    """
    evaluation = status.evaluation_state(project)
    if evaluation.state == "missing":
        raise MissingArtefactError(f"{project.paths.evaluation}: the evaluation is missing. Run {evaluation.command} first.")
    models = [status.model_states(project, name) for name in status.model_names(project)]
    undone = [found for states in [*models, [evaluation]] for found in _first_undone(states)]
    _refuse(_headline(project), undone)


def _first_undone(states: Sequence[StageState]) -> list[StageState]:
    """Return the folds of a model that are not done; its pooled tables where all of them are, and the tables are not.

    Weights that were deleted after their fold was pooled are needed by nobody who reads the tables.
    """
    *folds, pooled = states
    undone = [found for found in folds if found.state != "done"]
    if pooled.state == "done":
        undone = [found for found in undone if found.why != VANISHED]
    return undone or ([pooled] if pooled.state != "done" else [])


def _headline(project: Project) -> str:
    return f"{project.paths.results}: earlier stages are not done."


def _refuse(headline: str, undone: Sequence[StageState]) -> None:
    if undone:
        raise StaleArtefactError(join_problems(headline, [_describe(found) for found in undone]))


def _describe(found: StageState) -> str:
    remedy = "Wait until it has ended." if found.state == "running" else f"Run {found.command} first."
    return f"{found.stage}: {found.state}{f' ({found.why})' if found.why else ''}. {remedy}"
