"""How much memory training takes, estimated without allocating any of it.

The network runs once on torch's `meta` device, where tensors have shapes and no content, and every tensor
that the backward pass would need is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from her2net.memory import available_memory, fits_in_memory, refuse_if_too_large
from her2net.networks.build import network_spec
from her2net.plan.schema import ModalityPlan, TrainingPlan

if TYPE_CHECKING:
    import torch

COPIES_OF_WEIGHTS = 5  # weights, gradients, two moments of AdamW, running average
PEAK_OVER_KEPT = 1.7  # gradients and other layouts live beside what is kept; 1.5 to 2.2 measured on a CPU
WORKSPACE_BYTES = 128 * 2**20
PRODUCTS = 3  # matrices of products of all views, float64, that solving a classifier holds at once


@dataclass(frozen=True)
class Footprint:
    """Bytes per case of a batch, bytes that do not depend on the batch, and bytes per view of a case that is solved on."""

    per_case: int
    fixed: int
    per_view: int = 0

    def total(self, batch_size: int) -> int:
        """Bytes for training with this batch size."""
        return self.fixed + self.per_case * batch_size

    def solving(self, n_views: int) -> int:
        """Bytes for solving the classifier on so many views of all cases together; 0 of networks that are trained by steps."""
        return self.per_view and self.per_view * n_views + PRODUCTS * 8 * n_views**2


@cache
def estimate_footprint(network: str, input_vox: tuple[int, ...], n_channels: int, n_classes: int = 2) -> Footprint:
    """Estimate the memory that training a network takes beyond the libraries and the images, in float32."""
    import torch

    from her2net.networks.build import build_network

    with torch.device("meta"):
        model = build_network(network, n_channels=n_channels, n_classes=n_classes).train()
        x = torch.empty((2, n_channels, *input_vox))
    for module in model.modules():
        if getattr(module, "momentum", 0.0) is None:  # a cumulative mean reads its count, which has no content here
            module.momentum = 0.1  # type: ignore[assignment]
    weights = {id(p) for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no two share an id

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights and id(tensor._base) not in weights:  # nor a transposed weight
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(x).sum()
    per_case = PEAK_OVER_KEPT * sum(storage.nbytes() for storage in kept.values()) / len(x)
    fixed = COPIES_OF_WEIGHTS * sum(p.nbytes for p in model.parameters()) + WORKSPACE_BYTES
    return Footprint(int(per_case), fixed, _bytes_per_view(model))


def _bytes_per_view(model: torch.nn.Module) -> int:
    """Coefficients, the copy that each kernel reads, and the features of one kernel at a time."""
    from her2net.networks.scattering import ScatteringNetwork

    if not isinstance(model, ScatteringNetwork):
        return 0
    numbers = 2 * sum(kernel.n_inputs for kernel in model.kernels) + max(kernel.n_features for kernel in model.kernels)
    return int(PEAK_OVER_KEPT * 4 * numbers)


def footprint_of(plan: ModalityPlan, training: TrainingPlan) -> Footprint:
    """Estimate what `estimate_footprint` does, for a modality of a plan."""
    return estimate_footprint(training.network, tuple(plan.preprocessing.input_vox), plan.n_inputs, len(training.loss_weights))


def n_views(training: TrainingPlan) -> int:
    """How often a case is shown to a solved network: as it is, and mirrored along each axis that is flipped."""
    return 1 + len(training.augmentation.mirrored_axes)


def images_bytes(stored_vox: list[int], n_channels: int, n_cases: int) -> int:
    """Bytes of images (float16) and masks of this many cases in memory."""
    return n_cases * math.prod(stored_vox) * (2 * n_channels + 1)


def refuse_what_cannot_fit(
    what: str, plan: ModalityPlan, training: TrainingPlan, n_cases: tuple[int, int], device: str
) -> None:
    """Refuse a training that the free memory does not allow, before anything is loaded.

    A graphics card must hold one case at a time, because a batch can be parted; other devices a whole batch.

    Args:
        n_cases: to train on, and held out.

    Raises:
        MemoryLimitError: names the estimate, what is free, and the batch size that would fit.
    """
    import torch

    need = footprint_of(plan, training)
    images = images_bytes(plan.preprocessing.stored_vox, plan.n_inputs, sum(n_cases))
    if not fits_in_memory(images):  # they stay on the disk, see `load_cache`
        images = 0
    remedy = "Choose a smaller network or preprocessing.input_vox in the plan, or another machine."
    solving = need.solving(n_cases[0] * n_views(training))
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
        refuse_if_too_large(f"{what}: one case of {training.network}", need.total(1) + solving, free, remedy)
        return
    free, batch_size = available_memory(), min(training.batch_size, n_cases[0])
    fitting = (free - images - solving - need.fixed) // max(need.per_case, 1)
    if 2 <= fitting < batch_size and not network_spec(training.network).solved:
        remedy = f"Set training.batch_size to {fitting} in the plan, or end other programs."
    needed = images + solving + need.total(batch_size)
    refuse_if_too_large(f"{what}: {training.network} with batches of {batch_size}", needed, free, remedy)
