"""The probes of one modality: the plan's own folds and training, on other inputs, with a quick network on images averaged down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from her2net.ensemble import pool
from her2net.errors import PlanError
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.estimate import Estimate, z_quantile
from her2net.evaluate.multiclass import macro_auc
from her2net.paths import DatasetPaths
from her2net.plan import rules
from her2net.plan.augmentation import mirrors_only
from her2net.plan.schema import ModalityPlan, Plan
from her2net.predictions import Predictions, read_predictions, write_predictions
from her2net.preprocess.cache import Cache, load_cache
from her2net.project import Project
from her2net.raw.dataset import Case
from her2net.selftest.columns import (
    Columns,
    can_be_judged,
    metadata_columns,
    predict_from_columns,
    size_columns,
    strongest_column,
)
from her2net.selftest.inputs import Region, background_only, choose_region, fits, outline_only, permute_labels, shrink
from her2net.selftest.record import ProbeName, ProbeResult, word_verdict
from her2net.train.data import FoldData, load_part, select_fold
from her2net.train.fold import TrainOptions, train_fold

MIN_VOX = {2: 32, 3: 16}
"""Image axes are averaged down to no less than this: 2D, 3D."""

OUTLINE_MIN_VOX = {2: 64, 3: 16}
"""The same for outlines, whose roughness is lost first."""

LEAK_ALPHA = 0.01
FOREST = "random forest"
Change = Callable[[Cache], Cache]


@dataclass(frozen=True)
class ProbedModality:
    """One modality with what all its probes share.

    Attributes:
        factors: shrink the cache to what the quick network sees.
        quick: the plan with the quick network in place of the modality's own.
        work: folder that holds the trainings until the self-test is done.
    """

    project: Project
    name: str
    cases: tuple[Case, ...]
    factors: tuple[int, ...]
    quick: Plan
    options: TrainOptions
    work: Path = Path()

    @property
    def section(self) -> ModalityPlan:
        return self.project.plan.modalities[self.name]

    @property
    def quick_section(self) -> ModalityPlan:
        return self.quick.modalities[self.name]


def prepare_modality(project: Project, name: str, options: TrainOptions, at_least: dict[int, int]) -> ProbedModality:
    """Plan the quick network of one modality, on axes averaged down to no less than `at_least` (2D, 3D)."""
    section, cases = project.plan.modalities[name], project.training(name)
    preprocessing = section.preprocessing
    sizes = zip(preprocessing.input_vox, preprocessing.stored_vox, strict=True)
    factors = tuple(choose_factor(n, stored, at_least[section.ndim]) for n, stored in sizes)
    n_folds = project.plan.splits.n_folds
    quick = choose_quick_section(section, factors, len(cases) * (n_folds - 1) // n_folds)
    plan = project.plan.model_copy(update={"modalities": {name: quick}})
    return ProbedModality(project, name, cases, factors, plan, options)


def choose_factor(input_vox: int, stored_vox: int, at_least: int) -> int:
    """Return the largest factor that divides both sizes, keeps the room around the input even, and leaves enough."""
    fits = (
        f for f in range(2, input_vox // at_least + 1)
        if input_vox % f == 0 and stored_vox % f == 0 and (stored_vox - input_vox) // f % 2 == 0
    )  # fmt: skip
    return max(fits, default=1)


def choose_quick_section(section: ModalityPlan, factors: Sequence[int], n_training: int) -> ModalityPlan:
    """Return the plan of a modality with a scattering network on a smaller grid; what else there is stays.

    `checkpoint` stays too: permuted labels then show how optimistic the best epoch on the reported fold is.
    """
    kind, training, preprocessing = "solved", section.training, section.preprocessing
    network = f"scattering_{section.ndim}d"
    settings = {key: choice.value for key, choice in rules.choose_optimisation(network, kind=kind).items()}
    augmentation = mirrors_only(section.ndim)
    epochs = rules.choose_epochs(n_training, training.batch_size, kind=kind).value
    smaller = {
        key: [n // f for n, f in zip(getattr(preprocessing, key), factors, strict=True)]
        for key in ("input_vox", "stored_vox")
    }
    return section.model_copy(update={
        "preprocessing": preprocessing.model_copy(update=smaller),
        "training": training.model_copy(update={
            **settings, "network": network, "initialisation": "scratch", "epochs": epochs,
            "warmup_epochs": 0.0, "ema_decay": 0.0, "label_smoothing": 0.0, "augmentation": augmentation,
        }),
    })  # fmt: skip


def probe_modality(
    modality: ProbedModality, outline: ProbedModality, real: Predictions | None, n_permutations: int
) -> tuple[list[ProbeResult], dict[str, str]]:
    """Run every probe on one modality; return the rows, and why a probe could not be made.

    Args:
        outline: the same modality on the grid that outlines are shown on.
    """
    project, network = modality.project, modality.quick_section.training.network
    image = _train(modality, "image", modality.cases, partial(_shrunk, modality))
    image_auc = estimate_auc(image if real is None else real).value
    rows = [_row(modality.name, "image", network, image, image_auc)]
    skipped: dict[str, str] = {}
    scans = {entry.case_id: entry.images[modality.name] for entry in project.scan.cases if modality.name in entry.images}
    with_mask = tuple(case for case in modality.cases if scans[case.case_id].lesion is not None)
    changes: dict[ProbeName, tuple[ProbedModality, tuple[Case, ...], Change]] = {}
    if with_mask:
        changes["outline"] = outline, with_mask, partial(_outline, outline)
        masks, size = _shrunk(modality, _load(modality, with_mask)).mask, modality.quick_section.preprocessing.input_vox
        region = choose_region(masks, size)
        if region is not None:
            covered = tuple(case for case, mask in zip(with_mask, masks, strict=True) if fits(mask, region, size))
            changes["background"] = modality, covered, partial(_background, modality, region)
    for probe in ("outline", "background"):
        if probe not in changes:
            skipped[probe] = "the lesions fill the crop" if with_mask else "no case has a mask"
            continue
        try:
            rows.append(_row(modality.name, probe, network, _train(changes[probe][0], probe, *changes[probe][1:]), image_auc))
        except PlanError as error:
            skipped[probe] = f"too few cases: {error}"
    tables: dict[ProbeName, tuple[tuple[Case, ...], Columns]] = {
        "lesion size": (with_mask, size_columns([scans[c.case_id] for c in with_mask]) if with_mask else {}),
        "metadata": (modality.cases, metadata_columns(modality.cases, [scans[c.case_id] for c in modality.cases], modality.name)),
    }
    for probe, (cases, columns) in tables.items():
        if columns and not can_be_judged(cases, project.splits.folds(project.plan.splits), project.plan.n_classes):
            skipped[probe] = "too few cases: a class or the training part of a fold has none"
        elif columns:
            rows.append(_row_of_columns(modality, probe, cases, columns, image_auc))
        else:
            skipped[probe] = "no case has a mask" if not cases else "it is the same in all cases"
    return [*rows, _permuted(modality, n_permutations, image_auc)], skipped


def _row_of_columns(
    modality: ProbedModality, probe: ProbeName, cases: tuple[Case, ...], columns: Columns, image_auc: float
) -> ProbeResult:
    plan, folds = modality.project.plan, modality.project.splits.folds(modality.project.plan.splits)
    table = predict_from_columns(cases, columns, folds, plan.n_classes, seed=modality.section.training.seed)
    _keep(modality, probe, table)
    row = _row(modality.name, probe, FOREST, table, image_auc)
    name, area = strongest_column(columns, np.array([case.label for case in cases]))
    return row.model_copy(update={"hint": f"Strongest by itself: {name} (AUC {area:.2f})."})


def _permuted(modality: ProbedModality, n_permutations: int, image_auc: float) -> ProbeResult:
    """Train on permuted labels several times; the row is the mean."""
    folds = modality.project.splits.folds(modality.project.plan.splits)
    found = []
    for k in range(n_permutations):
        rng = np.random.default_rng([modality.section.training.seed, k])
        cases = permute_labels(modality.cases, folds, rng)
        found.append(estimate_auc(_train(modality, f"permuted-labels-{k}", cases, partial(_shrunk, modality))))
    mean = average_permutations(found)
    row = _row(modality.name, "permuted labels", modality.quick_section.training.network,
               read_predictions(_table_path(modality, "image")), image_auc)
    figures = {"auc": mean.value, "ci_low": mean.ci_low, "ci_high": mean.ci_high, "ci_method": mean.ci_method}
    verdict = word_verdict("permuted labels", mean.value, mean.ci_low, mean.ci_high, image_auc)
    return row.model_copy(update={**figures, "probe": "permuted labels", "verdict": verdict})


def average_permutations(found: Sequence[Estimate]) -> Estimate:
    """Return the mean AUC of several permutations with a 99 % interval.

    Its standard error is the larger of two: what the intervals of the single AUCs say, and how far they lie apart.
    Permutations are drawn independently, so the error of the mean shrinks with the root of their number.
    """
    values = np.array([estimate.value for estimate in found])
    within = np.mean([((e.ci_high - e.ci_low) / (2 * z_quantile())) ** 2 for e in found])
    between = values.var(ddof=1) if len(values) > 1 else 0.0
    half = z_quantile(LEAK_ALPHA) * float(np.sqrt(max(within, between) / len(values)))
    mean = float(values.mean())
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), f"normal, 99 %, of {len(values)} permutations")


def estimate_auc(table: Predictions) -> Estimate:
    """Return the AUC with its interval; the mean one-vs-rest area for several classes."""
    patients = np.array(table.patient_ids)
    if table.n_classes == 2:
        return auc_interval(table.labels, table.probs[:, 1], patients=patients)
    return macro_auc(table.labels, table.probs, patients)


def _row(modality: str, probe: ProbeName, model: str, table: Predictions, image_auc: float) -> ProbeResult:
    found = estimate_auc(table)
    low, high = (float(v) if np.isfinite(v) else None for v in (found.ci_low, found.ci_high))
    return ProbeResult(
        modality=modality, probe=probe, model=model, auc=found.value, ci_low=low, ci_high=high,
        ci_method=found.ci_method, n=len(table), n_positive=int((table.labels > 0).sum()), image_auc=image_auc,
        verdict=word_verdict(probe, found.value, low, high, image_auc),
    )  # fmt: skip


def _train(modality: ProbedModality, probe: str, cases: tuple[Case, ...], change: Change) -> Predictions:
    """Train every fold on changed inputs, and pool the out-of-fold predictions."""
    project, name = modality.project, modality.name
    roots = replace(project.paths.roots, results=modality.work / probe)
    paths = replace(project.paths, roots=roots)

    def load(_paths: DatasetPaths, _name: str, _plan: ModalityPlan, part: tuple[Case, ...]) -> FoldData:
        data = load_part(project.paths, name, modality.section, part)
        return FoldData(data.cases, _mark(change(data.cache), probe), data.labels)

    for fold in range(modality.quick.splits.n_folds):
        split = select_fold(cases, name, fold, modality.quick, project.splits)
        train_fold(paths, modality.quick, name, fold, split, modality.options, load=load)
    tables = [read_predictions(paths.fold(name, k) / "oof.csv") for k in range(modality.quick.splits.n_folds)]
    table = pool(tables, [case.case_id for case in cases])
    _keep(modality, probe, table)
    return table


def _mark(cache: Cache, probe: str) -> Cache:
    """Let the digests say that these are not the cache's own pixels."""
    return replace(cache, digests=tuple(f"{digest} {probe}" for digest in cache.digests))


def _load(modality: ProbedModality, cases: tuple[Case, ...]) -> Cache:
    path = modality.project.paths.cache(modality.name, modality.section.preprocessing_digest)
    return load_cache(path, [case.case_id for case in cases])


def _shrunk(modality: ProbedModality, cache: Cache) -> Cache:
    if set(modality.factors) == {1}:
        return cache
    return replace(cache, image=shrink(cache.image, modality.factors).astype(np.float16),
                   mask=shrink(cache.mask, modality.factors))


def _outline(modality: ProbedModality, cache: Cache) -> Cache:
    small = _shrunk(modality, cache)
    return replace(small, image=outline_only(small.mask, small.image.shape[1]))


def _background(modality: ProbedModality, region: Region, cache: Cache) -> Cache:
    small = _shrunk(modality, cache)
    return replace(small, image=background_only(small.image, small.mask, region))


def _table_path(modality: ProbedModality, probe: str) -> Path:
    return modality.project.paths.selftest / "predictions" / f"{modality.name}_{probe.replace(' ', '-')}.csv"


def _keep(modality: ProbedModality, probe: str, table: Predictions) -> None:
    write_predictions(_table_path(modality, probe), table)
