"""Which splits a plan gets: those on disk while they fit the cohort, those the user brings, or new ones."""

from __future__ import annotations

from pathlib import Path

from her2net.artefact import digest_file
from her2net.errors import PlanError
from her2net.plan.schema import Plan
from her2net.raw.dataset import RawDataset
from her2net.raw.verify import Verification
from her2net.splits import (
    OWN_FOLDS_REMEDY,
    Holdout,
    Partition,
    Splits,
    check_partition,
    cohort_digest,
    make_partition,
    read_own_folds,
)


def settle_splits(
    dataset: RawDataset, plan: Plan, own_file: Path | None, verification: Verification, holdout: Holdout | None,
    old: Splits | None,
) -> Splits:  # fmt: skip
    """Keep the partitions that fit this cohort, and add the one the plan needs if it is not there.

    Args:
        dataset: its hold-out, if any, already sealed.
        own_file: folds that the user brings now; `None` keeps those brought before.
        old: the splits on disk.

    Raises:
        PlanError: the folds of the user do not fit the training patients, or are not there any more.
        LeakageError: a patient is in two folds.
    """
    cohort, wanted = cohort_digest(dataset.train), plan.splits
    partitions = _keep_partitions(old, dataset, required="" if own_file else wanted.name)
    if own_file is not None:
        own = Partition(scheme="custom", seed=wanted.seed, folds=read_own_folds(own_file, dataset.train))
        check_partition(own, dataset.train, where=str(own_file))
        partitions[wanted.name] = own
    elif wanted.name not in partitions or (wanted.scheme != "custom" and partitions[wanted.name].seed != wanted.seed):
        partitions[wanted.name] = make_partition(dataset.train, wanted, verification.linked_patients)
    return Splits(
        made_from={"cohort": cohort} | ({"folds": digest_file(own_file)} if own_file else {}),
        dataset=plan.dataset, cohort_digest=cohort, holdout=holdout, partitions=partitions,
        linked_patients=[list(group) for group in verification.linked_patients],
        resembling_test_cases=list(verification.resembling_test_cases),
    )  # fmt: skip


def _keep_partitions(old: Splits | None, dataset: RawDataset, *, required: str) -> dict[str, Partition]:
    """Return the partitions on disk that may stay: drawn ones if the cohort is the same, the user's if they still fit.

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
        elif not same:
            continue
        kept[name] = partition
    return kept
