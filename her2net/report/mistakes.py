"""The wrong decisions worth looking at: those the model was surest of, and those that could have gone either way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from her2net.predictions import Predictions
from her2net.report.material import Material
from her2net.report.table import Cell, Table, make_table
from her2net.report.thumbnails import Thumbnail, draw_thumbnail
from her2net.report.words import cohort_name, number

N_SHOWN = 6


@dataclass(frozen=True)
class Mistake:
    """One case that was decided wrongly.

    Attributes:
        case_id: as the report calls it.
        certainty: 0 on the threshold, 1 as far from it as possible.
        probability: of the positive class; with more classes, of the class decided for.
        others: model -> what it says of the same case.
        pictures: one per modality the case has; only of those that are shown.
    """

    case_id: str
    truth: str
    decision: str
    probability: float
    certainty: float
    others: dict[str, str]
    pictures: tuple[Thumbnail, ...] = ()


def certainties(table: Predictions, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the decision (n,) of each case and how far (n,) in 0..1 it lies from the other one.

    With two classes that is the distance from the threshold, as a share of the distance possible on that side; with
    more, the most probable class's lead over the next.
    """
    if threshold is None:
        ordered = np.sort(table.probs, axis=1)
        return table.probs.argmax(axis=1), ordered[:, -1] - ordered[:, -2]
    p = table.probs[:, 1]
    called = p >= threshold
    room = np.where(called, max(1 - threshold, 1e-12), max(threshold, 1e-12))
    return called.astype(int), np.clip(np.abs(p - threshold) / room, 0.0, 1.0)


def find_mistakes(material: Material) -> list[Mistake]:
    """Return the headline model's wrong decisions in its cohort, the surest first; the ones shown have pictures."""
    model, cohort = material.headline
    table = material.known(model, cohort)
    threshold = material.thresholds[model].value if material.binary else None
    decided, certainty = certainties(table, threshold)
    wrong = np.flatnonzero(decided != table.labels)
    wrong = wrong[np.argsort(-certainty[wrong], kind="stable")]
    names = material.class_names
    said = _what_each_model_says(material, cohort)
    shown = {int(i) for i in (*wrong[:N_SHOWN], *wrong[-N_SHOWN:])}
    return [
        Mistake(
            case_id=material.shown_name(table.case_ids[i]), truth=names[table.labels[i]], decision=names[decided[i]],
            probability=float(table.probs[i, 1 if material.binary else decided[i]]), certainty=float(certainty[i]),
            others={name: cases[table.case_ids[i]] for name, cases in said.items() if table.case_ids[i] in cases},
            pictures=_pictures(material, table.case_ids[i]) if int(i) in shown else (),
        )
        for i in wrong
    ]  # fmt: skip


def split_shown(mistakes: list[Mistake]) -> tuple[list[Mistake], list[Mistake]]:
    """Return those shown as the surest, and those shown as the least sure (nearest to the threshold first)."""
    surest = mistakes[:N_SHOWN] if len(mistakes) >= 2 * N_SHOWN else mistakes[: (len(mistakes) + 1) // 2][:N_SHOWN]
    return surest, mistakes[len(surest):][::-1][:N_SHOWN]


def _what_each_model_says(material: Material, cohort: str) -> dict[str, dict[str, str]]:
    """Return model -> case -> its probability; with more than two classes, the class it decides for."""
    said = {}
    for model in [name for name in material.models if (name, cohort) in material.tables]:
        table = material.tables[model, cohort]
        words = [number(float(p[1])) if material.binary else material.class_names[int(p.argmax())] for p in table.probs]
        said[model] = dict(zip(table.case_ids, words, strict=True))
    return said


def _pictures(material: Material, case_id: str) -> tuple[Thumbnail, ...]:
    case = next(case for case in material.project.dataset.cases if case.case_id == case_id)
    shown = material.shown_name(case_id)
    return tuple(draw_thumbnail(case, name, shown) for name in material.plan.modalities if name in case.images)


def mistakes_table(material: Material, mistakes: list[Mistake]) -> Table:
    """Return all wrong decisions."""
    model, cohort = material.headline
    others = [name for name in material.models if name != model]
    rows: list[list[str | Cell]] = [
        [
            m.case_id, m.truth, m.decision, Cell(number(m.probability), sort=m.probability),
            Cell(number(m.certainty, 2), sort=m.certainty), *(m.others.get(name, "no image") for name in others),
        ]
        for m in mistakes
    ]  # fmt: skip
    what = f"Probability of {material.class_names[1]}" if material.binary else "Probability of the decision"
    headers = ["Case", "Truly", "Decided", what, "Certainty", *(f"{name} says" for name in others)]
    caption = f"All wrong decisions of {model}, {cohort_name(cohort)}"
    numeric = range(3, 5 + len(others) if material.binary else 5)
    far = "0 on the threshold, 1 as far from it as possible." if material.binary else "lead over the next class."
    return make_table("mistakes", caption, headers, rows, numeric=numeric, notes=(f"Certainty: {far}",))
