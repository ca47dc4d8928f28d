"""Which parameters lie how deep in a network: what is near the image is general, what is near the classifier is of the task."""

from __future__ import annotations

from typing import Any

from torch import nn

RESNET_BLOCKS = {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)\.(\d+)\."}
"""MONAI's ResNets, which do not say so themselves; networks of timm do."""


def layer_scales(network: nn.Module, decay: float) -> dict[str, float]:
    """Return the share of the learning rate that each parameter gets: `decay` to the power of the blocks behind it.

    Args:
        network: of timm or MONAI, as `build_network` made it.
        decay: share of a block in the learning rate of the next, in (0, 1].

    Returns:
        Name -> share; the classifier and the normalisation before it have 1, the stem the least.

    Source:
        Clark et al. 2020 (ELECTRA), arXiv:2003.10555, for fine-tuning; by block as in Woo et al. 2023 (ConvNeXt V2).
    """
    from timm.models import group_parameters

    of_timm: Any = getattr(network, "group_matcher", None)
    depths = group_parameters(network, of_timm(coarse=False) if of_timm else RESNET_BLOCKS, reverse=True)
    deepest = max(depths.values())
    return {name: decay ** (deepest - depth) for name, depth in depths.items()}
