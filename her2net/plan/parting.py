"""Which hold-out and folds a plan gets: those on disk while they fit the cohort, those the user brings, or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from her2net.artefact import digest_file, load_json
from her2net.errors import LeakageError, PlanError, describe
from her2net.plan.schema import Plan
from her2net.raw.dataset import Case, RawDataset
from her2net.raw.problems import enumerate_names
from her2net.raw.scan import Scan
from her2net.raw.verify import Verification
from her2net.splits import (
    OWN_FOLDS_REMEDY,
    Holdout,
    Partition,
    Splits,
    check_partition,
    cohort_digest,
    draw_holdout,
    find_parted,
    make_partition,
)

SEED = 0


def settle_holdout(
    dataset: RawDataset, fraction: float | None, old: Splits | None, linked: Sequence[Sequence[str]], scan: Scan,
    known: Scan | None,
) -> tuple[Holdout | None, list[str]]:  # fmt: skip
    """Draw the hold-out that is asked for; one that is sealed stays sealed, without the patients who have left the cohort.

    Args:
        dataset: nobody sealed yet.
        fraction: asked for; `None` keeps what there is.
        old: the splits on disk.
        scan: of the dataset; `known` is the one before.

    Returns:
        The hold-out, and a remark on patients who have left.

    Raises:
        PlanError: another one is sealed, none can be drawn, or sealed patients seem to have been renamed.
    """
    sealed = old.holdout if old is not None else None
    if old is None or sealed is None:
        drawn = None if fraction is None else draw_holdout(dataset, fraction=fraction, seed=SEED, linked_patients=linked)
        return drawn, []
    if fraction not in (None, sealed.fraction):
        raise PlanError(
            f"--holdout {fraction}: a hold-out of {sealed.fraction} ({len(sealed.patients)} patients) is sealed "
            "already. Drawing another would let patients of the test set into training."
        )
    there = {case.patient_id for case in dataset.train}
    gone = [patient for patient in sealed.patients if patient not in there]
    if not gone:
        return sealed, []
    left = [patient for patient in sealed.patients if patient in there]
    renamed = _find_renamed(dataset, old, scan, known)
    if renamed or not left:
        raise PlanError(describe(
            f"sealed patients have no training case any more ({enumerate_names(gone)})", where="splits.json: holdout.patients",
            found=f"images of before under new patients, {enumerate_names(renamed)}" if renamed else "none of the sealed patients",
            remedy="If they were renamed, write their new names there, or they would be trained on. Take out who has left; write null "
            "for holdout if nobody remains. Then run her2net_plan.",
        ))  # fmt: skip
    remark = f"hold-out: {', '.join(gone)} left the cohort and the seal; {len(left)} patients remain sealed"
    return sealed.model_copy(update={"patients": left}), [remark]


def _find_renamed(dataset: RawDataset, old: Splits, scan: Scan, known: Scan | None) -> list[str]:
    """Return the training patients who are in no fold and not sealed, but whose images were there before."""
    placed = {patient for partition in old.partitions.values() for fold in partition.folds for patient in fold}
    placed |= set(old.holdout.patients) if old.holdout is not None else set()
    seen = {image.pixel_digest for case in (known.cases if known else ()) for image in case.images.values()}
    known_cases = {case.case_id for case in scan.cases if any(image.pixel_digest in seen for image in case.images.values())}
    return sorted({case.patient_id for case in dataset.train if case.case_id in known_cases} - placed)


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
        folds = read_own_folds(own_file, dataset.train, sealed_cases(dataset, holdout))
        own = Partition(scheme="custom", seed=wanted.seed, folds=folds)
        check_partition(own, dataset.train, where=str(own_file))
        partitions[wanted.name] = own
        if holdout is not None:
            remarks.append(f"splits {wanted.name}: your folds without the {len(holdout.patients)} sealed patients")
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
                    changed = "The training patients are not those that you brought these folds for."
                    raise PlanError(f"{error}\n{changed} {OWN_FOLDS_REMEDY}") from None
                continue
        elif not same or find_parted(partition, linked):
            continue
        kept[name] = partition
    return kept


def sealed_cases(dataset: RawDataset, holdout: Holdout | None) -> list[Case]:
    """Return the cases of a dataset, its hold-out already sealed, that are sealed."""
    patients = set(holdout.patients) if holdout is not None else set()
    return [case for case in dataset.test if case.patient_id in patients]


def read_own_folds(path: Path, cases: Sequence[Case], sealed: Sequence[Case] = ()) -> list[list[str]]:
    """Read the user's folds: a list of lists of patients (or cases) held out, or of `{"train": [...], "val": [...]}`.

    Args:
        cases: training cases.
        sealed: cases of a hold-out. A file may name them, as one does that was written before the draw; they are in no fold.

    Raises:
        PlanError: another structure, or an unknown id.
        LeakageError: a patient is on both sides of a fold.
    """
    found = load_json(path)
    if isinstance(found, dict) and set(found) == {"folds"}:
        found = found["folds"]
    owner = {case.case_id: case.patient_id for case in cases} | {case.patient_id: case.patient_id for case in cases}
    if not isinstance(found, list) or len(found) < 2:
        raise PlanError(describe("not a list of at least two folds", where=path, found=type(found).__name__,
                                 expected='[["patient", ...], ...] or [{"train": [...], "val": [...]}, ...]'))
    folds, everyone = [], set(owner.values())
    struck = {name for case in sealed for name in (case.case_id, case.patient_id)} - set(owner)
    for k, fold in enumerate(found):
        sides = fold if isinstance(fold, dict) else {"val": fold}
        where = f"{path}: fold {k}"
        if "val" not in sides or not set(sides) <= {"train", "val"}:
            raise PlanError(describe("unknown or missing keys", where=where, found=list(sides), expected="val, and train if you like"))
        if any(not isinstance(ids, list) for ids in sides.values()):
            raise PlanError(describe("not a list of patients", where=where, found=str(fold)[:80]))
        sides = {side: [i for i in ids if not isinstance(i, str) or i not in struck] for side, ids in sides.items()}
        unknown = [i for ids in sides.values() for i in ids if not isinstance(i, str) or i not in owner]
        if unknown:
            raise PlanError(describe("unknown ids", where=where, found=str(unknown[:5])[:200], expected="training patients or cases"))
        held, trained = ({owner[i] for i in sides.get(side, [])} for side in ("val", "train"))
        if held & trained:
            raise LeakageError(f"{where}: patients on both sides: {', '.join(sorted(held & trained)[:5])}.")
        if "train" in sides and held | trained != everyone:
            absent = ", ".join(sorted(everyone - held - trained)[:5])
            raise PlanError(describe("patients are on neither side", where=where, found=absent,
                                     remedy="A fold is trained on everybody whom it does not hold out."))
        folds.append(sorted(held))
    return folds
