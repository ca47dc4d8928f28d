"""Which splits a plan gets: those on disk while they fit the cohort, those the user brings, or new ones."""

from __future__ import annotations

from pathlib import Path

from her2net.artefact import digest_file
from her2net.errors import PlanError
from her2net.plan.schema import Plan
from her2net.raw.dataset import RawDataset
from her2net.raw.problems import enumerate_names
from her2net.raw.verify import Verification
from her2net.splits import (
    OWN_FOLDS_REMEDY,
    Holdout,
    Partition,
    Splits,
    check_partition,
    cohort_digest,
    find_parted,
    make_partition,
    read_own_folds,
)


def settle_splits(
    dataset: RawDataset, plan: Plan, own_file: Path | None, verification: Verification, holdout: Holdout | None,
    old: Splits | None,
) -> tuple[Splits, list[str]]:  # fmt: skip
    """Keep the partitions that fit this cohort, and add the one the plan needs if it is not there.

    Args:
        dataset: its hold-out, if any, already sealed.
        own_file: folds that the user brings now; `None` keeps those brought before.
        old: the splits on disk.

    Returns:
        The splits, and remarks on what had to be drawn anew.

    Raises:
        PlanError: the folds of the user do not fit the training patients, or are not there any more.
        LeakageError: a patient is in two folds.
    """
    cohort, wanted, linked = cohort_digest(dataset.train), plan.splits, verification.linked_patients
    partitions, remarks = _keep_partitions(old, dataset, linked, required="" if own_file else wanted.name), []
    if own_file is not None:
        own = Partition(scheme="custom", seed=wanted.seed, folds=read_own_folds(own_file, dataset.train))
        check_partition(own, dataset.train, where=str(own_file))
        partitions[wanted.name] = own
    elif wanted.name not in partitions or (wanted.scheme != "custom" and partitions[wanted.name].seed != wanted.seed):
        partitions[wanted.name] = make_partition(dataset.train, wanted, linked)
        groups = find_parted(old.partitions[wanted.name], linked) if old and wanted.name in old.partitions else []
        alike = enumerate_names(" with ".join(group) for group in groups)
        remarks += [f"splits {wanted.name}: drawn anew; images of patients in different folds look alike: {alike}"] * bool(groups)
    return Splits(
        made_from={"cohort": cohort} | ({"folds": digest_file(own_file)} if own_file else {}),
        dataset=plan.dataset, cohort_digest=cohort, holdout=holdout, partitions=partitions,
        linked_patients=[list(group) for group in linked], resembling_test_cases=_find_resembling(dataset, verification),
    ), remarks  # fmt: skip


def _find_resembling(dataset: RawDataset, verification: Verification) -> list[str]:
    """Return the test cases that resemble a training case, those included that do so across the seal of a hold-out.

    The images are verified before the hold-out is sealed, so its patients are linked like training patients. A linked
    group counts as one patient: every sealed case of a group that holds a training patient is named.
    """
    trained = {case.patient_id for case in dataset.train}
    crossing = {patient for group in verification.linked_patients if trained & set(group) for patient in group}
    across = {case.case_id for case in dataset.test if case.patient_id in crossing}
    return sorted(across.union(verification.resembling_test_cases))


def _keep_partitions(
    old: Splits | None, dataset: RawDataset, linked: list[list[str]], *, required: str
) -> dict[str, Partition]:
    """Return the partitions on disk that may stay: the user's if they still fit; drawn ones while the cohort is the same.

    Drawn ones go as well where linked patients stand in different folds, as when a changed image has come to resemble another.
    The user's folds cannot be drawn again: the required ones are refused where they no longer fit. Those of other plans
    are left out, and asked for again when such a plan is made.
    """
    kept: dict[str, Partition] = {}
    same = old is not None and old.cohort_digest == cohort_digest(dataset.train)
    for name, partition in old.partitions.items() if old is not None else ():
        if partition.scheme == "custom":
            try:
                check_partition(partition, dataset.train, where=f"{name} in splits.json")
            except PlanError as error:
                if name == required:
                    changed = "The cases have changed since you brought these folds."
                    raise PlanError(f"{error}\n{changed} {OWN_FOLDS_REMEDY}") from None
                continue
        elif not same or find_parted(partition, linked):
            continue
        kept[name] = partition
    return kept
