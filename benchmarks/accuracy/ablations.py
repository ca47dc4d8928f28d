"""`auto` with one rule of the planner changed, to see what the rule brings.

    python benchmarks/accuracy/run.py --cohorts busi core_2d_200 --methods auto auto_resnet auto_margin_0
    python benchmarks/accuracy/table.py --against auto
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

from methods import Method, Scores, auto, auto_folds

from her2net.paths import DatasetPaths
from her2net.plan.augmentation import mirrors_only
from her2net.plan.rules import Candidate, Choice, list_candidates

RULES, PLANNER = "her2net.plan.rules", "her2net.plan.planner"


def always(value: Any) -> Any:
    """Return a rule that chooses the same whatever it is asked about."""
    return lambda *_, **__: Choice(value, "changed by the benchmark")


def larger(*args: Any, **keywords: Any) -> list[Candidate]:
    """List the planned candidates at half as many voxels again in plane."""
    return [Candidate(c.network, (*c.input_vox[:-2], *(n * 3 // 2 for n in c.input_vox[-2:])))
            for c in list_candidates(*args, **keywords)]  # fmt: skip


def mirrored(ndim: int, *, axes: bool) -> Any:
    """Return the planned views, with all axes mirrored or none."""
    return mirrors_only(ndim).model_copy(update={"flip_axes": (axes,) * ndim})


CHANGES: Mapping[str, tuple[str, Any]] = {
    "resnet": (f"{RULES}.SCATTERING_UP_TO", 0),
    "wavelets": (f"{RULES}.SCATTERING_UP_TO", 1_000_000),
    "margin_0": (f"{RULES}.choose_margin", always(0.0)),
    "margin_0.1": (f"{RULES}.choose_margin", always(0.1)),
    "margin_0.6": (f"{RULES}.choose_margin", always(0.6)),
    "squash": (f"{RULES}.choose_aspect", always("squash")),
    "image_statistics": (f"{RULES}.choose_statistics", always("image")),
    "channels_apart": (f"{RULES}.choose_joint_channels", always(False)),
    "uptake": (f"{RULES}.choose_derived_channels", always(["subtraction", "wash-in"])),
    "larger": (f"{RULES}.list_candidates", larger),
    "no_mirrors": (f"{PLANNER}.mirrors_only", partial(mirrored, axes=False)),
    "all_mirrors": (f"{PLANNER}.mirrors_only", partial(mirrored, axes=True)),
    "equal_weights": (f"{RULES}.choose_loss_weights", always([1.0, 1.0])),
    "folds_3": (f"{RULES}.choose_n_folds", always(3)),
    "folds_10": (f"{RULES}.choose_n_folds", always(10)),
}
"""Name -> what is replaced, and by what. `uptake` needs phases of a dynamic series, `channels_apart` several channels."""


def ablated(change: str) -> Method:
    """Return `auto` with one rule changed; where it is the number of folds, their mean."""

    def method(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
        target, value = CHANGES[change]
        unchanged = auto_folds if change.startswith("folds") else auto
        with mock.patch(target, value):
            return unchanged(paths, seconds, seed)

    return method


ABLATIONS: Mapping[str, Method] = {f"auto_{change}": ablated(change) for change in CHANGES}
