"""What a map is worth, in figures: does it lie on the lesion, does the network need what it shows, does it depend on
what the network has learned.

Crops are cut around the lesion, so a blob in the middle of every crop looks good, too. `mask_share` (a map without any
structure) and `energy_centre` (that blob) stand beside the energy inside the mask for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.stats import spearmanr
from torch import Tensor, nn

from her2net.evaluate.bootstrap import bootstrap_interval
from her2net.evaluate.estimate import Estimate, undefined
from her2net.evaluate.weighted import mean_statistic
from her2net.explain.geometry import Window, to_original, window_slices
from her2net.explain.maps import blur, stretch
from her2net.networks.build import build_network
from her2net.train.loop import predict_probs

METRICS = {
    "energy_inside": "share of the map's sum that lies inside the mask",
    "mask_share": "share of the crop that the mask covers: the energy of a map without structure",
    "energy_centre": "energy inside the mask of a blob in the middle of the crop",
    "pointing": "1 if the maximum of the map lies inside the mask, else 0",
    "deletion_auc": "mean probability of the class while the crop is blurred, the map's highest places first: low is good",
    "insertion_auc": "mean probability of the class while a blurred crop is restored in this order: high is good",
    "randomised_rho": "rank correlation with the map of networks with random weights: near 0 is good",
    "randomised_abs_rho": "the same without sign: near 1, the map shows the image rather than what was learned",
}
N_STEPS = 10
N_RANDOM = 3
RANDOM_SEED = 20
CENTRE_SD = 0.25
"""Standard deviation of the blob in the middle, in edges of the crop."""


def localise(shown: np.ndarray, mask: np.ndarray | None, window: Window) -> dict[str, float | None]:
    """Compare a map with the lesion, both in the original image.

    Args:
        shown: ([D,] H, W) at least 0, 0 outside the window.
        mask: ([D,] H, W) bool; `None` or empty leaves the figures undefined.

    Source:
        Wang et al. 2020, arXiv:1910.01279 (energy); Zhang et al. 2018, arXiv:1608.00507 (pointing game, here without
        tolerance).
    """
    names = ("energy_inside", "mask_share", "energy_centre", "pointing")
    if mask is None or not mask.any():
        return dict.fromkeys(names)
    blob = to_original(_centre_blob(shown.ndim), window, shown.shape)
    inside = window_slices(window, shown.shape)
    found: dict[str, float | None] = {
        "energy_inside": None, "mask_share": float(mask[inside].mean()), "pointing": None,
        "energy_centre": float(blob[mask].sum() / blob.sum()),
    }  # fmt: skip
    if shown.any():
        found["energy_inside"] = float(shown[mask].sum(dtype=np.float64) / shown.sum(dtype=np.float64))
        found["pointing"] = float(mask.flat[int(shown.argmax())])
    return found


def _centre_blob(ndim: int, cells: int = 16) -> np.ndarray:
    edge = np.exp(-0.5 * (((np.arange(cells) + 0.5) / cells - 0.5) / CENTRE_SD) ** 2)
    blob = edge
    for _ in range(ndim - 1):
        blob = blob[..., None] * edge
    return blob.astype(np.float32)


def perturb(
    networks: Sequence[nn.Module], x: Tensor, target: int, signed: np.ndarray, *, batch_size: int
) -> dict[str, float | None]:
    """Blur the crop place by place in the order of the map, and the reverse; follow the probability of the class.

    Args:
        x: (1, C, *input_vox).
        signed: map on its grid, before what speaks against the class is cut off, so that the order is complete.

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421; here both curves go between the crop and its blurred copy.
    """
    size_vox = tuple(x.shape[2:])
    order = stretch(signed[None].astype(np.float32), size_vox).ravel().argsort(kind="stable")[::-1]
    rank = np.empty(len(order))
    rank[order] = (np.arange(len(order)) + 0.5) / len(order)
    ranks = torch.from_numpy(rank.astype(np.float32).reshape(size_vox)).to(x.device)
    blurred = blur(x)
    shares = np.linspace(0, 1, N_STEPS + 1)
    curves = []
    for first, then in ((blurred, x), (x, blurred)):  # places of low rank show `first`
        views = torch.cat([torch.where(ranks < share, first, then) for share in shares.tolist()])
        probs = [predict_probs(network, views, size_vox, batch_size=batch_size)[:, target] for network in networks]
        curves.append(trapezoid(np.mean(probs, axis=0), shares))
    return {"deletion_auc": float(curves[0]), "insertion_auc": float(curves[1])}


def random_networks(name: str, n_channels: int, n_classes: int, like: nn.Module) -> list[nn.Module]:
    """Return networks as they are before training, on the device of a trained one; always the same ones."""
    found = []
    for number in range(N_RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED + number)
            network = build_network(name, n_channels=n_channels, n_classes=n_classes)
        found.append(network.to(next(like.parameters()).device).eval())
    return found


def compare_with_random(signed: np.ndarray, random_maps: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Rank-correlate a map with those of networks with random weights.

    Args:
        signed: map on its grid, before what speaks against the class is cut off.
        random_maps: on the same grid; a constant one has no ranks and does not count.

    Source:
        Adebayo et al. 2018, arXiv:1810.03292, section 4.
    """
    varied = [m for m in random_maps if np.ptp(m) > 0]
    if np.ptp(signed) == 0 or not varied:
        return {"randomised_rho": None, "randomised_abs_rho": None}
    rho = [float(spearmanr(signed.ravel(), m.ravel()).statistic) for m in varied]
    return {"randomised_rho": float(np.mean(rho)), "randomised_abs_rho": float(np.mean(np.abs(rho)))}


def mean_over_cases(values: Sequence[float | None], patients: Sequence[str]) -> Estimate:
    """Return the mean of one figure over the cases where it is defined, with an interval that draws whole patients."""
    known = [(v, p) for v, p in zip(values, patients, strict=True) if v is not None]
    if not known:
        return undefined("undefined in every case")
    figures = np.array([v for v, _ in known])
    if len({p for _, p in known}) < 2:
        return Estimate(float(figures.mean()), float("nan"), float("nan"), "", "fewer than two patients")
    owners = np.array([p for _, p in known])
    return bootstrap_interval(mean_statistic(figures), np.zeros(len(figures), int), owners, method="percentile")
