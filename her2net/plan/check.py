"""Does a plan fit the networks there are, what a machine can hold, and the dataset it is used for? Pure functions.

The schema says what a plan may look like; this says what would fail later, in a place that does not know the plan.
"""

from __future__ import annotations

import math

from her2net.errors import PlanError, describe
from her2net.networks.build import network_spec
from her2net.plan.schema import ModalityPlan, Plan
from her2net.raw.dataset import DatasetSpec
from her2net.raw.images import is_3d

MAX_BATCH_VOXELS = 2**31
"""Batch size × channels × voxels of a prepared image."""


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
    n_voxels = section.inference.batch_size * section.n_inputs * math.prod(sizes.stored_vox)
    if n_voxels > MAX_BATCH_VOXELS:
        problems.append(f"{path}: inference.batch_size and preprocessing.stored_vox make a batch of {n_voxels:,} voxels, "
                        f"expected at most {MAX_BATCH_VOXELS:,}.")
    return problems


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
