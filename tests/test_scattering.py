"""The wavelet scattering transform and the network on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from her2net.networks.build import build_network
from her2net.networks.scattering import N_DIRECTIONS, N_SCALES, Scattering


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "pooled"), [((32, 32), (4, 4)), ((8, 24, 24), (2, 4, 4))])
def test_shapes_and_signs(size: tuple[int, ...], pooled: tuple[int, ...]) -> None:
    scattering = Scattering(len(size))
    maps = scattering(images(2, 3, *size))
    assert maps.shape == (2, 3, scattering.n_coefficients, *pooled)
    assert (maps[:, :, 1:] >= 0).all()


def test_a_flat_image_has_no_texture() -> None:
    maps = Scattering(2)(torch.full((1, 1, 64, 64), 3.0))
    assert torch.allclose(maps[:, :, 0], torch.full((1, 1, 4, 4), 3.0))
    assert maps[:, :, 1:].abs().max() < 1e-4


def test_a_grating_answers_at_its_own_scale_and_direction() -> None:
    columns = torch.cos(3 * math.pi / 16 * torch.arange(64.0))  # centre frequency of the wavelets of scale 2
    first = Scattering(2)(columns.expand(1, 1, 64, 64))[0, 0, 1:, 1, 1]
    by_scale = [1 + scale * N_DIRECTIONS + _before(scale) for scale in range(N_SCALES)]
    energy = torch.stack([first[start - 1 : start - 1 + N_DIRECTIONS] for start in by_scale])
    assert np.unravel_index(energy.argmax().item(), energy.shape) == (2, 0)


def _before(scale: int) -> int:
    """Number of second-order maps that stand before the first-order maps of a scale."""
    return sum(N_SCALES - 1 - fine for fine in range(scale)) * N_DIRECTIONS**2


def test_small_shifts_change_little_and_noise_changes_much() -> None:
    scattering = Scattering(2)
    smooth = torch.nn.functional.avg_pool2d(images(1, 1, 70, 70), 7, stride=1)
    here, shifted = scattering(smooth[..., :64, :64]), scattering(smooth[..., :64, 1:])
    other = scattering(torch.nn.functional.avg_pool2d(images(1, 1, 70, 70, seed=1), 7, stride=1))
    assert (here - shifted).norm() < 0.25 * (here - other).norm()


def test_coarse_grids_hold_what_fine_grids_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(1, 1, 64, 64)
    quick = Scattering(2)(x)
    monkeypatch.setattr(Scattering, "_step", lambda self, shape, scale: (1,) * len(shape))
    exact = Scattering(2)(x)
    assert (quick - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", ["scattering_2d", "scattering_3d"])
def test_the_network_learns_a_texture_from_thirty_cases(name: str) -> None:
    torch.manual_seed(0)
    size = (24, 24) if name == "scattering_2d" else (8, 16, 16)
    x, labels = images(30, 1, *size), torch.arange(30) % 2
    x[labels == 1] = (x[labels == 1] + x[labels == 1].roll(1, -1)) / math.sqrt(2)  # same mean and SD, other grain
    network = build_network(name, n_channels=1, n_classes=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x[:20]), labels[:20]).backward()
        optimizer.step()
    network.eval()
    assert (network(x[20:]).argmax(1) == labels[20:]).float().mean() >= 0.9


def test_the_gradient_reaches_the_image() -> None:
    x = images(2, 1, 16, 16).requires_grad_()
    build_network("scattering_2d", n_channels=1, n_classes=2).eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
