"""What `her2net_explain --contours` writes about itself, and how a report finds and words it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from her2net.artefact import Artefact, Strict, changed_inputs, digest_file, digest_json
from her2net.evaluate.evaluation import recorded_options
from her2net.explain.record import Cohort, explain_inputs
from her2net.preprocess.cache import CaseFiles
from her2net.project import Project


class Mean(Strict):
    """A figure with its interval; `null` where undefined."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_method: str


class Change(Strict):
    """What one way of changing the masks does, over all cases.

    Attributes:
        dice: mean overlap with the mask as drawn.
        shift: mean absolute change of the probability (of the positive class; with more classes, of the class decided for).
        flipped: share of cases whose decision changes.
        auc: with the changed masks; of more than two classes the mean of each against the rest.
    """

    name: str
    n: int
    dice: float
    shift: float
    flipped: Mean
    auc: Mean


class ContourRecord(Artefact):
    """`<cohort>-contours.json`: how robust the predictions of one modality are against the outline.

    Attributes:
        threshold: of the decision; `null` takes the most probable class.
        n_cases: cases with a mask.
        case_ids, folds: of everything that was asked for.
        flip_rate: mean over cases of the share of changes that flip the decision.
        any_flip: share of cases that at least one change flips.
    """

    MADE_BY: ClassVar[str] = "her2net_explain"

    modality: str
    cohort: Cohort
    share: float
    threshold: float | None
    n_cases: int
    n_patients: int
    case_ids: list[str]
    folds: list[int]
    flip_rate: Mean
    any_flip: Mean
    changes: list[Change]


@dataclass(frozen=True)
class Contours:
    """One record on disk; `stale` names what has changed since, and is empty if nothing has."""

    path: Path
    record: ContourRecord
    stale: tuple[str, ...]


def contour_inputs(project: Project, modality: str, files: list[CaseFiles], folds: list[int]) -> dict[str, str]:
    """Digests of what the predictions and their threshold rest on."""
    made_from = explain_inputs(project.paths, modality, project.plan.modalities[modality], folds, files)
    options = recorded_options(project.paths)
    rule = {"threshold": digest_json([options.rule, options.parameter])}
    return made_from | rule | {"oof.csv": digest_file(project.paths.model(modality) / "oof.csv")}


def read_contours(project: Project, modality: str) -> list[Contours]:
    """Return every record of a modality, by name, for a report; none if there are none."""
    found = []
    for path in sorted(project.paths.explain(modality).glob("*-contours*.json")):
        record = ContourRecord.load(path)
        cases = project.training(modality) if record.cohort == "oof" else project.test(modality)
        files = [f for f in project.files(modality, cases) if f.case_id in set(record.case_ids)]
        stale = changed_inputs(record.made_from, contour_inputs(project, modality, files, record.folds))
        found.append(Contours(path, record, tuple(stale)))
    return found


def describe_contours(record: ContourRecord) -> str:
    """Return the result in two sentences."""
    base, moved = record.changes[0], record.changes[1:]
    low, high = min(c.dice for c in moved), max(c.dice for c in moved)
    aucs = [c.auc.value for c in moved if c.auc.value is not None]
    area = ""
    if base.auc.value is not None and aucs:
        area = f" AUC {base.auc.value:.3f} with the masks as drawn, {min(aucs):.3f} to {max(aucs):.3f} with changed ones."
    return (
        f"{record.modality}: with masks eroded, dilated or shifted by a tenth of the lesion (mean Dice {low:.2f} to {high:.2f}), "
        f"{_percent(record.flip_rate)} of the decisions flip; {_percent(record.any_flip)} of the {record.n_cases} cases flip "
        f"at least once.{area}"
    )


def _percent(found: Mean) -> str:
    if found.value is None:
        return "an undefined share"
    limits = "" if found.ci_low is None or found.ci_high is None else f" ({100 * found.ci_low:.1f} to {100 * found.ci_high:.1f})"
    return f"{100 * found.value:.1f} %{limits}"
