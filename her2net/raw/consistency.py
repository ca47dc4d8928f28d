"""Do rows and files agree: parts, patients, missing images and masks, class sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from her2net.raw.layout import PARTS, Found
from her2net.raw.problems import Problem, Severity, enumerate_names, problem
from her2net.raw.rows import CaseRow
from her2net.raw.spec import DatasetSpec

MIN_PATIENTS_PER_CLASS = 2


def check_parts(rows: Sequence[CaseRow], files: Mapping[tuple[str, str], Found]) -> list[Problem]:
    """Find cases and patients that stand in imagesTr and in imagesTs."""
    ids = {part: {c for (p, _), found in files.items() if p == part for c in found.images} for part in PARTS}
    problems = []
    for case_id in sorted(ids["train"] & ids["test"]):
        remedy = "Keep it in one of them: a test case must never be trained on."
        problems.append(
            problem("error", "case-in-both", case_id, "the case has images in imagesTr and in imagesTs", remedy=remedy)
        )
    patients: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"train": [], "test": []})
    for row in rows:
        for part in PARTS:
            if row.case_id in ids[part]:
                patients[row.patient_id][part].append(row.case_id)
    for patient_id, cases in sorted(patients.items()):
        if patient_id and cases["train"] and cases["test"] and cases["train"] != cases["test"]:
            what = f"has training cases ({enumerate_names(cases['train'])})"
            what += f" and test cases ({enumerate_names(cases['test'])})"
            remedy = "Move all cases of the patient to one side."
            problems.append(problem("error", "patient-in-both", f"patient {patient_id}", what, remedy=remedy))
    return problems


def check_files(rows: Sequence[CaseRow], files: Mapping[tuple[str, str], Found], spec: DatasetSpec) -> list[Problem]:
    """Find rows without images, and count missing modalities and masks."""
    owners = {case_id for found in files.values() for case_id in found.images}
    problems: list[Problem] = []
    for row in rows:
        if row.case_id not in owners:
            remedy = _missing_image_remedy(row.case_id, spec)
            problems.append(
                problem(
                    "error",
                    "case-without-image",
                    row.where,
                    f"no image of the case {row.case_id!r} in imagesTr or imagesTs",
                    remedy=remedy,
                )
            )
    for (part, modality), found in files.items():
        where_images, where_masks = f"images{PARTS[part]}/{modality}", f"masks{PARTS[part]}/{modality}"
        in_part = {c for (p, _), other in files.items() if p == part for c in other.images}
        if in_part and not found.images:
            remedy = "Add its images, or take the modality out of dataset.json."
            level: Severity = "error" if part == "train" else "warning"
            what = "no training case has this modality"
            if part == "test":
                what = "no test case has this modality: it has no test figures, and those of the fusion do not test it"
            problems.append(problem(level, "modality-without-images", where_images, what, remedy=remedy))
        lacking = sorted(in_part - found.images.keys())
        if found.images and lacking:
            what = f"{len(lacking)} of {len(in_part)} cases lack this modality: {enumerate_names(lacking)}"
            problems.append(
                problem("note", "modality-missing", where_images, what, remedy="They count for the other modalities.")
            )
        unmasked = sorted(found.images.keys() - found.masks.keys())
        if unmasked:
            what = f"{len(unmasked)} of {len(found.images)} images have no mask: {enumerate_names(unmasked)}"
            remedy = "The plan says what is done with them (the whole image by default); draw masks if you can."
            problems.append(problem("warning", "mask-missing", where_masks, what, remedy=remedy))
    return problems


def _missing_image_remedy(case_id: str, spec: DatasetSpec) -> str:
    name, modality = next(iter(spec.modalities.items()))
    suffix = "_0000" if modality.n_channels > 1 else ""
    hint = " A spreadsheet may have dropped leading zeros of the id." if case_id.replace(".0", "").isdigit() else ""
    return f"Add for example imagesTr/{name}/{case_id}{suffix}{modality.file_ending}, or remove the row.{hint}"


def check_classes(cases: Iterable[tuple[str, int | None]], spec: DatasetSpec) -> list[Problem]:
    """Find classes with too few training patients to be in training and validation at once."""
    patients: dict[int, set[str]] = {number: set() for number in spec.labels.values()}
    for patient_id, label in cases:
        if label is not None:
            patients[label].add(patient_id)
    problems = []
    for name, number in sorted(spec.labels.items(), key=lambda item: item[1]):
        n = len(patients[number])
        if n < MIN_PATIENTS_PER_CLASS:
            expected = f"at least {MIN_PATIENTS_PER_CLASS}"
            remedy = "Add cases of this class, or take it out of dataset.json."
            problems.append(
                problem(
                    "error",
                    "class-too-small",
                    f"class {name}",
                    f"{n} training patient(s)",
                    expected=expected,
                    remedy=remedy,
                )
            )
    return problems
