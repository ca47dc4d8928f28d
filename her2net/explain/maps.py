"""Which places of a crop speak for a class: Grad-CAM, Grad-CAM++ and occlusion.

Each method returns a signed map on a coarse grid over the crop: above 0 where the place speaks for the class. What is
explained is the log odds of the class. A softmax ignores whatever is added to all logits alike, so the logit of one
class alone would show places that move no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from her2net.explain.record import Method
from her2net.networks.build import NetworkSpec
from her2net.preprocess.resample import resample
from her2net.train.loop import predict_probs

LEAST_GRID = 4
"""Places in H and in W below which a map says little about where; a layer before the last is taken then."""

FINER = 4
"""By how much finer than that of the layer the grid is on which the maps of several windows are added up."""

OCCLUSION_GRID = {2: (8, 8), 3: (3, 6, 6)}
"""Places that are hidden one after the other, per number of spatial axes."""

BLUR = 0.25
"""Standard deviation of the Gaussian that takes the detail out of a crop, in edges of the crop."""

LEAST_PROBABILITY = 1e-12
LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class ZScore:
    """How a crop was standardised, so that a crop in which something is hidden can be standardised anew.

    Attributes:
        n_channels: that were; derived channels come after them and were not.
        joint: one mean and standard deviation for all of them, or one each.
        share: of the voxels that mean and standard deviation were taken over, how many the crop has, 0 to 1.
    """

    n_channels: int
    joint: bool
    share: float


@dataclass(frozen=True)
class Layer:
    """The layer that Grad-CAM looks at, and its grid; the rest as in the table of networks."""

    name: str
    grid: tuple[int, ...]
    weighs_places: bool = False
    windows: tuple[float, ...] = (1.0,)


def choose_layer(network: nn.Module, spec: NetworkSpec, n_channels: int, input_vox: Sequence[int]) -> Layer:
    """Return the last layer of the table whose grid is at least 4 x 4 in plane, or else the finest one."""
    device = next(network.parameters()).device
    found: list[Layer] = []
    for name in spec.cam_layers:
        shapes: list[tuple[int, ...]] = []
        hook = network.get_submodule(name).register_forward_hook(lambda m, i, out, kept=shapes: kept.append(tuple(out.shape)))
        try:
            with torch.inference_mode():
                network(torch.zeros(1, n_channels, *input_vox, device=device))
        finally:
            hook.remove()
        found.append(Layer(name, shapes[0][-spec.ndim :], spec.weighs_places, spec.windows))
        if min(found[-1].grid[-2:]) >= LEAST_GRID:
            break
    return found[-1]


def attribute(
    method: Method, network: nn.Module, layer: Layer, x: Tensor, target: int, *, batch_size: int, zscore: ZScore | None = None
) -> np.ndarray:
    """Explain one crop.

    Args:
        network: in evaluation mode.
        x: (1, C, *input_vox) float32, on the network's device.
        target: class number.
        zscore: how the crop was standardised; only occlusion asks.

    Returns:
        Signed map on the layer's grid, one `FINER` if the layer has several windows, or on `OCCLUSION_GRID`, float64.
    """
    if method == "occlusion":
        return occlusion(network, x, target, batch_size=batch_size, zscore=zscore)
    maps, gradient = layer_gradient(network, layer, x, target)
    weigh = grad_cam_plus_plus if method == "gradcam++" else grad_cam_per_place if layer.weighs_places else grad_cam
    parts = [weigh(*part) for part in zip(*(np.split(a, len(layer.windows)) for a in (maps, gradient)), strict=True)]
    return parts[0] if layer.windows == (1.0,) else sum_windows(parts, layer.windows)


def sum_windows(parts: Sequence[np.ndarray], windows: Sequence[float]) -> np.ndarray:
    """Lay the map of each window over its part of the crop, and add them up.

    Args:
        parts: (*grid) each, over the middle `windows` of the crop's edges.

    Returns:
        Over the crop, on a grid `FINER` times as fine. What a small window says is denser: it is spread over less.
    """
    size = tuple(FINER * n for n in parts[0].shape)
    total = np.zeros(size)
    for part, share in zip(parts, windows, strict=True):
        cut = (1 - share) / 2
        start, stop = ([edge * n / share for n in part.shape] for edge in (-cut, 1 - cut))
        laid = resample(part[None], start, stop, size, linear=True)[0] / share**part.ndim
        for axis, n in enumerate(size):
            outside = np.abs((np.arange(n) + 0.5) / n - 0.5) > share / 2
            laid[(slice(None),) * axis + (outside,)] = 0
        total += laid
    return total


def layer_gradient(network: nn.Module, layer: Layer, x: Tensor, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer's output for one crop and the gradient of the log odds of a class there, each (K, *grid) float64."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = network.get_submodule(layer.name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = network(x)
            others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
            log_odds = (logits[:, target] - others.logsumexp(1)).sum()
            (gradient,) = torch.autograd.grad(log_odds, kept[0])
    finally:
        hook.remove()
    flat = [t.detach().double().reshape(-1, *layer.grid).cpu().numpy() for t in (kept[0], gradient)]
    return flat[0], flat[1]


def grad_cam(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Weigh each channel by its mean gradient and add up.

    Args:
        maps, gradient: (K, *grid).

    Returns:
        (*grid) signed.

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391; its rectifier comes later, once the map is at its final size.
    """
    weights = gradient.reshape(len(gradient), -1).mean(axis=1)
    return np.tensordot(weights, maps, axes=1)


def grad_cam_per_place(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Multiply gradient and map place by place, and add up the channels.

    Behind mean pooling and a linear layer this is Grad-CAM up to a factor. A classifier with a weight for each place gives each
    place a gradient of its own; averaging it would mix places that have nothing to do with each other.

    Source:
        Draelos & Carin 2020, arXiv:2011.08891 (HiResCAM).
    """
    return (gradient * maps).sum(axis=0)


def grad_cam_plus_plus(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Weigh each channel by its rectified gradients, each place by how much of the score it carries.

    The method supposes rectified maps; of others, only what is above 0 enters the weights, so that the denominator
    cannot vanish.

    Source:
        Chattopadhay et al. 2018, arXiv:1710.11063, equations 10, 11 and 19.
    """
    spatial = tuple(range(1, maps.ndim))
    total = np.maximum(maps, 0).sum(axis=spatial, keepdims=True)
    positive = np.maximum(gradient, 0)
    # alpha * g = g^3 / (2 g^2 + total * g^3) = g / (2 + total * g) where g > 0, and 0 elsewhere
    weights = (positive / (2 + total * positive)).sum(axis=spatial)
    return np.tensordot(weights, maps, axes=1)


def occlusion(
    network: nn.Module, x: Tensor, target: int, *, batch_size: int, zscore: ZScore | None = None
) -> np.ndarray:
    """Hide one place after the other behind a heavily blurred copy, and note by how much the log odds fall.

    The places overlap and fade into each other, so that hiding draws no edges that the network could take for a sign.
    A z-score by the image's own mean and standard deviation writes the brightness of a lesion into every voxel of its
    surroundings; with `zscore` it is made anew without the hidden place, so that only the place itself is blamed.

    Returns:
        (*OCCLUSION_GRID) signed: fall of the log odds of the class.

    Source:
        Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, who hide grey squares.
    """
    size_vox = tuple(x.shape[2:])
    grid = tuple(min(n, size) for n, size in zip(OCCLUSION_GRID[len(size_vox)], size_vox, strict=True))
    blurred = blur(x)
    one_each = np.eye(int(np.prod(grid)), dtype=np.float32).reshape(-1, *grid)
    covers = torch.from_numpy(stretch(one_each, size_vox)).to(x.device)
    odds = []
    for part in covers.split(batch_size):
        cover = part[:, None]
        hidden = x * (1 - cover) + blurred * cover
        if zscore is not None:
            hidden = restandardise(hidden, x, zscore)
        odds.append(_log_odds(predict_probs(network, hidden, size_vox, batch_size=batch_size), target))
    before = _log_odds(predict_probs(network, x, size_vox, batch_size=1), target)
    return (before - np.concatenate(odds)).reshape(grid)


def restandardise(hidden: Tensor, x: Tensor, zscore: ZScore) -> Tensor:
    """Return crops as they would look had something been hidden before the z-score.

    Args:
        hidden: (N, C, *size_vox).
        x: (1, C, *size_vox) the whole crop; in its units, the voxels the z-score was taken over have mean 0 and SD 1.
    """
    first, rest = hidden[:, : zscore.n_channels], hidden[:, zscore.n_channels :]
    axes = tuple(range(1 if zscore.joint else 2, x.ndim))
    moment = lambda power: zscore.share * (
        first.pow(power).mean(axes, keepdim=True) - x[:, : zscore.n_channels].pow(power).mean(axes, keepdim=True)
    )
    mean = moment(1)
    sd = (1 + moment(2) - mean**2).clamp_min(LEAST_VARIANCE).sqrt()
    return torch.cat([(first - mean) / sd, rest], dim=1)


def _log_odds(probs: np.ndarray, target: int) -> np.ndarray:
    p = np.clip(probs[:, target], LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log(p) - np.log1p(-p)


def blur(x: Tensor) -> Tensor:
    """Return a copy of (N, C, *size_vox) without its detail: what hiding a place shows instead."""
    sigma = (0.0, 0.0, *(BLUR * n for n in x.shape[2:]))
    return torch.from_numpy(ndimage.gaussian_filter(x.cpu().numpy(), sigma, mode="nearest")).to(x.device)


def stretch(maps: np.ndarray, size_vox: Sequence[int]) -> np.ndarray:
    """Stretch maps (N, *grid) over the crop, linearly between the centres of the grid's cells: (N, *size_vox) float32."""
    return resample(maps, [0.0] * (maps.ndim - 1), [float(n) for n in maps.shape[1:]], size_vox, linear=True)


def combine(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Join the maps of several networks: each counts alike, and what they disagree on cancels.

    Args:
        maps: signed, on one grid; each is scaled to a largest absolute value of 1 before the mean.
    """
    scaled = [m / peak if (peak := np.abs(m).max()) > 0 else m for m in maps]
    return np.mean(scaled, axis=0)
