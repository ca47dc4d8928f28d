"""The gallery of explanations: small pictures of each case, and how far to believe them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from her2net.explain.contour_record import ContourRecord, Contours, read_contours
from her2net.explain.record import Gallery, GalleryItem, MeanFigure, read_galleries
from her2net.project import Project
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import cohort_name, count, number, with_interval

MAX_BYTES = 8_000_000
"""Of all pictures together, before they become text, which takes a third more: the page stays below 15 MB."""

FIGURE_NAMES = {
    "energy_inside": "Energy inside the mask", "mask_share": "Share of the crop that is mask",
    "energy_centre": "Energy of a blob in the middle",
    "pointing": "Pointing game", "deletion_auc": "Deletion AUC", "insertion_auc": "Insertion AUC",
    "randomised_rho": "Correlation with random weights", "randomised_abs_rho": "The same, absolute",
}  # fmt: skip
MUCH_LIKE_RANDOM = 0.5
"""Absolute rank correlation with the maps of untrained networks from which on a map is not believed."""
FEW_CASES = 20


@dataclass(frozen=True)
class Slice:
    """One picture of a case, embedded."""

    uri: str
    title: str
    width: int
    height: int


@dataclass(frozen=True)
class Explained:
    """One case of the gallery."""

    case_id: str
    heading: str
    alt: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class GallerySet:
    """One set of explanations.

    Attributes:
        key: unique in the page.
        volume: whether the pictures of a case are slices to be scrolled through.
        beliefs: how far to believe the maps, in sentences.
        left_out: cases for which the page has no room.
        folder: where the large pictures and the maps lie.
    """

    key: str
    title: str
    volume: bool
    beliefs: tuple[str, ...]
    cases: tuple[Explained, ...]
    left_out: int
    folder: str


def collect_galleries(project: Project) -> tuple[list[Gallery], list[str]]:
    """Return the sets that are fresh, and a sentence about each that is not."""
    fresh, stale = [], []
    for modality in project.plan.modalities:
        for gallery in read_galleries(project, modality):
            if gallery.stale:
                name = f"{modality}/{gallery.folder.name}"
                command = f"her2net_explain {modality} {_asked(gallery)}{project.paths.options}"
                stale.append(f"{name} is not shown: {', '.join(gallery.stale)} changed since. Run {command} again.")
            else:
                fresh.append(gallery)
    return fresh, stale


def _asked(gallery: Gallery) -> str:
    """Return the options that make this set and not the default one; they stand in the name of its folder."""
    record = gallery.record
    found = "" if record.cohort == "oof" else f"--cohort {record.cohort} "
    found += "" if record.method == "gradcam" else f"--method {record.method} "
    found += "" if record.target == "predicted" else f"--class {record.target} "
    return found + ("" if record.fold is None else f"--fold {record.fold} ")


def collect_contours(project: Project) -> tuple[list[ContourRecord], list[str]]:
    """Return what changed masks do, where that is fresh, and a sentence about each record that is not."""
    found = [contours for modality in project.plan.modalities for contours in read_contours(project, modality)]
    fresh = [contours.record for contours in found if not contours.stale]
    return fresh, [_why_not_shown(project, contours) for contours in found if contours.stale]


def _why_not_shown(project: Project, contours: Contours) -> str:
    record = contours.record
    changed = [name for name in contours.stale if name != "threshold"]
    reasons = ["its decisions are those of another threshold rule than the evaluation's"] if "threshold" in contours.stale else []
    reasons += [f"{', '.join(changed)} changed since"] if changed else []
    cohort = "" if record.cohort == "oof" else f" --cohort {record.cohort}"
    _, _, fold = contours.path.stem.partition("-fold")
    command = f"her2net_explain {record.modality} --contours{cohort}{f' --fold {fold}' if fold else ''} {project.paths.options}"
    name = f"{record.modality}/{contours.path.name}"
    return f"{name}, predictions with other outlines, is not shown: {'; '.join(reasons)}. Run {command} again."


def embed_galleries(galleries: Sequence[Gallery], results: Path) -> list[GallerySet]:
    """Embed the pictures, as many as the page has room for; each set gets an equal part of it."""
    return [_embed(gallery, MAX_BYTES // max(len(galleries), 1), results) for gallery in galleries]


def _embed(gallery: Gallery, room: int, results: Path) -> GallerySet:
    record, cases, used = gallery.record, [], 0
    for item in gallery.items:
        used += sum(path.stat().st_size for path, _ in item.slices)
        if used > room:
            break
        cases.append(_case(gallery, item))
    wanted = "the most probable class" if record.target == "predicted" else record.class_names[record.target]
    of = f", fold {record.fold} alone" if record.fold is not None else ""
    return GallerySet(
        key=f"{record.modality}-{gallery.folder.name}", volume=len(record.grid) == 3, cases=tuple(cases),
        title=f"{record.modality}, {cohort_name(record.cohort)}{of}: {record.method_name} for {wanted}",
        beliefs=tuple(judge(record.summary)), left_out=len(gallery.items) - len(cases),
        folder=gallery.folder.relative_to(results).as_posix(),
    )  # fmt: skip


def _case(gallery: Gallery, item: GalleryItem) -> Explained:
    record = gallery.record
    label = f", labelled {item.label_name}" if item.label_name else ""
    inside = item.figures.get("energy_inside")
    energy = "" if inside is None else f"; {100 * inside:.0f} % of the map lies inside the mask"
    alt = f"{record.modality} of case {item.case_id}: places that speak for {item.class_name}{energy}"
    slices = tuple(_slice(path, title) for path, title in item.slices)
    return Explained(item.case_id, f"P({item.class_name}) = {item.probability:.2f}{label}", alt, slices)


def _slice(path: Path, title: str) -> Slice:
    with Image.open(path) as picture:
        width, height = picture.size
    return Slice("data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), title, width, height)


def explanations_table(galleries: Sequence[Gallery]) -> Table | None:
    """Return the figures of all sets; `None` without any."""
    rows: list[list[str | Cell]] = []
    for gallery in galleries:
        record = gallery.record
        fold = "" if record.fold is None else f", fold {record.fold}"
        shown = [record.summary[name] for name in FIGURE_NAMES]
        target = "most probable" if record.target == "predicted" else record.class_names[record.target]
        rows.append([
            f"{record.modality}: {record.method_name}{fold}", target, cohort_name(record.cohort),
            Cell(str(len(record.cases)), sort=len(record.cases)),
            *(Cell(with_interval(m.value, m.ci_low, m.ci_high, 2), sort=m.value) for m in shown),
        ])  # fmt: skip
    if not rows:
        return None
    return make_table(
        "explanations", "What the maps are worth: means over the cases, with 95 % bootstrap intervals over patients",
        ["Maps", "Class", "Cases of", "n", *FIGURE_NAMES.values()], rows, numeric=range(3, 4 + len(FIGURE_NAMES)), notes=(
            "Energy inside: share of the map within the mask; a map without structure reaches the mask's share of the crop. Pointing "
            "game: how often the maximum lies within the mask.",
            "Deletion: mean probability while the crop is blurred, highest places first; low is good. Insertion: while it is restored "
            "in that order; high is good. Correlation with the maps of untrained networks: near 0 is good.",
        ),
    )  # fmt: skip


def contours_table(records: Sequence[ContourRecord]) -> Table | None:
    """Return what changed masks do to the predictions; `None` where that was not asked."""
    rows: list[list[str | Cell]] = [
        [
            f"{r.modality}: {change.name}", cohort_name(r.cohort), Cell(str(change.n), sort=change.n),
            Cell(number(change.dice, 2), sort=change.dice), Cell(number(change.shift), sort=change.shift),
            Cell(with_interval(change.flipped.value, change.flipped.ci_low, change.flipped.ci_high, 2), sort=change.flipped.value),
            Cell(with_interval(change.auc.value, change.auc.ci_low, change.auc.ci_high), sort=change.auc.value),
        ]
        for r in records
        for change in r.changes
    ]  # fmt: skip
    if not rows:
        return None
    headers = ["Masks", "Cases of", "n", "Dice", "Change of probability", "Share of decisions flipped", "AUC"]
    return make_table("contours", "Predictions with other outlines", headers, rows, numeric=range(2, 7), sortable=False, notes=(
        "Each case with a mask, predicted again with the mask eroded, dilated and shifted by a tenth of the lesion's in-plane size, "
        "about what separates two readers. Dice: overlap with the mask as drawn. Means over cases; 95 % intervals over patients.",
        "A network sees the mask through the crop only. Radiomics, which measure inside the mask, may be less robust.",
    ))  # fmt: skip


def judge(summary: dict[str, MeanFigure]) -> list[str]:
    """Say how far to believe a set of maps."""
    found = []
    inside, share, blob = (summary[name] for name in ("energy_inside", "mask_share", "energy_centre"))
    if inside.value is not None and share.value is not None and blob.value is not None:
        clear = inside.ci_low is not None and inside.ci_low > share.value
        against = f"{number(inside.value, 2)} of the map lies on the lesion, {number(share.value, 2)} would without any structure"
        if not clear:
            found.append(f"Not shown to lie on the lesion: {against}.")
        elif inside.ci_low is not None and inside.ci_low > blob.value:
            found.append(f"On the lesion: {against}, and {number(blob.value, 2)} for a mere blob in the middle of the crop.")
        elif inside.value > blob.value:
            found.append(f"On the lesion ({against}), but not shown to be more than a mere blob in the middle of the crop "
                         f"({number(blob.value, 2)}): crops are cut around the lesion.")  # fmt: skip
        else:
            found.append(f"On the lesion ({against}), but no more than a mere blob in the middle of the crop "
                         f"({number(blob.value, 2)}): crops are cut around the lesion.")  # fmt: skip
    deletion, insertion = summary["deletion_auc"], summary["insertion_auc"]
    if deletion.value is not None and insertion.value is not None:
        apart = insertion.ci_low is not None and deletion.ci_high is not None and insertion.ci_low > deletion.ci_high
        if apart:
            verdict = "The networks need what the maps show"
        elif insertion.value > deletion.value:
            verdict = "Not shown that the networks need what the maps show (the intervals overlap)"
        else:
            verdict = "The networks do not need what the maps show: do not believe them"
        found.append(f"{verdict}: insertion {number(insertion.value, 2)}, deletion {number(deletion.value, 2)}.")
    random = summary["randomised_abs_rho"]
    if random.value is not None:
        alike = random.value >= MUCH_LIKE_RANDOM
        found.append(
            ("They look like maps of untrained networks: they show the image rather than what was learned"
             if alike else "They depend on what was learned") + f": rank correlation with untrained networks {number(random.value, 2)}."
        )  # fmt: skip
    if inside.n < FEW_CASES:
        found.append(f"Few: {count(inside.n, 'case')} with a mask and a map that is not empty.")
    return found
