"""What one fold trains on: the cache rows of its patients, in memory, where the network is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from her2net.artefact import digest_json
from her2net.errors import CacheError, LeakageError, PlanError, describe
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.preprocess.cache import Cache, load_cache
from her2net.raw.dataset import Case
from her2net.splits import Splits

ALL = "all"


@dataclass(frozen=True)
class FoldCases:
    """Who is trained on and who is held out, for one modality and fold."""

    training: tuple[Case, ...]
    held_out: tuple[Case, ...]


@dataclass(frozen=True)
class FoldData:
    """The arrays of one part of a fold; see `Cache` for shapes."""

    cases: tuple[Case, ...]
    cache: Cache
    labels: np.ndarray

    @property
    def digest(self) -> str:
        """Digest of the pixels and labels the part consists of."""
        return part_digest(self.cache.digests, self.cases)


def part_digest(row_digests: Sequence[str], cases: Sequence[Case]) -> str:
    """Digest of the pixels, labels and patients of one part of a fold."""
    return digest_json([list(row_digests), [c.label for c in cases], [c.patient_id for c in cases]])


def select_fold(cases: Sequence[Case], modality: str, fold: int | str, plan: Plan, splits: Splits) -> FoldCases:
    """Part the training cases that have the modality.

    Args:
        fold: number of a fold, or `all`, which holds nobody out.

    Raises:
        PlanError: no such modality or fold.
        LeakageError: a patient would stand on both sides.
    """
    if modality not in plan.modalities:
        raise PlanError(f"no modality {modality!r} in plan {plan.name!r}. There are: {', '.join(plan.modalities)}.")
    return part_fold([case for case in cases if modality in case.images], modality, "this modality", fold, plan, splits)


def part_fold(
    cases: Sequence[Case], name: str, what: str, fold: int | str, plan: Plan, splits: Splits
) -> FoldCases:
    """Part the training cases that a model can use, a network or a table model named `name`; they all have `what`.

    Raises:
        PlanError: no such fold, or a class is absent from its training cases.
        LeakageError: a patient would stand on both sides.
    """
    folds = splits.folds(plan.splits)
    if fold != ALL and fold not in range(len(folds)):
        raise PlanError(f"no fold {fold}: the plan has folds 0 to {len(folds) - 1}, and 'all'.")
    held = set() if fold == ALL else set(folds[int(fold)])
    training = tuple(case for case in cases if case.patient_id not in held)
    held_out = tuple(case for case in cases if case.patient_id in held)
    both = {case.patient_id for case in training} & {case.patient_id for case in held_out}
    if both:
        raise LeakageError(f"{name} fold {fold}: patients on both sides: {', '.join(sorted(both)[:5])}.")
    lacking = set(range(plan.n_classes)) - {case.label for case in training}
    if lacking:
        names = ", ".join(plan.class_names[c] for c in sorted(lacking))
        raise PlanError(f"{name} fold {fold}: no training case of class {names} has {what}. Use fewer folds.")
    return FoldCases(training, held_out)


def load_part(paths: DatasetPaths, modality: str, plan: ModalityPlan, cases: tuple[Case, ...]) -> FoldData:
    """Read the cache rows of the cases."""
    path = paths.cache(modality, plan.preprocessing_digest)
    cache = load_cache(path, [case.case_id for case in cases])
    shape = (plan.n_inputs, *plan.preprocessing.stored_vox)
    if cache.image.shape[1:] != shape:
        raise CacheError(describe("holds images of another shape than the plan", where=path, found=cache.image.shape[1:],
                                  expected=shape, remedy="Run her2net_plan, which makes it anew."))
    return FoldData(cases, cache, np.array([case.label for case in cases], dtype=np.int64))


PartLoader = Callable[[DatasetPaths, str, ModalityPlan, tuple[Case, ...]], FoldData]
