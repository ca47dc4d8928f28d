"""Which patient is held out in which fold, and who is sealed away for the test.

`splits.json` is made once per dataset at plan time and checked on every read: a
patient in two parts is an error then, too. Patients whose images are the same or
nearly so (`linked_patients`) share a fold.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from her2net.artefact import Artefact, Strict, digest_json
from her2net.errors import LeakageError, PlanError, describe, join_problems
from her2net.plan.schema import SplitsPlan
from her2net.raw.dataset import Case, RawDataset

OWN_FOLDS_REMEDY = "Give folds for the patients there are now with her2net_plan --splits FILE, or delete the plan to have folds drawn."


class Holdout(Strict):
    """Patients of imagesTr who are treated like imagesTs from the moment they are drawn."""

    fraction: float
    seed: int
    patients: list[str]


class Partition(Strict):
    """One way to part the training patients; `folds[k]` are the patients held out in fold k."""

    scheme: Literal["stratified", "leave-one-site-out", "custom"]
    seed: int
    folds: list[list[str]]


class Splits(Artefact):
    """All partitions of a dataset.

    Attributes:
        cohort_digest: of the training cases, patients, labels and sites they were made for.
        linked_patients: groups kept in one fold because their images resemble each other.
        resembling_test_cases: test cases that resemble a training case.
    """

    MADE_BY: ClassVar[str] = "her2net_plan"
    REMEDY: ClassVar[str] = (
        "Bring the former file back. Delete it only if no hold-out was sealed: her2net_plan makes other splits then, "
        "and sealed patients would be trained on."
    )

    dataset: str
    cohort_digest: str
    holdout: Holdout | None
    linked_patients: list[list[str]]
    resembling_test_cases: list[str]
    partitions: dict[str, Partition]

    def folds(self, plan: SplitsPlan) -> list[list[str]]:
        """Return the held-out patients of each fold of the plan's partition.

        Raises:
            PlanError: the partition was not made.
        """
        if plan.name not in self.partitions:
            raise PlanError(f"splits.json holds no partition {plan.name!r}. Run her2net_plan to make it.")
        return self.partitions[plan.name].folds


def cohort_digest(cases: Sequence[Case]) -> str:
    """Digest of what splits depend on: who the patients are, their labels and sites."""
    return digest_json([[c.case_id, c.patient_id, c.label, c.site] for c in cases])


def draw_holdout(
    dataset: RawDataset, *, fraction: float, seed: int, linked_patients: Sequence[Collection[str]] = ()
) -> Holdout:
    """Draw patients for a sealed hold-out, stratified by label and site.

    Args:
        linked_patients: groups whose images resemble each other; a group is held out whole, so the share may be exceeded.

    Raises:
        PlanError: the dataset has imagesTs already, or the fraction leaves a class empty.
    """
    if dataset.test:
        raise PlanError(f"--holdout: {dataset.folder.name} has {len(dataset.test)} test cases in imagesTs already.")
    patients, strata = _patients_and_strata(dataset.train)
    drawn = set(_draw_share(patients, strata, fraction, seed))
    held = drawn.union(*(set(group) & set(patients) for group in linked_patients if set(group) & drawn))
    kept = {case.label for case in dataset.train if case.patient_id not in held}
    if kept < {case.label for case in dataset.train}:
        raise PlanError(f"--holdout {fraction}: leaves a class without training patients. Take a smaller fraction.")
    return Holdout(fraction=fraction, seed=seed, patients=sorted(held))


def _draw_share(patients: list[str], strata: list[tuple[int, str]], fraction: float, seed: int) -> list[str]:
    """Draw a share of the patients, stratified by label and site; the rarer sites count as one where they are too many to draw."""
    from sklearn.model_selection import train_test_split

    count = Counter(label for label, _ in strata)
    commonest = count.most_common(1)[0][0]
    strata = [(label if count[label] > 1 else commonest, site) for label, site in strata]  # one patient cannot be parted
    problem = ""
    for least in sorted({2, *(n + 1 for n in Counter(strata).values())}):
        try:
            return train_test_split(patients, test_size=fraction, random_state=seed, stratify=_merge_rare(strata, least))[1]
        except ValueError as error:
            problem = str(error)
    raise PlanError(f"--holdout {fraction}: cannot be drawn from {len(patients)} patients ({problem}). Take another fraction.")


def make_partition(cases: Sequence[Case], plan: SplitsPlan, linked_patients: Sequence[Collection[str]]) -> Partition:
    """Part the training patients into folds.

    Args:
        cases: training cases.
        linked_patients: groups that must share a fold.

    Raises:
        PlanError: not possible with these patients, or the folds are for the user to bring.

    Source:
        Stratified, grouped k-fold of scikit-learn; the groups are patients, or linked patients.
    """
    if plan.scheme == "custom":
        raise PlanError(describe(f"your own folds, {plan.name}, are not there", where="splits.json", remedy=OWN_FOLDS_REMEDY))
    patients, strata = _patients_and_strata(cases)
    groups = _group_ids(patients, linked_patients)
    if plan.scheme == "leave-one-site-out":
        folds = _site_folds(patients, [site for _, site in strata], groups)
        if len(folds) != plan.n_folds:
            remedy = f"Write {len(folds)} there, or delete the plan and run her2net_plan --splits {plan.scheme}."
            raise PlanError(describe("not the number of sites that can be left out", where="splits.n_folds of the plan",
                                     found=plan.n_folds, expected=len(folds), remedy=remedy))
    else:
        folds = _stratified_folds(cases, {patient: site for patient, (_, site) in zip(patients, strata, strict=True)},
                                  dict(zip(patients, groups, strict=True)), plan)  # fmt: skip
    partition = Partition(scheme=plan.scheme, seed=plan.seed, folds=[sorted(fold) for fold in folds])
    check_partition(partition, cases, where=f"partition {plan.name}")
    return partition


def count_site_folds(cases: Sequence[Case], linked_patients: Sequence[Collection[str]]) -> int:
    """Count the folds of leave-one-site-out: the sites to which a patient, or a group of linked ones, belongs.

    Raises:
        PlanError: fewer than two, or patients without a site.
    """
    patients, strata = _patients_and_strata(cases)
    return len(_site_folds(patients, [site for _, site in strata], _group_ids(patients, linked_patients)))


def _stratified_folds(
    cases: Sequence[Case], sites: dict[str, str], groups: dict[str, int], plan: SplitsPlan
) -> list[list[str]]:
    """Stratify by class and site; a patient counts in each class of which it has a case, as in the fingerprint."""
    from sklearn.model_selection import StratifiedGroupKFold

    held = sorted({(case.patient_id, -1 if case.label is None else case.label) for case in cases})
    smallest = min(Counter(label for _, label in held).values())
    if smallest < plan.n_folds:
        remedy = f"Write {smallest} or less there." if smallest > 1 else "Add patients of that class."
        raise PlanError(describe(f"{plan.n_folds} folds need as many patients in every class", where="splits.n_folds of the plan",
                                 found=f"{smallest} in the smallest", remedy=remedy))
    names = _merge_rare([(label, sites[patient]) for patient, label in held], plan.n_folds)
    splitter = StratifiedGroupKFold(plan.n_folds, shuffle=True, random_state=plan.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = [rows for _, rows in splitter.split(held, names, [groups[patient] for patient, _ in held])]
    return [sorted({held[i][0] for i in rows}) for rows in parts]


def _site_folds(patients: list[str], sites: list[str], groups: list[int]) -> list[list[str]]:
    lacking = [patient for patient, site in zip(patients, sites, strict=True) if not site]
    if lacking and len(lacking) < len(patients):
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        has = "has" if len(lacking) == 1 else "have"
        raise PlanError(f"leave-one-site-out: {len(lacking)} of {len(patients)} patients {has} no site ({shown}). Fill it in.")
    first_site = dict(reversed(list(zip(groups, sites, strict=True))))
    names = sorted(set(first_site.values()))
    if len(names) < 2:
        found = ", ".join(name for name in names if name) or "none"
        raise PlanError(describe("leave-one-site-out needs at least two sites with patients of their own", found=found,
                                 remedy='Declare the column as "site" in dataset.json, and fill it in.'))
    return [[p for p, g in zip(patients, groups, strict=True) if first_site[g] == name] for name in names]


def _patients_and_strata(cases: Sequence[Case]) -> tuple[list[str], list[tuple[int, str]]]:
    """One row per patient, sorted; the label of a patient is the highest of its cases."""
    rows: dict[str, tuple[int, str]] = {}
    for case in sorted(cases, key=lambda case: case.case_id):
        label, site = rows.get(case.patient_id, (-1, ""))
        rows[case.patient_id] = (max(label, -1 if case.label is None else case.label), site or case.site or "")
    return sorted(rows), [rows[patient] for patient in sorted(rows)]


def _merge_rare(strata: list[tuple[int, str]], least: int) -> list[str]:
    """Name each stratum label + site; sites too rare within a label fall back to the label alone."""
    count = Counter(strata)
    return [f"{label}|{site}" if count[label, site] >= least else f"{label}|" for label, site in strata]


def _group_ids(patients: list[str], linked: Sequence[Collection[str]]) -> list[int]:
    place = {patient: i for i, patient in enumerate(patients)}
    group = list(range(len(patients)))
    for members in linked:
        ids = {group[place[m]] for m in members if m in place}
        group = [min(ids) if g in ids else g for g in group] if ids else group
    return group


def check_partition(partition: Partition, cases: Sequence[Case], *, where: str) -> None:
    """Refuse a partition in which a patient stands twice or is missing, or a fold lacks a class.

    Raises:
        LeakageError: a patient is in two folds.
        PlanError: patients missing or unknown, or a class absent from a training part.
    """
    count = Counter(patient for fold in partition.folds for patient in fold)
    known = {case.patient_id for case in cases}
    twice = sorted(patient for patient, n in count.items() if n > 1)
    if twice:
        raise LeakageError(
            describe("patients stand in two folds", where=where, found=", ".join(twice[:5]), expected="each in one",
                     remedy="Correct the folds; nothing may be trained on them.")
        )
    problems = [describe("patient is in no fold", found=p) for p in sorted(known - set(count))]
    problems += [describe("patient is not in the training set", found=p) for p in sorted(set(count) - known)]
    classes = {case.label for case in cases}
    for k, fold in enumerate(partition.folds):
        held = set(fold)
        lacking = classes - {case.label for case in cases if case.patient_id not in held}
        if not fold or lacking:
            problems.append(describe(f"fold {k} leaves " + (f"no training case of class {lacking}" if fold else "nobody out")))
    if problems:
        raise PlanError(join_problems(f"{where}: not a partition of the training patients.", problems))


def find_parted(partition: Partition, linked_patients: Sequence[Collection[str]]) -> list[list[str]]:
    """Return the patients of every linked group that stands in more than one fold."""
    place = {patient: k for k, fold in enumerate(partition.folds) for patient in fold}
    groups = [[patient for patient in group if patient in place] for group in linked_patients]
    return [group for group in groups if len({place[patient] for patient in group}) > 1]


def load_splits(path: Path, dataset: RawDataset) -> Splits:
    """Read the splits and check them against the dataset as it is now.

    Raises:
        MissingArtefactError: no splits yet.
        LeakageError: a patient stands in two parts, or linked patients in two folds that her2net drew.
        PlanError: the cohort has changed, or a partition does not fit it.
    """
    splits = Splits.load(path)
    sealed = set(splits.holdout.patients) if splits.holdout else set()
    training = [case for case in dataset.train if case.patient_id not in sealed]
    tested = {case.patient_id for case in dataset.test} | sealed
    for name, partition in splits.partitions.items():
        both = sorted(tested & {p for fold in partition.folds for p in fold})
        if both:
            raise LeakageError(f"{path}: partition {name}: patients of the test set stand in a fold: {', '.join(both[:5])}.")
    if splits.cohort_digest != cohort_digest(training):
        raise PlanError(f"{path}: made for other cases, patients or labels than the dataset has now. Run her2net_plan.")
    for name, partition in splits.partitions.items():
        if name != f"{partition.scheme}-{len(partition.folds)}":
            raise PlanError(describe("the partition is not what its name says", where=f"{path}: partition {name}",
                                     found=f"{partition.scheme}, {len(partition.folds)} folds", remedy=Splits.REMEDY))
        check_partition(partition, training, where=f"{path}: partition {name}")
        parted = find_parted(partition, splits.linked_patients) if partition.scheme != "custom" else []
        if parted:
            raise LeakageError(describe("patients whose images look alike stand in different folds", where=f"{path}: partition {name}",
                                        found=", ".join(parted[0]), remedy="Run her2net_plan; it draws these folds anew."))
    return splits
