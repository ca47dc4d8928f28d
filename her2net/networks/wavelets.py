"""The wavelet scattering transform: wavelet, modulus, wavelet, modulus, average.

Source:
    Mallat 2012, Group invariant scattering, arXiv:1101.2286; Bruna & Mallat 2013, arXiv:1203.1513.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

N_SCALES = 4
N_DIRECTIONS = 6
POOLED_VOX = {2: (4, 4), 3: (2, 4, 4)}
"""Grid on which the coefficients are averaged: what is where in the crop, coarsely."""

CENTRE_FREQUENCY = 3 * math.pi / 4
WIDTH_VOX = 0.8
SLANT = 0.5
"""The finest Morlet wavelet: frequency in radians per voxel, width, and ratio of its bandwidths (Bruna & Mallat 2013)."""


class Scattering(nn.Module):
    """The scattering transform of any number of channels, each for itself; it has no weights.

    Filters are made for the size of the first image and kept; products are taken in the Fourier domain, and each
    scale is computed on the coarsest grid that holds it.
    """

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self._filters: dict[tuple[object, ...], Tensor] = {}

    @property
    def n_coefficients(self) -> int:
        """Number of maps per channel: 1 + n + n^2 (pairs of a finer and a coarser scale)."""
        return 1 + N_SCALES * N_DIRECTIONS + N_SCALES * (N_SCALES - 1) // 2 * N_DIRECTIONS**2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) float32 to (N, C, n_coefficients, *POOLED_VOX), order 0 first; orders 1 and 2 are >= 0."""
        axes = tuple(range(-self.ndim, 0))
        shape = tuple(x.shape[-self.ndim :])
        steps = [self._step(shape, scale) for scale in range(N_SCALES)]
        maps = [self._average(x)[:, :, None]]
        spectrum = torch.fft.fftn(x, dim=axes)[:, :, None]
        for fine in range(N_SCALES):
            wavelets = self._wavelets(shape, steps[fine], fine, x.device)
            first = torch.fft.ifftn(_subsample(spectrum, steps[fine]) * wavelets, dim=axes).abs()
            maps.append(self._average(first))
            first_spectrum = torch.fft.fftn(first, dim=axes)[:, :, :, None]
            for coarse in range(fine + 1, N_SCALES):
                relative = tuple(b // a for a, b in zip(steps[fine], steps[coarse], strict=True))
                wavelets = self._wavelets(shape, steps[coarse], coarse, x.device)
                second = torch.fft.ifftn(_subsample(first_spectrum, relative) * wavelets, dim=axes).abs()
                maps.append(self._average(second).flatten(2, 3))
        return torch.cat(maps, dim=2)

    def _average(self, maps: Tensor) -> Tensor:
        pool = nn.AdaptiveAvgPool2d if self.ndim == 2 else nn.AdaptiveAvgPool3d
        leading, shape = maps.shape[: -self.ndim], maps.shape[-self.ndim :]
        pooled = pool(POOLED_VOX[self.ndim])(maps.reshape(-1, 1, *shape))
        return pooled.reshape(*leading, *POOLED_VOX[self.ndim])

    def _step(self, shape: Sequence[int], scale: int) -> tuple[int, ...]:
        """Return by how much each axis may be subsampled at a scale: half the wavelet's period, never below the grid."""
        steps = []
        for size, pooled in zip(shape, POOLED_VOX[self.ndim], strict=True):
            step = 1
            while step * 2 <= 2 ** max(scale - 1, 0) and size % (step * 2) == 0 and size // (step * 2) >= 2 * pooled:
                step *= 2
            steps.append(step)
        return tuple(steps)

    def _wavelets(self, shape: tuple[int, ...], step: tuple[int, ...], scale: int, device: torch.device) -> Tensor:
        """Return the filters (n_directions, *shape / step) of one scale on a grid subsampled by `step`."""
        key = (shape, step, scale, device)
        if key not in self._filters:
            with torch.inference_mode(False):  # what is kept may be needed for a gradient later
                filters = torch.stack([_morlet(shape, scale, towards) for towards in directions(self.ndim)])
                self._filters[key] = _subsample(filters, step, rescale=False).to(device)
        return self._filters[key]


def directions(ndim: int) -> np.ndarray:
    """Return (6, ndim) unit vectors spread over half the circle, or the six axes of an icosahedron."""
    if ndim == 2:
        angle = np.arange(N_DIRECTIONS) * math.pi / N_DIRECTIONS
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)
    golden = (1 + math.sqrt(5)) / 2
    axes = np.array([(0, 1, golden), (0, 1, -golden), (1, golden, 0), (1, -golden, 0), (golden, 0, 1), (-golden, 0, 1)])
    return axes / np.hypot(1, golden)


def _morlet(shape: Sequence[int], scale: int, towards: np.ndarray) -> Tensor:
    """Return the Fourier transform, real, of a Morlet wavelet without mean; float32 of `shape`."""
    frequencies = [2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in shape]
    omega = torch.stack(torch.meshgrid(*frequencies, indexing="ij"), dim=-1)
    centre, width = CENTRE_FREQUENCY / 2**scale, WIDTH_VOX * 2**scale
    along = omega @ torch.tensor(towards)
    across = ((omega**2).sum(-1) - along**2) / SLANT**2
    wave = torch.exp(-0.5 * width**2 * ((along - centre) ** 2 + across))
    envelope = torch.exp(-0.5 * width**2 * (along**2 + across))
    return (wave - math.exp(-0.5 * width**2 * centre**2) * envelope).float()


def _subsample(spectrum: Tensor, step: Sequence[int], *, rescale: bool = True) -> Tensor:
    """Keep the low frequencies of the last axes: the spectrum of every `step`-th sample of what has no others.

    A wavelet has next to nothing above the frequencies of the grid its own scale is computed on.

    Args:
        rescale: divide by the number of samples per sample kept, as the inverse transform of a shorter spectrum needs.
    """
    for axis, by in enumerate(step, start=spectrum.ndim - len(step)):
        if by > 1:
            n, size = spectrum.shape[axis], spectrum.shape[axis] // by
            above = size // 2
            low, high = spectrum.narrow(axis, 0, size - above), spectrum.narrow(axis, n - above, above)
            spectrum = torch.cat([low, high], dim=axis)
    return spectrum / math.prod(step) if rescale else spectrum
