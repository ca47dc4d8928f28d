"""A network whose layers are fixed: wavelet scattering, random features of a kernel, and one linear layer that is solved.

It looks twice, at the whole crop and at its middle, which the lesion fills: what lies around a lesion and what it is made of
ask for other windows. Each look has a kernel machine of its own, and their logits are averaged.

A convolutional network has to learn edges, spots and textures from the cohort before it can use them. Wavelets have
them from the start, and a cascade "wavelet, modulus, wavelet, modulus, average" describes texture stably under small
deformations. Cosines and sines of random projections stand for a Gaussian kernel on those coefficients, so the linear
layer behind them is a support-vector machine with that kernel. It is solved, not trained by steps
(`her2net.train.solve`), which takes few cases and seconds. No weights are downloaded, and unlike the support vectors
of an ordinary kernel machine the weights hold no patient's image.

Source:
    Mallat 2012, Group invariant scattering, arXiv:1101.2286; Bruna & Mallat 2013, arXiv:1203.1513 (normalisation by
    the logarithm, support-vector machine with a Gaussian kernel); Oyallon et al. 2018, arXiv:1809.06367 (few labelled
    images); Rahimi & Recht 2007 (random Fourier features); Yu et al. 2016, arXiv:1610.09072 (structured orthogonal
    projections).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from her2net.artefact import digest_bytes
from her2net.networks.build import SCATTERING_WINDOWS as WINDOWS
from her2net.preprocess.resample import axis_matrix

N_SCALES = 4
N_DIRECTIONS = 6
POOLED_VOX = {2: (4, 4), 3: (2, 4, 4)}
"""Grid on which the coefficients are averaged: what is where in the crop, coarsely."""

GRID_SHARE = 2 / 3
"""Edge, in plane, of the grid on which a window is described, as a share of the input's: the middle is hardly interpolated then."""

LEAST_WINDOW_SD = 0.01
LOG_OFFSET = 0.05
"""Added before the logarithm, in z-scores: coefficients below it are noise."""

CENTRE_FREQUENCY = 3 * math.pi / 4
WIDTH_VOX = 0.8
SLANT = 0.5
"""The finest Morlet wavelet: frequency in radians per voxel, width, and ratio of its bandwidths (Bruna & Mallat 2013)."""


MEMO_BYTES = 1 << 28
"""How much of what images were described by is kept for the next fold that sees them."""

_described: dict[tuple[tuple[int, ...], str], Tensor] = {}
"""(shape, digest) of an image -> its coefficients, oldest first. They depend on nothing else: no fold fits a wavelet."""


class ScatteringNetwork(nn.Module):
    """Scattering coefficients of orders 0 to 2 in each window, their logarithm standardised, a Gaussian kernel and a linear layer.

    Attributes:
        mean, sd: (n_windows * n_coefficients,) of the logarithms over the training cases.
        width: (n_windows,) of the kernels exp(-width / n_coefficients * squared distance).
        classifier: the layer that is solved; it reads the features of all windows.
    """

    mean: Tensor
    sd: Tensor
    width: Tensor

    def __init__(self, ndim: int, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.scattering = Scattering(ndim)
        n_windows = len(WINDOWS)
        n_coefficients = n_channels * self.scattering.n_coefficients * math.prod(POOLED_VOX[ndim])
        self.register_buffer("mean", torch.zeros(n_windows * n_coefficients))
        self.register_buffer("sd", torch.ones(n_windows * n_coefficients))
        self.register_buffer("width", torch.ones(n_windows))
        self.maps = nn.Identity()  # the last place where a coefficient still has a place in the image: explanations look here
        self.projection = OrthogonalProjection(n_coefficients)
        self.classifier = nn.Linear(n_windows * 2 * self.projection.n_outputs, n_classes)

    def coefficients(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) to the logarithms (N, n_windows * C, n_maps, *POOLED_VOX) float32, window after window.

        On a CPU image after image, which stays within its cache (up to twice as fast as a batch of 16, the same bits),
        and an image that any fold has described before is not described again.
        """
        device = "cpu" if x.is_meta else x.device.type  # `meta`: memory is being estimated
        with torch.autocast(device, enabled=False):  # Fourier transforms need float32
            if x.device.type != "cpu":
                return self._describe(x)
            through = x.requires_grad and torch.is_grad_enabled()
            return torch.cat([self._describe(image) if through else self._remember(image) for image in x.split(1)])

    def _describe(self, x: Tensor) -> Tensor:
        maps = torch.cat([self.scattering(look(x.float(), share)) for share in WINDOWS], dim=1)
        return torch.cat([maps[:, :, :1], torch.log(maps[:, :, 1:] + LOG_OFFSET)], dim=2)

    def _remember(self, image: Tensor) -> Tensor:
        image = image.detach().float().contiguous()
        key = (tuple(image.shape), digest_bytes(image.numpy().tobytes()))
        if key not in _described:
            with torch.inference_mode(False), torch.no_grad():  # what is kept may stand in a gradient later
                found = self._describe(image)
            while _described and (len(_described) + 1) * found.nbytes > MEMO_BYTES:
                del _described[next(iter(_described))]
            _described[key] = found
        return _described[key]

    def kernel_features(self, coefficients: Tensor) -> Tensor:
        """Map (N, n_windows * C, n_maps, *POOLED_VOX) to (N, n_windows, 2 n_outputs), whose scalar products are the kernels."""
        standardised = ((coefficients.flatten(1) - self.mean) / self.sd).view_as(coefficients)
        of_window = self.maps(standardised.flatten(1, 2)).flatten(1).unflatten(1, (len(WINDOWS), -1))
        scale = torch.sqrt(2 * self.width / of_window.shape[2])
        angle = self.projection(of_window.flatten(0, 1)).unflatten(0, of_window.shape[:2]) * scale[:, None]
        return torch.cat([angle.cos(), angle.sin()], dim=2) / math.sqrt(self.projection.n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) to logits (N, n_classes)."""
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):
            return self.classifier(self.kernel_features(self.coefficients(x)).flatten(1))


def look(x: Tensor, share: float) -> Tensor:
    """Cut the middle out of crops, on the grid on which it is described; a part is z-scored by itself, all channels together.

    Args:
        x: (N, C, [D,] H, W) float32.
        share: of each edge.

    Returns:
        (N, C, [D,] 2/3 H, 2/3 W).
    """
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        cut = n * (1 - share) / 2
        size = n if axis < x.ndim - 2 else round(n * GRID_SHARE)
        needed, matrix = axis_matrix(n, cut, n - cut, size)
        x = (x.movedim(axis, -1)[..., needed] @ torch.from_numpy(matrix).T.to(x.device)).movedim(-1, axis)
    if share == 1:
        return x
    axes = tuple(range(1, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True).clamp_min(LEAST_WINDOW_SD)


class OrthogonalProjection(nn.Module):
    """Projections on directions spread like Gaussian ones, three times random signs and a Hadamard transform.

    The signs come from a generator whose numbers are frozen for good, so they need not be stored with the weights.
    """

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.n_outputs = 2 ** math.ceil(math.log2(n_inputs))
        self._signs = 2.0 * np.random.RandomState(0).randint(0, 2, size=(3, self.n_outputs)).astype(np.float32) - 1
        self._on_device: dict[torch.device, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_inputs) to (N, n_outputs) float32."""
        if x.device not in self._on_device:
            with torch.inference_mode(False):  # what is kept may be needed for a gradient later
                self._on_device[x.device] = torch.from_numpy(self._signs).to(x.device)
        x = F.pad(x, (0, self.n_outputs - x.shape[1]))
        for signs in self._on_device[x.device]:
            x = _hadamard(x * signs)
        return x * math.sqrt(self.n_outputs)


def _hadamard(x: Tensor) -> Tensor:
    """Return the normalised Walsh-Hadamard transform of each row; the length is a power of 2."""
    n, half = x.shape[1], 1
    while half < n:
        first, second = x.unflatten(1, (-1, 2, half)).unbind(2)
        x = torch.stack([first + second, first - second], dim=2).flatten(1)
        half *= 2
    return x / math.sqrt(n)


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
                filters = torch.stack([_morlet(shape, scale, direction) for direction in _directions(self.ndim)])
                self._filters[key] = _subsample(filters, step, rescale=False).to(device)
        return self._filters[key]


def _directions(ndim: int) -> Tensor:
    """Return (6, ndim) unit vectors spread over half the circle, or the six axes of an icosahedron."""
    if ndim == 2:
        angle = torch.arange(N_DIRECTIONS, dtype=torch.float64) * math.pi / N_DIRECTIONS
        return torch.stack([torch.sin(angle), torch.cos(angle)], dim=1)
    golden = (1 + math.sqrt(5)) / 2
    axes = [(0, 1, golden), (0, 1, -golden), (1, golden, 0), (1, -golden, 0), (golden, 0, 1), (-golden, 0, 1)]
    return F.normalize(torch.tensor(axes, dtype=torch.float64), dim=1)


def _morlet(shape: Sequence[int], scale: int, direction: Tensor) -> Tensor:
    """Return the Fourier transform, real, of a Morlet wavelet without mean; float32 of `shape`."""
    frequencies = [2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in shape]
    omega = torch.stack(torch.meshgrid(*frequencies, indexing="ij"), dim=-1)
    centre, width = CENTRE_FREQUENCY / 2**scale, WIDTH_VOX * 2**scale
    along = omega @ direction
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
