"""Do the parts of an archive fit each other, and is what they ask for within reason? Pure functions."""

from __future__ import annotations

from pydantic import ValidationError

from her2net.archive.manifest import MAX_CLASSES, MAX_FOLDS, Manifest
from her2net.archive.tables import check_table_plans
from her2net.evaluate.thresholds import Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.stage import FUSION, FusionRecord, check_fusion
from her2net.paths import DATASET_FOLDER
from her2net.plan.check import check_sections
from her2net.plan.schema import Plan
from her2net.preprocess.cache import CACHE_VERSION
from her2net.raw.names import explain_bad_name
from her2net.raw.spec import DatasetSpec, ModalitySpec
from her2net.tabular.features import FEATURES_VERSION


def check_plan(plan: Plan) -> list[str]:
    """List what in a plan from elsewhere could name a file it should not, or exhaust the machine."""
    problems = [
        f"{PLAN_KEY[key]} {value!r} {bad}, so it cannot be the name of a folder."
        for key, value in (("name", plan.name), ("dataset", plan.dataset))
        if (bad := explain_bad_name(value))
    ]
    if not DATASET_FOLDER.match(plan.dataset):
        problems.append(f"{PLAN_KEY['dataset']} {plan.dataset!r} is not named like Dataset001_Name.")
    try:  # what may be declared in a dataset.json may come in an archive, and nothing else
        DatasetSpec(name=plan.dataset, labels={c: i for i, c in enumerate(plan.class_names)}, modalities={
            name: ModalitySpec(channels={str(i): c for i, c in enumerate(section.channels)}, file_ending=section.file_ending)
            for name, section in plan.modalities.items()
        })  # fmt: skip
    except ValidationError as error:
        problems += [str(item["msg"]).removeprefix("Value error, ") + "." for item in error.errors()]
    if plan.splits.n_folds > MAX_FOLDS or plan.n_classes > MAX_CLASSES:
        problems.append(f"{plan.splits.n_folds} folds and {plan.n_classes} classes, expected at most {MAX_FOLDS} and {MAX_CLASSES}.")
    return problems + check_sections(plan) + check_table_plans(plan)


PLAN_KEY = {"name": "the plan's name", "dataset": "the dataset's name"}


def check_parts(
    plan: Plan, manifest: Manifest, fingerprint: Fingerprint, thresholds: Thresholds, fusion: FusionRecord | None
) -> list[str]:
    """List in what the parts contradict each other."""
    problems = []
    if manifest.preprocessing_version != CACHE_VERSION:
        problems.append(f"images are prepared by version {manifest.preprocessing_version}, here by version {CACHE_VERSION}.")
    versions = (manifest.features_version, FEATURES_VERSION)
    if any(table.radiomics for table in plan.tables.values()) and versions[0] != versions[1]:
        problems.append(f"radiomics is computed by version {versions[0]}, here by version {versions[1]}.")
    names = list(plan.modalities)
    for what, keys in (("fingerprint", fingerprint.modalities), ("manifest's tta", manifest.tta)):
        if set(keys) != set(names):
            problems.append(f"the {what} has {', '.join(keys) or 'no modality'}, the plan {', '.join(names)}.")
    problems += [
        f"{name}: {trained.ndim}D with {trained.n_channels} channels in the fingerprint, "
        f"{plan.modalities[name].ndim}D with {len(plan.modalities[name].channels)} in the plan."
        for name, trained in fingerprint.modalities.items()
        if name in names and (trained.ndim, trained.n_channels) != (plan.modalities[name].ndim, len(plan.modalities[name].channels))
    ]  # fmt: skip
    problems += [
        f"{name}: the fingerprint has {len(axes)} axes of {what}."
        for name, trained in fingerprint.modalities.items()
        for what, axes in (("size", trained.size_vox), ("spacing", trained.spacing_mm))
        if axes is not None and len(axes) != trained.ndim
    ]
    models = {*names, *plan.tables, *([FUSION] if fusion else [])} if plan.n_classes == 2 else set()
    if set(thresholds.models) != models:
        problems.append(f"thresholds of {', '.join(thresholds.models) or 'no model'}, expected {', '.join(sorted(models)) or 'none'}.")
    return problems + (check_fusion(plan, fusion) if fusion else [])
