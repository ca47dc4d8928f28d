"""What `her2net_explain` writes about itself, and how others find it: `explain.json` and the gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from her2net.artefact import Artefact, Strict, changed_inputs, digest_json
from her2net.errors import MissingArtefactError
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan
from her2net.preprocess.cache import CaseFiles, row_digest
from her2net.project import Project
from her2net.train.fold import read_record

EXPLAIN_VERSION = 3  # raise when the same inputs give other maps or figures
RECORD = "explain.json"

Cohort = Literal["oof", "test"]
Method = Literal["gradcam", "gradcam++", "occlusion"]


class MeanFigure(Strict):
    """Mean of one figure over the cases where it is defined; `null` where there is none."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    ci_method: str
    n: int


class SliceRecord(Strict):
    """A small picture: file relative to the folder of `explain.json`, and what it shows."""

    file: str
    title: str


class CaseRecord(Strict):
    """One explained case.

    Attributes:
        folds: whose networks were explained.
        label: class number; `null` for a test case, whose label stays sealed.
        target: class whose evidence the map shows.
        probability: of that class, mean over the folds, without mirrored views.
        overlay: picture, relative to the folder of `explain.json`.
        map: NIfTI in the geometry of the original image, likewise.
        slices: small pictures, in anatomical order; of a flat image the crop without and with the map.
        figures: see `her2net.explain.measure.METRICS`.
    """

    case_id: str
    patient_id: str
    folds: list[int]
    label: int | None
    target: int
    probability: float
    overlay: str
    map: str
    figures: dict[str, float | None]
    slices: list[SliceRecord] = Field(default_factory=list)


class ExplainRecord(Artefact):
    """`explain.json`: how the maps were made, and what came out.

    Attributes:
        method_name: in words, with what the network made necessary.
        fold: the one fold that was explained; `null`: of a training case the fold that held it out, of a test case all.
        target: class number, or `predicted`: the most probable class of each case.
        layer: that the method looked at; empty for occlusion, which looks at none.
        grid: places of the map, ([D,] H, W), before it was stretched over the crop.
        selected: whether only some cases of the cohort were asked for.
    """

    MADE_BY: ClassVar[str] = "her2net_explain"

    modality: str
    cohort: Cohort
    method: Method
    method_name: str
    fold: int | None
    target: int | Literal["predicted"]
    class_names: list[str]
    network: str
    layer: str
    grid: list[int]
    selected: bool
    summary: dict[str, MeanFigure]
    cases: list[CaseRecord]


@dataclass(frozen=True)
class GalleryItem:
    """One explained case, ready to be shown."""

    case_id: str
    overlay: Path
    map: Path
    class_name: str
    label_name: str | None
    probability: float
    figures: dict[str, float | None]
    slices: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Gallery:
    """One set of explanations; `stale` names what has changed since, and is empty if nothing has."""

    folder: Path
    record: ExplainRecord
    items: tuple[GalleryItem, ...]
    stale: tuple[str, ...]


def set_name(cohort: Cohort, method: Method, target: int | Literal["predicted"], fold: int | None) -> str:
    """Name the folder of one set of explanations, e.g. `oof-gradcam-predicted` or `test-occlusion-class1-fold2`."""
    wanted = target if target == "predicted" else f"class{target}"
    return f"{cohort}-{method}-{wanted}" + ("" if fold is None else f"-fold{fold}")


def explain_inputs(
    paths: DatasetPaths, modality: str, section: ModalityPlan, folds: list[int], files: list[CaseFiles]
) -> dict[str, str]:
    """Digests of the trained folds, of the images and of how they are cut."""
    records = [read_record(paths.fold(modality, k)) for k in folds]
    return {
        "version": str(EXPLAIN_VERSION),
        "folds": digest_json([None if r is None else r.identity for r in records]),
        "images": digest_json([row_digest(f, section.preprocessing) for f in files]),
    }


def read_galleries(project: Project, modality: str) -> list[Gallery]:
    """Return every set of explanations of a modality, by name, for a report to embed; none if there are none."""
    found = []
    for path in sorted(project.paths.explain(modality).glob(f"*/{RECORD}")):
        record = ExplainRecord.load(path)
        folds = sorted({fold for case in record.cases for fold in case.folds})
        part = project.training(modality) if record.cohort == "oof" else project.test(modality)
        known = {case.case_id for case in record.cases}
        files = project.files(modality, tuple(case for case in part if case.case_id in known))
        now = explain_inputs(project.paths, modality, project.plan.modalities[modality], folds, files)
        renamed = ["class_names"] if record.class_names != project.plan.class_names else []
        stale = (*changed_inputs(record.made_from, now), *renamed)
        command = f"her2net_explain {modality} {project.paths.options}"
        items = tuple(_item(path.parent, record, case, command) for case in record.cases)
        found.append(Gallery(path.parent, record, items, stale))
    return found


def _item(folder: Path, record: ExplainRecord, case: CaseRecord, command: str) -> GalleryItem:
    overlay, volume = folder / case.overlay, folder / case.map
    slices = tuple((folder / s.file, s.title) for s in case.slices)
    for path in (overlay, volume, *(file for file, _ in slices)):
        if not path.exists():
            raise MissingArtefactError(f"{path}: named in {RECORD} but not there. Run {command} again.")
    names = record.class_names
    label = None if case.label is None else names[case.label]
    return GalleryItem(case.case_id, overlay, volume, names[case.target], label, case.probability, case.figures, slices)
