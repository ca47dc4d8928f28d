"""The raw dataset: `dataset.json`, `cases.csv` and the image folders, read into frozen objects.

Strict about meaning, tolerant about form, and complete: every problem of the three is listed at
once. Labels of test cases stay sealed (DESIGN rule 3): `Case.label` is `None` for them, and
`read_test_labels` alone reveals them, leaving a line in a log. `digest_test_label_cells` tells that
they have changed, and nothing else of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from her2net.artefact import digest_json
from her2net.errors import RawDataError, describe, join_problems
from her2net.raw.consistency import check_classes, check_files, check_parts
from her2net.raw.layout import Found, find_files
from her2net.raw.names import normalise
from her2net.raw.problems import Problem, enumerate_names, errors_of, printable
from her2net.raw.rows import CASES, CaseRow, load_rows, parse_label, read_case_table
from her2net.raw.spec import DatasetSpec, ModalitySpec, load_spec
from her2net.version import __version__

__all__ = [
    "Case",
    "DatasetSpec",
    "ModalitySpec",
    "RawDataset",
    "digest_test_label_cells",
    "load_dataset",
    "read_dataset",
    "read_test_labels",
    "seal_holdout",
]

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Case:
    """One row of `cases.csv` with its files.

    Attributes:
        case_id: unique.
        patient_id: the unit of splitting.
        part: where its images lie: `train` (imagesTr) or `test` (imagesTs, or a sealed hold-out).
        label: class number; always `None` for a test case.
        site: `None` where no site is declared or the cell is empty.
        covariates: declared columns only, as text; empty where missing.
        images: modality -> one file per channel, in order; a modality the case lacks is absent.
        masks: modality -> mask file; absent where there is none.
    """

    case_id: str
    patient_id: str
    part: Part
    label: int | None
    site: str | None
    covariates: dict[str, str]
    images: dict[str, tuple[Path, ...]]
    masks: dict[str, Path]


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset; `cases` are sorted by case id."""

    folder: Path
    spec: DatasetSpec
    cases: tuple[Case, ...]

    @property
    def train(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.part == "train")

    @property
    def test(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.part == "test")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        return self.spec.class_names


def read_dataset(folder: Path) -> RawDataset:
    """Read a raw dataset without opening its images.

    Raises:
        RawDataError: lists every error of dataset.json, cases.csv and the layout.
    """
    dataset, problems = load_dataset(folder)
    errors = errors_of(problems)
    if errors or dataset is None:
        headline = f"{folder}: {len(errors)} error(s) in the raw dataset. Correct them and run her2net_verify."
        raise RawDataError(join_problems(headline, [str(item) for item in errors]))
    return dataset


def load_dataset(folder: Path) -> tuple[RawDataset | None, list[Problem]]:
    """Read a raw dataset without opening its images, listing its problems instead of raising.

    Returns:
        The dataset as far as it can be understood (`None` where it cannot at all), and every problem.
        While there are errors, it serves to look for more of them and for nothing else.
    """
    spec, problems = load_spec(folder)
    if spec is None:
        return None, problems
    rows, found = load_rows(folder, spec)
    problems += found
    if rows is None:
        return None, problems
    files, found = find_files(folder, spec, {normalise(row.case_id): row.case_id for row in rows})
    problems += found
    problems += check_parts(rows, files)
    problems += check_files(rows, files, spec)
    cases = [case for row in rows if (case := _make_case(row, files, spec)) is not None]
    labelled, found = _label_training_cases(cases, {row.case_id: row for row in rows}, spec)
    problems += found
    problems += check_classes([(case.patient_id, case.label) for case in labelled if case.part == "train"], spec)
    return RawDataset(folder, spec, tuple(sorted(labelled, key=lambda case: case.case_id))), problems


def _make_case(row: CaseRow, files: dict[tuple[str, str], Found], spec: DatasetSpec) -> Case | None:
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        images = {
            m: files[part, m].images[row.case_id] for m in spec.modalities if row.case_id in files[part, m].images
        }
        if not images:
            continue
        return Case(
            case_id=row.case_id,
            patient_id=row.patient_id,
            part=part,
            label=None,
            site=row.site,
            covariates=row.covariates,
            images={m: tuple(paths[i] for i in sorted(paths)) for m, paths in images.items()},
            masks={m: files[part, m].masks[row.case_id] for m in images if row.case_id in files[part, m].masks},
        )
    return None


def _label_training_cases(
    cases: list[Case], rows: dict[str, CaseRow], spec: DatasetSpec
) -> tuple[list[Case], list[Problem]]:
    labelled, problems = [], []
    for case in cases:
        if case.part == "train":
            row = rows[case.case_id]
            label, trouble = parse_label(row, spec)
            problems += [trouble] if trouble else []
            case = replace(case, label=label)
        labelled.append(case)
    return labelled, problems


def seal_holdout(dataset: RawDataset, patient_ids: Collection[str]) -> RawDataset:
    """Turn the training cases of some patients into test cases with sealed labels.

    Raises:
        RawDataError: a patient is not among the training cases.
    """
    wanted = set(patient_ids)
    unknown = sorted(wanted - {case.patient_id for case in dataset.train})
    if unknown:
        remedy = "Make the splits anew with her2net_plan."
        what = f"hold-out patients that have no training case: {enumerate_names(unknown)}"
        raise RawDataError(describe(what, where=dataset.folder, remedy=remedy))
    cases = tuple(replace(c, part="test", label=None) if c.patient_id in wanted else c for c in dataset.cases)
    return replace(dataset, cases=cases)


def read_test_labels(dataset: RawDataset, *, purpose: str, log: Path) -> dict[str, int]:
    """Reveal the labels of the test cases, and record that this was done. Nothing else reveals them.

    Args:
        dataset: its test cases include a sealed hold-out.
        purpose: why they are opened, for the record.
        log: file that gets one JSON line per opening.

    Returns:
        case id -> class number, of the test cases whose label is known.

    Raises:
        RawDataError: cases.csv has changed beyond recognition, a label is unknown, or the opening cannot be recorded.
    """
    table, problems = read_case_table(dataset.folder, dataset.spec)
    by_id = {row.case_id: row for row in table or ()}
    labels: dict[str, int] = {}
    for case in dataset.test:
        row = by_id.get(case.case_id)
        if row is None or not row.label:
            continue
        label, trouble = parse_label(row, dataset.spec)
        if label is None:
            problems += [trouble] if trouble else []
        else:
            labels[case.case_id] = label
    errors = errors_of(problems)
    if errors or table is None:
        headline = f"{dataset.folder / CASES}: the labels of the test cases cannot be read."
        raise RawDataError(join_problems(headline, [str(item) for item in errors]))
    _record_opening(log, purpose, len(labels))
    return labels


def digest_test_label_cells(dataset: RawDataset) -> str:
    """Digest the label cells of the test cases, so that a later stage sees that they have changed; empty without test cases.

    No opening of the labels: cells are hashed together as they are spelled, none is parsed, judged or counted, and nothing
    but the digest leaves this function. Whether a class is written there, or anything at all, stays sealed.

    Args:
        dataset: its test cases include a sealed hold-out.

    Raises:
        RawDataError: cases.csv has changed beyond recognition.
    """
    if not dataset.test:
        return ""
    table, problems = read_case_table(dataset.folder, dataset.spec)
    if table is None:
        headline = f"{dataset.folder / CASES}: cannot be read. Correct it and run her2net_verify."
        raise RawDataError(join_problems(headline, [str(item) for item in errors_of(problems)]))
    cells = {row.case_id: row.label for row in table}
    return digest_json([[case.case_id, cells.get(case.case_id)] for case in dataset.test])


def _record_opening(log: Path, purpose: str, n_cases: int) -> None:
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"time": time, "purpose": printable(purpose), "her2net_version": __version__, "n_cases": n_cases}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")  # a power cut has mutilated the last line
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"the opening of the test labels cannot be recorded ({error.strerror})"
        raise RawDataError(describe(what, where=log, remedy="Make the results folder writable.")) from None
