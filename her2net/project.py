"""A planned dataset, loaded and checked: what every stage after `her2net_plan` starts from."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.fingerprint import dataset_digest
from her2net.locks import wait_until_free
from her2net.paths import DatasetPaths
from her2net.plan.check import check_edits, check_fit, check_sections, refuse_unusable
from her2net.plan.schema import Plan
from her2net.preprocess.cache import CaseFiles, row_digest
from her2net.raw.dataset import Case, RawDataset, read_dataset, seal_holdout
from her2net.raw.scan import Scan, changed_files
from her2net.splits import Splits, load_splits
from her2net.train.data import part_digest


@dataclass(frozen=True)
class Project:
    """Dataset (hold-out sealed), plan, splits and scan that belong together."""

    paths: DatasetPaths
    dataset: RawDataset
    plan: Plan
    splits: Splits
    scan: Scan

    def training(self, modality: str) -> tuple[Case, ...]:
        """Training cases that have the modality."""
        return tuple(case for case in self.dataset.train if modality in case.images)

    def test(self, modality: str) -> tuple[Case, ...]:
        """Test cases (imagesTs, or the sealed hold-out) that have the modality; without labels."""
        return tuple(case for case in self.dataset.test if modality in case.images)

    def files(self, modality: str, cases: tuple[Case, ...]) -> list[CaseFiles]:
        """The files of the cases, with the digest of their content."""
        return list_files(self.scan, modality, cases)

    def part_digest(self, modality: str, cases: tuple[Case, ...]) -> str:
        """Digest of the pixels and labels that the cases bring to training; equals `FoldData.digest`."""
        preprocessing = self.plan.modalities[modality].preprocessing
        return part_digest([row_digest(files, preprocessing) for files in self.files(modality, cases)], cases)


def list_files(scan: Scan, modality: str, cases: tuple[Case, ...]) -> list[CaseFiles]:
    """Pair each case with its files and the digest of their content, as the scan saw it."""
    digests = {entry.case_id: entry.images[modality].source_digest for entry in scan.cases if modality in entry.images}
    return [
        CaseFiles(case.case_id, case.images[modality], case.masks.get(modality), digests[case.case_id]) for case in cases
    ]


def count_present(dataset: RawDataset) -> dict[tuple[str, ...], int]:
    """Count training cases by the set of modalities they have."""
    names = list(dataset.spec.modalities)
    return dict(Counter(tuple(m for m in names if m in case.images) for case in dataset.train))


def load_project(paths: DatasetPaths) -> Project:
    """Load everything `her2net_plan` made and check that it fits the dataset as it is now.

    Waits while a `her2net_plan` of the dataset is at work.

    Raises:
        MissingArtefactError: not planned yet.
        StaleArtefactError: images or masks have changed since.
        LeakageError: a patient stands in two parts.
    """
    wait_until_free(paths.preprocessed, f"the plan of {paths.folder}")
    project = load_planned(paths)
    changed = changed_files(project.dataset, project.scan)
    if changed:
        raise StaleArtefactError(
            f"{paths.raw}: {len(changed)} files have changed since they were planned, the first {changed[0]}. "
            "Run her2net_plan; it recomputes those cases alone."
        )
    why = explain_plan_staleness(project)
    if why:
        raise StaleArtefactError(f"{paths.plan}: {why}. Run her2net_plan {paths.options}.")
    return project


def explain_plan_staleness(project: Project) -> str:
    """Say why the plan does not belong to the images, labels and patients of the scan; empty if it does."""
    digest = dataset_digest(project.dataset, project.scan.find())
    if project.plan.made_from.get("fingerprint") == digest:
        return ""
    return "made for other images, labels, patients, classes or channels than there are now"


def load_planned(paths: DatasetPaths) -> Project:
    """Load what `load_project` does, but do not compare it with the image files as they are now."""
    dataset = read_dataset(paths.raw)
    if not os.path.lexists(paths.plan):  # a broken link is there, and is said to be broken
        have = sorted(p.stem for p in paths.plan.parent.glob("*.json"))
        raise MissingArtefactError(
            f"{paths.plan}: no such plan. Run her2net_plan first" + (f", or name one of {', '.join(have)} with -p." if have else ".")
        )
    plan = Plan.load(paths.plan)
    refuse_unusable(paths.plan, check_sections(plan) + check_edits(plan, paths) + check_fit(plan, dataset.spec, paths.folder))
    splits = load_splits(paths.splits, dataset)
    if splits.holdout is not None:
        dataset = seal_holdout(dataset, splits.holdout.patients)
    scan = Scan.load(paths.scan)
    known = {(entry.case_id, name) for entry in scan.cases for name in entry.images}
    absent = sorted({case.case_id for case in dataset.cases for name in case.images if (case.case_id, name) not in known})
    if absent and not changed_files(dataset, scan):  # a new file is told as such
        what = f"says nothing of {', '.join(absent[:5])}"
        raise StaleArtefactError(f"{paths.scan}: {what}. Run her2net_plan to look at the images again.")
    return Project(paths, dataset, plan, splits, scan)
