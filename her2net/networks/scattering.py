"""A network whose layers are fixed: wavelet scattering, random features of Gaussian kernels, and one linear layer that is solved.

It looks twice, at the whole crop and at its middle, which the lesion fills: what lies around a lesion and what it is made of
ask for other windows. And it sums up what the middle is made of, whatever the place: its centre and its rim, each as a whole.
Each of the three has a kernel machine of its own, and their logits are averaged.

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
from scipy.linalg import block_diag, hadamard
from torch import Tensor, nn
from torch.nn import functional as F

from her2net.artefact import digest_bytes
from her2net.networks.build import SCATTERING_WINDOWS as WINDOWS
from her2net.networks.wavelets import N_DIRECTIONS, N_SCALES, POOLED_VOX, Scattering, directions
from her2net.preprocess.resample import axis_matrix

GRID_SHARE = 2 / 3
"""Edge, in plane, of the grid on which a window is described, as a share of the input's: the middle is hardly interpolated then."""

WINDOW_WIDTHS = (1.0, 0.3)
SUMMARY_WIDTHS = (0.3, 0.1)
"""Kernel widths to choose from, the smoother one last; a summary has fewer numbers, so its distances tell more apart."""

LEAST_OUTPUTS = 4096
"""Random projections of a kernel: each product of two cases is then within some 0.02 of the kernel's."""

LEAST_WINDOW_SD = 0.01
LEAST_VARIANCE = 1e-6
LOG_OFFSET = 0.05
"""Added before the logarithm, in z-scores: coefficients below it are noise."""

MEMO_BYTES = 1 << 28
"""How much of what images were described by is kept for the next fold that sees them."""

_described: dict[tuple[tuple[int, ...], str], Tensor] = {}
"""(shape, digest) of an image -> its coefficients, oldest first. They depend on nothing else: no fold fits a wavelet."""


class GaussianFeatures(nn.Module):
    """Standardise numbers, and map them to features whose scalar products are a Gaussian kernel.

    Attributes:
        mean, sd: (n_inputs,) over the training cases.
        width: of the kernel exp(-width / n_inputs * squared distance).
        widths: to choose from, in the order they are tried.
    """

    mean: Tensor
    sd: Tensor
    width: Tensor

    def __init__(self, n_inputs: int, widths: tuple[float, ...]) -> None:
        super().__init__()
        self.n_inputs, self.widths = n_inputs, widths
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("sd", torch.ones(n_inputs))
        self.register_buffer("width", torch.ones(()))
        self.projection = OrthogonalProjection(n_inputs)
        self.n_features = 2 * self.projection.n_outputs

    def standardise(self, x: Tensor) -> Tensor:
        """Map (N, n_inputs) to z-scores."""
        return (x - self.mean) / self.sd

    def forward(self, z: Tensor) -> Tensor:
        """Map z-scores (N, n_inputs) to features (N, n_features)."""
        angle = self.projection(z) * torch.sqrt(2 * self.width / self.n_inputs)
        return torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(self.projection.n_outputs)


class ScatteringNetwork(nn.Module):
    """Logarithms of scattering coefficients in each window and their summary, a Gaussian kernel on each, and a linear layer.

    Attributes:
        kernels: one for each window, and the last for the summary.
        classifier: the layer that is solved; it reads the features of all kernels.
    """

    kernels: Sequence[GaussianFeatures]

    def __init__(self, ndim: int, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.scattering = Scattering(ndim)
        self.summary = Summary(ndim)
        self.maps = nn.Identity()  # the last place where a coefficient still has a place in the image: explanations look here
        n_coefficients = n_channels * self.scattering.n_coefficients * math.prod(POOLED_VOX[ndim])
        windows = [GaussianFeatures(n_coefficients, WINDOW_WIDTHS) for _ in WINDOWS]
        summary = GaussianFeatures(n_channels * self.summary.n_outputs, SUMMARY_WIDTHS)
        self.kernels = nn.ModuleList([*windows, summary])  # type: ignore[assignment]  # iterates over any modules
        self.classifier = nn.Linear(sum(kernel.n_features for kernel in self.kernels), n_classes)

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

    def inputs(self, coefficients: Tensor) -> list[Tensor]:
        """Part (N, n_windows * C, n_maps, *POOLED_VOX) into what each kernel reads, (N, n_inputs) each."""
        of_window = coefficients.chunk(len(WINDOWS), dim=1)
        return [*(part.flatten(1) for part in of_window), self.summary(of_window[-1])]

    def kernel_features(self, coefficients: Tensor) -> list[Tensor]:
        """Map (N, n_windows * C, n_maps, *POOLED_VOX) to the features (N, n_features) of each kernel."""
        *windows, summary = self.kernels
        parts = coefficients.chunk(len(WINDOWS), dim=1)
        z = torch.cat([kernel.standardise(part.flatten(1)) for kernel, part in zip(windows, parts, strict=True)], dim=1)
        of_window = self.maps(z.view_as(coefficients).flatten(1, 2)).flatten(1).chunk(len(WINDOWS), dim=1)
        middle = (of_window[-1] * windows[-1].sd + windows[-1].mean).view_as(parts[-1])
        sums = summary.standardise(self.summary(middle))
        return [kernel(part) for kernel, part in zip(self.kernels, [*of_window, sums], strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) to logits (N, n_classes)."""
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):
            return self.classifier(torch.cat(self.kernel_features(self.coefficients(x)), dim=1))


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


class Summary(nn.Module):
    """What a window is made of, whatever the place: its centre, half of each edge in plane, and the rim around it, as a whole.

    First-order coefficients keep their direction, because a beam has one; of second-order ones those are averaged whose two
    wavelets stand at the same angle to each other. The order 0 gives the mean and how much it varies from place to place.
    """

    zones: Tensor
    groups: Tensor

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.register_buffer("zones", _zones(POOLED_VOX[ndim]), persistent=False)
        self.register_buffer("groups", _groups(ndim), persistent=False)
        self.n_outputs = len(self.zones) * (2 + len(self.groups))

    def forward(self, logs: Tensor) -> Tensor:
        """Map the logarithms of one window (N, C, n_maps, *POOLED_VOX) to (N, C * n_outputs)."""
        level, logs = logs[:, :, 0].flatten(2), logs[:, :, 1:].flatten(3)
        mean = level @ self.zones.T  # (N, C, n_zones)
        spread = ((level[:, :, None] - mean[..., None]) ** 2 * self.zones).sum(-1).clamp_min(LEAST_VARIANCE).sqrt()
        strength = self.groups @ (logs.exp() - LOG_OFFSET) @ self.zones.T  # (N, C, n_groups, n_zones)
        strength = torch.log(strength.clamp_min(0) + LOG_OFFSET)
        return torch.cat([mean[:, :, None], torch.log(spread + LOG_OFFSET)[:, :, None], strength], dim=2).flatten(1)


def _zones(pooled: tuple[int, ...]) -> Tensor:
    """Return (2, n_places): weights of the places of the grid that average its centre, and its rim, in plane."""
    inner = np.zeros(pooled, np.float32)
    rows, columns = (slice(n // 4, n - n // 4) for n in pooled[-2:])
    inner[..., rows, columns] = 1
    zones = np.stack([inner, 1 - inner]).reshape(2, -1)
    return torch.tensor(zones / zones.sum(axis=1, keepdims=True))


def _groups(ndim: int) -> Tensor:
    """Return (n_groups, n_maps - 1): weights that average the coefficients of each group, in the order of `Scattering`."""
    towards = directions(ndim)
    cosines = np.abs(towards @ towards.T).round(3)
    of_pair = np.stack([(cosines == c).ravel() / (cosines == c).sum() for c in np.unique(cosines)])
    blocks = [block for fine in range(N_SCALES) for block in (np.eye(N_DIRECTIONS), *[of_pair] * (N_SCALES - 1 - fine))]
    return torch.tensor(block_diag(*blocks), dtype=torch.float32)


class OrthogonalProjection(nn.Module):
    """Projections on directions spread like Gaussian ones, three times random signs and a Hadamard transform.

    The signs come from a generator whose numbers are frozen for good, so they need not be stored with the weights.
    The transform of a x b numbers is that of a, Kronecker that of b: two small matrix products.
    """

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.n_outputs = max(2 ** math.ceil(math.log2(n_inputs)), LEAST_OUTPUTS)
        self._signs = 2.0 * np.random.RandomState(0).randint(0, 2, size=(3, self.n_outputs)).astype(np.float32) - 1
        self._on_device: dict[torch.device, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_inputs) to (N, n_outputs) float32."""
        if x.device not in self._on_device:
            first = 2 ** (self.n_outputs.bit_length() // 2)
            transforms = [hadamard(n, np.float32) / math.sqrt(n) for n in (first, self.n_outputs // first)]
            with torch.inference_mode(False):  # what is kept may be needed for a gradient later
                self._on_device[x.device] = [torch.from_numpy(array).to(x.device) for array in (self._signs, *transforms)]
        all_signs, left, right = self._on_device[x.device]
        x = F.pad(x, (0, self.n_outputs - x.shape[1]))
        for signs in all_signs:
            x = (left @ (x * signs).view(-1, len(left), len(right)) @ right).flatten(1)
        return x * math.sqrt(self.n_outputs)
