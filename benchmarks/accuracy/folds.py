"""One fold as every method sees it: a raw dataset whose held-out cases have no label.

Training cases lie in imagesTr with their labels, held-out ones in imagesTs with none. Files are copied, so that nothing
in the folder leads back to the cohort and its labels: whatever a method does, it cannot look at a held-out label.
The folds are those of her2net's own splitter, patients and look-alikes together, stratified by class, and made once for
all methods.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from her2net import pipeline
from her2net.artefact import write_csv
from her2net.paths import DatasetPaths, Roots
from her2net.plan.rules import choose_n_folds
from her2net.plan.schema import SplitsPlan
from her2net.plan.stage import PlanOptions
from her2net.raw.dataset import Case, read_dataset
from her2net.splits import Splits, make_partition


def make_paths(root: Path, folder: str) -> DatasetPaths:
    """Return the paths of a dataset below one folder."""
    return DatasetPaths(Roots(*(root / name for name in ("raw", "preprocessed", "results"))), folder)


def find_linked(paths: DatasetPaths) -> list[list[str]]:
    """Return the groups of patients whose images resemble each other, as her2net finds them."""
    pipeline.plan(paths, PlanOptions(preprocess=False, n_workers=1, quiet=True))
    return Splits.load(paths.splits).linked_patients


def make_folds(cases: Sequence[Case], linked: list[list[str]], seed: int) -> list[list[str]]:
    """Part the cases as `her2net_plan` would; return the held-out case ids of each fold."""
    smallest = min(len({c.patient_id for c in cases if c.label == label}) for label in {c.label for c in cases})
    plan = SplitsPlan(scheme="stratified", n_folds=choose_n_folds(smallest).value, seed=seed)
    folds = make_partition(cases, plan, linked).folds
    return [sorted(c.case_id for c in cases if c.patient_id in set(held)) for held in folds]


def lay_out(source: Path, held_out: Sequence[str], folder: Path, left_out: Sequence[str] = ()) -> None:
    """Write one fold of a cohort to `folder`, which is removed first; `left_out` cases are in neither part."""
    shutil.rmtree(folder, ignore_errors=True)
    held = set(held_out)
    cases = [case for case in read_dataset(source).train if case.case_id not in set(left_out)]
    for case in cases:
        ending = "Ts" if case.case_id in held else "Tr"
        copy_case(case, folder, ending)
    shutil.copyfile(source / "dataset.json", folder / "dataset.json")
    rows = [{"case_id": c.case_id, "label": "" if c.case_id in held else c.label, "patient_id": c.patient_id} for c in cases]
    write_csv(folder / "cases.csv", ("case_id", "label", "patient_id"), rows)


def copy_case(case: Case, folder: Path, ending: str, prefix: str = "") -> None:
    """Copy images and masks of a case to `images<ending>` and `masks<ending>`, `prefix` before their names."""
    for kind, of_modality in (("images", case.images), ("masks", {name: (mask,) for name, mask in case.masks.items()})):
        for modality, files in of_modality.items():
            place = folder / f"{kind}{ending}" / modality
            place.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy2(file, place / (prefix + file.name))  # with its time, by which her2net knows what it has read before


def in_order(found: dict[str, float], held_out: Sequence[str], method: str) -> np.ndarray:
    """Return a method's scores in the order of the held-out cases.

    Raises:
        ValueError: it did not score exactly these cases, or not with finite numbers.
    """
    if set(found) != set(held_out):
        raise ValueError(f"{method} scored {len(found)} cases, not the {len(held_out)} that are held out")
    scores = np.array([found[case_id] for case_id in held_out], dtype=float)
    if not np.isfinite(scores).all():
        raise ValueError(f"{method} gave scores that are not finite numbers")
    return scores
