"""Does a plan fit the networks there are, what a machine can hold, and the dataset it is used for? Pure functions.

The schema says what a plan may look like; this says what would fail later, in a place that does not know the plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from her2net.errors import PlanError, describe, join_problems
from her2net.networks.build import NETWORKS, network_spec, why_nothing_is_dropped
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.raw.dataset import Case, DatasetSpec
from her2net.raw.images import is_3d

MAX_BATCH_VOXELS = 2**31
"""Batch size × channels × voxels of a prepared image."""
HEEDED = ("network", "drop_path", "loss_weights", "augmentation.flip_axes")
"""What a solved network heeds of `training` (`drop_path`: it must be 0), besides whether `augmentation.flip_probability` is 0."""


def refuse_unusable(path: Path, problems: Sequence[str]) -> None:
    """Refuse a plan that has problems.

    Raises:
        PlanError: lists them all.
    """
    if problems:
        raise PlanError(join_problems(f"{path}: cannot be used. Correct it, or delete it and run her2net_plan.", list(problems)))


def check_sections(plan: Plan) -> list[str]:
    """List what no machine could train or predict with."""
    return [problem for name, section in plan.modalities.items() for problem in _check_section(f"modalities.{name}", section)]


def _check_section(path: str, section: ModalityPlan) -> list[str]:
    try:
        spec = network_spec(section.training.network)
    except PlanError as error:
        return [f"{path}.training.network: {error}"]
    sizes = section.preprocessing
    problems = []
    if spec.ndim != section.ndim:
        problems.append(f"{path}.training.network: {spec.name} is {spec.ndim}-dimensional, the images are {section.ndim}-dimensional.")
    elif any(n < least for n, least in zip(sizes.input_vox, spec.min_size, strict=True)):
        needs = f"less than network {spec.name} needs, {list(spec.min_size)}"
        problems.append(f"{path}.preprocessing.input_vox: {sizes.input_vox} is {needs}.")
    if why := why_nothing_is_dropped(spec, section.training.drop_path):
        problems.append(f"{path}.training.drop_path: {section.training.drop_path:g}, but of {spec.name} {why}")
    if spec.normalises_batches and section.training.batch_size < 2:
        why = f"{spec.name} normalises by the spread of a batch, which one case does not have"
        problems.append(f"{path}.training.batch_size: {section.training.batch_size}, but {why}. Set it to 2 or more.")
    n_voxels = section.inference.batch_size * section.n_inputs * math.prod(sizes.stored_vox)
    if n_voxels > MAX_BATCH_VOXELS:
        problems.append(f"{path}: inference.batch_size and preprocessing.stored_vox make a batch of {n_voxels:,} voxels, "
                        f"expected at most {MAX_BATCH_VOXELS:,}.")
    return problems


def check_edits(plan: Plan, paths: DatasetPaths) -> list[str]:
    """List edits that would change nothing of what is made by the plan."""
    problems = []
    if plan.name != paths.plan_name:
        remedy = "Write that, or rename the file."
        problems.append(describe("not that of the file", where="name", found=plan.name, expected=repr(paths.plan_name), remedy=remedy))
    decided = {decision.path: json.dumps(decision.value) for decision in plan.decisions}
    for key, option in {"preset": f"--preset {plan.preset}", "budget_h": f"--budget {plan.budget_h or 'HOURS'}"}.items():
        if key in plan.edited:
            what = f"edited to {json.dumps(plan.edited[key])}, but all else is still what was chosen for {decided[key]}"
            remedy = f"Write {decided[key]} again, and run her2net_plan {option} {paths.options}, which plans anew."
            problems.append(describe(what, where=key, remedy=remedy))
    return problems + [problem for name in plan.modalities for problem in _check_solved(plan, name)]


def _check_solved(plan: Plan, name: str) -> list[str]:
    """List edits that a network whose classifier is solved would not heed."""
    network, problems = plan.modalities[name].training.network, []
    decided = {decision.path: decision.value for decision in plan.decisions}
    solved = network in NETWORKS and NETWORKS[network].solved  # of one that is unknown `check_sections` tells
    for path, value in plan.edited.items() if solved else ():
        key = path.removeprefix(f"modalities.{name}.training.")
        heeded = key in HEEDED or (key == "augmentation.flip_probability" and bool(value) != bool(decided[path]))
        if key != path and not heeded:
            what = f"edited to {json.dumps(value)}, without effect: {network} is solved in one go, on each case as it is and mirrored"
            problems.append(describe(what, where=path, remedy=f"Write {json.dumps(decided[path])} again, or choose another network."))
    return problems


def check_classes(plan: Plan, cases: Sequence[Case], folds: Sequence[Sequence[str]]) -> list[str]:
    """List the folds in which a modality could not be trained, for it has no case of a class left.

    Args:
        cases: training cases.
        folds: held-out patients of each.
    """
    problems = []
    for name in plan.modalities:
        having = [case for case in cases if name in case.images]
        lacking = _absent(plan, having)
        if lacking:
            remedy = "Take the modality out of dataset.json, or add such cases."
            problems.append(describe(f"no training case of class {lacking} has this modality", where=name, remedy=remedy))
            continue
        for k, held in enumerate(map(set, folds)):
            lacking = _absent(plan, [case for case in having if case.patient_id not in held])
            if lacking:
                what = f"all cases of class {lacking} that have it are held out together"
                remedy = "Take fewer folds, or bring your own with --splits."
                problems.append(describe(what, where=f"{name} fold {k}", remedy=remedy))
    return problems


def _absent(plan: Plan, cases: Sequence[Case]) -> str:
    found = {case.label for case in cases}
    return ", ".join(name for c, name in enumerate(plan.class_names) if c not in found)


def check_fit(plan: Plan, spec: DatasetSpec, folder: str) -> list[str]:
    """List in what a plan is not one for this dataset.

    Args:
        folder: name of the dataset's folder.
    """
    problems = []
    if plan.dataset != folder:
        problems.append(describe("of another dataset", where="dataset", found=plan.dataset, expected=folder))
    if tuple(plan.class_names) != spec.class_names:
        what = "not those of dataset.json"
        problems.append(describe(what, where="class_names", found=plan.class_names, expected=list(spec.class_names)))
    for name, section in plan.modalities.items():
        if name not in spec.modalities:
            problems.append(describe("not declared in dataset.json", where=f"modalities.{name}", expected=", ".join(spec.modalities)))
            continue
        declared = spec.modalities[name]
        expected = {"channels": list(declared.channels.values()), "file_ending": declared.file_ending,
                    "ndim": section.ndim if is_3d(declared.file_ending) else 2}  # fmt: skip
        problems += [
            describe("not that of dataset.json", where=f"modalities.{name}.{key}", found=getattr(section, key), expected=value)
            for key, value in expected.items()
            if getattr(section, key) != value
        ]
    return problems
