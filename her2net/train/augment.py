"""Augmentation of whole batches as a few matrix products, on the CPU or the GPU.

Flip, scale and shift act on each axis by itself, and so does a Gaussian blur. All of them
together are therefore one small matrix per axis and sample, (output voxels x stored voxels),
and a batch is warped and blurred by two (2D) or three (3D) batched matrix products. That is the
linear interpolation of `grid_sample` followed by a convolution, several times as fast. Contrast
and brightness are one `a * x + b`; the noise comes last.

All randomness is in `draw_parameters`; `augment` is deterministic, and its result for a sample
does not depend on the batch it stands in. Rotation and other transforms that mix axes cannot be
expressed this way.

Shapes: N samples, C channels, S stored voxels and O output voxels per axis, K blur taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from her2net.plan.augmentation import AugmentationPlan

BLUR_TRUNCATE = 4.0  # standard deviations, as scipy.ndimage.gaussian_filter
POOL_SIZE = 1 << 22  # standard normals drawn once; a sample takes a run of them from a random place
CHUNK_BYTES = 1 << 22  # a CPU works on this much at a time, to stay within its cache


@dataclass(frozen=True)
class Parameters:
    """What was drawn for the N samples of a batch; small tensors on the CPU.

    Attributes:
        flip: (N, ndim) bool, whether the axis is reversed.
        scale: (N,) float64, magnification about the centre of the crop; 1 leaves it.
        shift: (N, ndim) float64, by how much content moves towards higher indices before it is
            magnified, as a fraction of the input size.
        blur_sigma_vox: (N,) float64; 0 for no blur.
        contrast: (N,) float64, factor on the deviation from the channel mean; 1 leaves it.
        brightness: (N,) float64, added to every voxel.
        noise_std: (N,) float64; 0 for no noise.
        noise_seed: (N,) int64, which noise.
    """

    flip: Tensor
    scale: Tensor
    shift: Tensor
    blur_sigma_vox: Tensor
    contrast: Tensor
    brightness: Tensor
    noise_std: Tensor
    noise_seed: Tensor

    def __len__(self) -> int:
        return len(self.scale)

    def rows(self, start: int, stop: int) -> Parameters:
        """Return the parameters of samples start..stop-1."""
        return Parameters(**{name: value[start:stop] for name, value in vars(self).items()})


def identity_parameters(n: int, ndim: int) -> Parameters:
    """Return the parameters that change nothing: `augment` is then the exact centre crop."""
    zeros, ones = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    return Parameters(
        flip=torch.zeros(n, ndim, dtype=torch.bool),
        scale=ones,
        shift=torch.zeros(n, ndim, dtype=torch.float64),
        blur_sigma_vox=zeros,
        contrast=ones,
        brightness=zeros,
        noise_std=zeros,
        noise_seed=torch.zeros(n, dtype=torch.int64),
    )


def draw_parameters(n: int, ndim: int, settings: AugmentationPlan, generator: torch.Generator) -> Parameters:
    """Draw the parameters of n samples.

    Args:
        n: number of samples.
        ndim: spatial axes, 2 or 3; must be that of the settings.
        settings: ranges and probabilities.
        generator: CPU generator; advanced by the same amount whatever the settings.
    """
    if settings.ndim != ndim:
        raise ValueError(f"the settings are for {settings.ndim} spatial axes, the images have {ndim}")
    columns = iter(torch.rand(13 + 2 * ndim, n, dtype=torch.float64, generator=generator))

    def column() -> Tensor:
        return next(columns)

    def pick(limits: tuple[float, float], probability: float, neutral: float) -> Tensor:
        hit, where = column() < probability, column()
        return torch.where(hit, limits[0] + (limits[1] - limits[0]) * where, neutral)

    may_flip = torch.tensor(settings.flip_axes)
    flip = torch.stack([column() < settings.flip_probability for _ in range(ndim)], 1) & may_flip
    log_scale = pick((math.log(settings.scale[0]), math.log(settings.scale[1])), settings.scale_probability, 0.0)
    hit = column() < settings.shift_probability
    directions = torch.stack([2.0 * column() - 1.0 for _ in range(ndim)], 1)
    return Parameters(
        flip=flip,
        scale=log_scale.exp(),
        shift=torch.where(hit[:, None], settings.shift * directions, 0.0),
        blur_sigma_vox=pick(settings.blur_sigma_vox, settings.blur_probability, 0.0),
        contrast=pick(settings.contrast, settings.contrast_probability, 1.0),
        brightness=pick(settings.brightness, settings.brightness_probability, 0.0),
        noise_std=pick(settings.noise_std, settings.noise_probability, 0.0),
        noise_seed=(column() * 2.0**52).long(),
    )


def center_crop(x: Tensor, input_vox: Sequence[int]) -> Tensor:
    """Return the middle of a stored batch: what validation and inference see.

    Args:
        x: (N, C, [D,] H, W), any float type.
        input_vox: output size per spatial axis, at most the stored one.

    Returns:
        (N, C, *input_vox) float32.
    """
    return _crop(x, input_vox).float()


def _crop(x: Tensor, input_vox: Sequence[int]) -> Tensor:
    for axis, size in enumerate(input_vox, start=2):
        x = x.narrow(axis, _margin(x.shape[axis], size), size)
    return x


def _margin(stored: int, size: int) -> int:
    if stored < size:
        raise ValueError(f"the stored axis has {stored} voxels, fewer than the {size} of the input")
    return (stored - size) // 2


@torch.no_grad()
def augment(
    x: Tensor, input_vox: Sequence[int], parameters: Parameters, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Apply drawn parameters to a stored batch.

    Args:
        x: (N, C, [D,] H, W) float16, bfloat16 or float32; may be larger than the input, and the
            margin is then what scaling and shifting bring in. Beyond it the edge voxel repeats.
        input_vox: output size per spatial axis.
        parameters: of the N samples.
        dtype: of the matrix products; bfloat16 is faster where the processor has it (error of about 0.4 %).

    Returns:
        (N, C, *input_vox) float32, on the device of x.
    """
    if len(parameters) != len(x):
        raise ValueError(f"there are {len(parameters)} sets of parameters for {len(x)} samples")
    if x.ndim - 2 != len(input_vox) or parameters.flip.shape[1] != len(input_vox):
        raise ValueError(f"x has {x.ndim - 2} spatial axes, input_vox {len(input_vox)}")
    step = len(x)
    if x.device.type == "cpu":
        step = max(1, CHUNK_BYTES // (4 * x[0].numel()))
    out = x.new_empty((len(x), x.shape[1], *input_vox), dtype=torch.float32)
    for start in range(0, len(x), step):
        stop = min(start + step, len(x))
        rows = parameters.rows(start, stop)
        part = out[start:stop]
        part.copy_(_warp(x[start:stop], input_vox, rows, dtype))
        _change_intensities(part, rows)
        _add_noise(part, rows)
    return out


def _warp(x: Tensor, input_vox: Sequence[int], parameters: Parameters, dtype: torch.dtype) -> Tensor:
    """Return (N, C, *input_vox) in the dtype of the matrix products, or of x where there were none."""
    if _keeps_geometry(parameters):
        return _crop(x, input_vox)
    n, channels = x.shape[:2]
    axes = list(zip(x.shape[2:], input_vox, strict=True))
    x = x.float().to(dtype)  # in two steps: float16 straight to bfloat16 is ten times as slow on a CPU
    for axis, (stored, size) in enumerate(axes):
        # Each product consumes the first spatial axis and puts its result last, so that after
        # ndim of them the axes are in order again, and nothing was ever copied.
        matrix = axis_matrix(axis, stored, size, parameters).to(device=x.device, dtype=dtype)
        if channels > 1:
            matrix = matrix.repeat_interleave(channels, 0)
        x = torch.bmm(x.reshape(n * channels, stored, -1).transpose(1, 2), matrix.transpose(1, 2))
    return x.view(n, channels, *input_vox)


def _keeps_geometry(parameters: Parameters) -> bool:
    changed = parameters.flip.any() | (parameters.shift != 0).any()
    return not bool(changed | (parameters.scale != 1).any() | (parameters.blur_sigma_vox != 0).any())


def axis_matrix(axis: int, stored: int, size: int, parameters: Parameters) -> Tensor:
    """Return the (N, size, stored) float32 matrix that flips, scales, shifts and blurs one axis.

    Output voxel o looks at stored voxel `margin + c + (o' - c) / scale - shift`, where c is the centre of the
    crop and o' is o, or `size - 1 - o` under a flip; linear interpolation, the edge voxel repeats beyond the
    stored array. The blur is that of the warped image, sampled at o - K .. o + K.
    """
    n = len(parameters)
    centre = (size - 1) / 2
    taps = _blur_taps(parameters.blur_sigma_vox)  # (N, K)
    reach = taps.shape[1] // 2
    place = torch.arange(-reach, size + reach, dtype=torch.float64) - centre  # (O + 2 reach,)
    step = torch.where(parameters.flip[:, axis], -1.0, 1.0) / parameters.scale
    position = _margin(stored, size) + centre - parameters.shift[:, axis] * size
    position = (position[:, None] + step[:, None] * place).clamp_(0, stored - 1)
    low = position.floor().clamp_(max=max(stored - 2, 0))
    fraction = (position - low).float()
    weights = torch.stack((1 - fraction, fraction), -1).unfold(1, taps.shape[1], 1)  # (N, O, 2, K)
    index = torch.stack((low, (low + 1).clamp_(max=stored - 1)), -1).long().unfold(1, taps.shape[1], 1)
    weights = weights * taps[:, None, None]
    matrix = torch.zeros(n, size, stored)
    return matrix.scatter_add_(2, index.reshape(n, size, -1), weights.reshape(n, size, -1))


def _blur_taps(sigma_vox: Tensor) -> Tensor:
    """Return (N, K) float32 Gaussian weights that sum to 1; each sample is cut at its own radius."""
    radius = (BLUR_TRUNCATE * sigma_vox + 0.5).floor()
    reach = int(radius.max()) if len(radius) else 0
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offset / sigma_vox.clamp(min=1e-6)[:, None]) ** 2)
    taps = torch.where(offset.abs() <= radius[:, None], taps, 0.0)
    return (taps / taps.sum(1, keepdim=True)).float()


def _change_intensities(x: Tensor, parameters: Parameters) -> None:
    """Apply contrast about the channel mean, then brightness, in place."""
    contrast, brightness = parameters.contrast, parameters.brightness
    changed = (contrast != 1) | (brightness != 0)
    if not bool(changed.any()):
        return
    shape = (-1,) + (1,) * (x.ndim - 1)
    factor = contrast.to(device=x.device, dtype=torch.float32).view(shape)
    offset = brightness.to(device=x.device, dtype=torch.float32).view(shape)
    if bool((contrast != 1).any()):
        offset = offset + x.mean(dim=tuple(range(2, x.ndim)), keepdim=True) * (1 - factor)
    x.mul_(factor).add_(offset)


def _add_noise(x: Tensor, parameters: Parameters) -> None:
    """Add Gaussian noise in place, to the samples that drew some."""
    for index in (parameters.noise_std != 0).nonzero().flatten().tolist():
        seed, std = int(parameters.noise_seed[index]), float(parameters.noise_std[index])
        flat = x[index].view(-1)
        # The lowest bit of the seed is the sign, which doubles what the pool has to offer.
        flat.add_(_noise(flat.numel(), seed >> 1, x.device), alpha=-std if seed & 1 else std)


def _noise(size: int, seed: int, device: torch.device) -> Tensor:
    """Return (size,) standard normals that the seed decides: a run of a fixed pool, or new ones if it is too small."""
    if 2 * size > POOL_SIZE:
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=device)
    start = seed % (POOL_SIZE - size)
    return _noise_pool(str(device))[start : start + size]


@lru_cache(maxsize=4)
def _noise_pool(device: str) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(20250101)
    return torch.randn(POOL_SIZE, generator=generator).to(device)


def mixup(x: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix every sample with another of the batch, by a weight of its own from Beta(alpha, alpha).

    Args:
        x: (N, C, [D,] H, W).
        targets: (N, n_classes) float, one-hot or soft; rows sum to 1.
        alpha: 0 returns both unchanged.
        generator: CPU generator.

    Returns:
        Mixed images and targets, of the shapes given.

    Source:
        Zhang et al. 2018, arXiv:1710.09412; there one weight per batch, here one per sample.
    """
    if alpha == 0:
        return x, targets
    from scipy.special import betaincinv

    n = len(x)
    uniform = torch.rand(n, dtype=torch.float64, generator=generator)
    weight = torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy())).to(device=x.device, dtype=x.dtype)
    partner = torch.randperm(n, generator=generator).to(x.device)
    mixed = torch.lerp(x[partner], x, weight.view((-1,) + (1,) * (x.ndim - 1)))
    return mixed, torch.lerp(targets[partner], targets, weight.to(targets.dtype)[:, None])
