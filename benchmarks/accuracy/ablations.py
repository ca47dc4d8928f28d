"""`auto` with one rule of the planner changed, to see what the rule brings.

    python benchmarks/accuracy/run.py --cohorts busi core_2d_200 --methods auto auto_resnet auto_margin_0
    python benchmarks/accuracy/table.py --against auto

How networks are trained, which `auto` does of large cohorts only, is changed one by one in a small one (`learned`: ResNet-10-T at
64 pixels, 3D ResNet-10 at 32), which a CPU trains in minutes:

    python benchmarks/accuracy/new_cases.py --trained-on core_2d_200 --judged-on core_2d_1000 --seconds 7200 \\
        --methods learned learned_no_mixup
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

from methods import Method, Scores, auto, auto_folds

from her2net.paths import DatasetPaths
from her2net.plan.augmentation import default_augmentation, mirrors_only
from her2net.plan.rules import Candidate, Choice, choose_optimisation, list_candidates

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
    "mask_channel": (f"{RULES}.choose_derived_channels", always(["mask"])),
    "uptake": (f"{RULES}.choose_derived_channels", always(["subtraction", "wash-in"])),
    "larger": (f"{RULES}.list_candidates", larger),
    "no_mirrors": (f"{PLANNER}.mirrors_only", partial(mirrored, axes=False)),
    "all_mirrors": (f"{PLANNER}.mirrors_only", partial(mirrored, axes=True)),
    "equal_weights": (f"{RULES}.choose_loss_weights", always([1.0, 1.0])),
}
"""Name -> what is replaced, and by what. `uptake` needs phases of a dynamic series, `channels_apart` several channels."""
N_FOLDS: Mapping[str, tuple[str, Any]] = {f"folds_{n}": (f"{RULES}.choose_n_folds", always(n)) for n in (3, 10)}
"""The same for the mean of the folds."""


def changed(unchanged: Method, target: str, value: Any) -> Method:
    """Return a method with one thing replaced."""

    def method(paths: DatasetPaths, seconds: float, seed: int) -> Scores:
        with mock.patch(target, value):
            return unchanged(paths, seconds, seed)

    return method


def only(network_2d: str = "resnet10t", n: int = 64, network_3d: str = "resnet10_3d_s2") -> Any:
    """Return a rule that knows a single candidate."""

    def candidates(modality: Any, **_: Any) -> list[Candidate]:
        return [Candidate(network_2d, (n, n)) if modality.ndim == 2 else Candidate(network_3d, (16, 32, 32))]

    return candidates


def stepping(**values: float) -> Any:
    """Return the rule of optimisation with other values."""

    choices = {key: Choice(value, "changed by the benchmark") for key, value in values.items()}
    return lambda network, *, kind: choose_optimisation(network, kind=kind) | choices


def augmented(**values: Any) -> Any:
    """Return the planned augmentation with other values."""
    return lambda ndim: default_augmentation(ndim).model_copy(update=values)


IN_TRAINING: Mapping[str, tuple[str, Any]] = {
    "convnext": (f"{RULES}.list_candidates", only("convnextv2_atto")),
    "convnext_femto": (f"{RULES}.list_candidates", only("convnextv2_femto")),
    "resnet18": (f"{RULES}.list_candidates", only("resnet18", network_3d="resnet18_3d_s2")),
    "96_pixels": (f"{RULES}.list_candidates", only(n=96)),
    "stride_1": (f"{RULES}.list_candidates", only(network_3d="resnet10_3d")),
    "stride_122": (f"{RULES}.list_candidates", only(network_3d="resnet10_3d_s122")),
    "rate_0.0005": (f"{RULES}.choose_optimisation", stepping(learning_rate=5e-4)),
    "rate_0.008": (f"{RULES}.choose_optimisation", stepping(learning_rate=8e-3)),
    "weight_decay_0": (f"{RULES}.choose_optimisation", stepping(weight_decay=0.0)),
    "weight_decay_0.3": (f"{RULES}.choose_optimisation", stepping(weight_decay=0.3)),
    "no_smoothing": (f"{RULES}.LABEL_SMOOTHING", 0.0),
    "no_mixup": (f"{PLANNER}.default_augmentation", augmented(mixup_alpha=0.0)),
    "mirrors": (f"{PLANNER}.default_augmentation", mirrors_only),
    "no_average": (f"{RULES}.choose_ema_decay", always(0.0)),
    "20_passes": (f"{RULES}.PASSES", {"scratch": 20, "pretrained": 20}),
    "80_passes": (f"{RULES}.PASSES", {"scratch": 80, "pretrained": 80}),
    "equal_weights": (f"{RULES}.choose_loss_weights", always([1.0, 1.0])),
}
"""The same for how a network is trained. `stride_...` is of 3D networks."""


SMALL = (f"{RULES}.list_candidates", only())
ABLATIONS: Mapping[str, Method] = {
    **{f"auto_{name}": changed(auto, *change) for name, change in CHANGES.items()},
    **{f"auto_{name}": changed(auto_folds, *change) for name, change in N_FOLDS.items()},
}
LEARNED: Mapping[str, Method] = {
    "learned": changed(auto, *SMALL),
    **{f"learned_{name}": changed(changed(auto, *change), *SMALL) for name, change in IN_TRAINING.items()},
}
