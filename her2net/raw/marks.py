"""What is burned into the pictures of a modality, taken together: how many show it, and whether it goes with the class."""

from __future__ import annotations

from collections.abc import Sequence

from her2net.raw.dataset import Case
from her2net.raw.intensity import grow_box
from her2net.raw.problems import Problem, enumerate_names, problem
from her2net.raw.scan import ImageScan

KINDS = ("calipers", "text", "ruler", "colour")
MARKS_APART, MARKS_P = 0.1, 0.01
"""Classes whose share of marked images differs by this much, and by more than chance, are worth a warning."""
NAMED = 20


def check_marks(modality: str, images: Sequence[tuple[Case, ImageScan]], class_names: Sequence[str]) -> list[Problem]:
    """Note each kind of mark once, with the images that show it; warn where marks go with the class."""
    return [*_note_marks(modality, images), *_warn_of_class(modality, images, class_names)]


def _note_marks(modality: str, images: Sequence[tuple[Case, ImageScan]]) -> list[Problem]:
    looked_at = [(case, image) for case, image in images if image.burned_in]
    problems = []
    for kind in KINDS:
        marked = [(case, image) for case, image in looked_at if _shows(image, kind)]
        if not marked:
            continue
        what = f"{kind} burned into {len(marked)} of {len(looked_at)} images: "
        what += enumerate_names((case.case_id for case, _ in marked), limit=NAMED)
        near = sum(_near_lesion(image, kind) for _, image in marked)
        what += f"; near the lesion in {near}" if near else ""
        remedy = "Export the images without if you can; nothing is changed in them."
        remedy += " They are read as grey." if kind == "colour" else ""
        problems.append(problem("note", "burned-in", f"modality {modality}", what, remedy=remedy))
    return problems


def _warn_of_class(modality: str, images: Sequence[tuple[Case, ImageScan]], class_names: Sequence[str]) -> list[Problem]:
    """Warn where burned-in marks go with the class: a network would learn the mark."""
    from scipy.stats import chi2_contingency

    train = [(case.label, image) for case, image in images if case.label is not None and image.burned_in]
    problems = []
    for kind in KINDS:
        marked = [_shows(image, kind) for _, image in train]
        table = [[sum(m == k and label == c for m, (label, _) in zip(marked, train, strict=True)) for k in (True, False)]
                 for c in range(len(class_names))]  # fmt: skip
        rates = [with_mark / max(with_mark + without, 1) for with_mark, without in table]
        if not all(map(sum, table)) or max(rates) - min(rates) < MARKS_APART or not all(map(sum, zip(*table, strict=True))):
            continue
        if chi2_contingency(table).pvalue < MARKS_P:
            counts = ", ".join(f"{n[0]} of {sum(n)} {name}" for n, name in zip(table, class_names, strict=True))
            remedy = "A network may learn them instead of the lesion: export without them, and run her2net_selftest."
            problems.append(problem("warning", "burned-in-class", f"modality {modality}",
                                    f"{kind} burned into the images of {counts}", remedy=remedy))  # fmt: skip
    return problems


def _shows(image: ImageScan, kind: str) -> bool:
    return any(kind in marks.kinds for marks in image.burned_in)


def _near_lesion(image: ImageScan, kind: str) -> bool:
    """Whether a mark of this kind touches what the network will see of the lesion."""
    return image.lesion is not None and any(marks.touches(kind, grow_box(image.lesion, image.shape)) for marks in image.burned_in)
