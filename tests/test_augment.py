"""Batch augmentation: each transform against what it claims, all of them against grid_sample."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from her2net.plan.augmentation import AugmentationPlan, default_augmentation, mirrors_only, paper_augmentation
from her2net.train import augment as module
from her2net.train.augment import Parameters, augment, center_crop, draw_parameters, identity_parameters, mixup

STORED = {2: (27, 33), 3: (14, 19, 22)}
INPUT = {2: (20, 24), 3: (9, 12, 16)}
BOTH = pytest.mark.parametrize("ndim", [2, 3])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_batch(ndim: int, n: int = 4, channels: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, channels, *STORED[ndim], generator=rng(3)).to(dtype)


def settings(ndim: int, **changes: Any) -> AugmentationPlan:
    """The paper's ranges, every transform switched off but for what is changed."""
    base = paper_augmentation(ndim).model_dump()
    off = {key: 0.0 for key in base if key.endswith("_probability")}
    return AugmentationPlan(**(base | off | {"mixup_alpha": 0.0} | changes))


def everything(ndim: int) -> AugmentationPlan:
    certain = {key: 1.0 for key in AugmentationPlan.model_fields if key.endswith("_probability")}
    certain |= dict.fromkeys(("rotation_probability", "elastic_probability", "gamma_probability"), 0.0)  # of the other engine
    return settings(ndim, **(certain | {"flip_probability": 0.5}))


def only(ndim: int, n: int = 4, **values: Any) -> Parameters:
    """Parameters that change one thing."""
    return replace(identity_parameters(n, ndim), **values)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identity_is_the_centre_crop_exactly(ndim: int, dtype: torch.dtype) -> None:
    x = some_batch(ndim, dtype=dtype)
    margins = [(s - o) // 2 for s, o in zip(STORED[ndim], INPUT[ndim], strict=True)]
    window = tuple(slice(m, m + o) for m, o in zip(margins, INPUT[ndim], strict=True))
    expected = x[(..., *window)].float()
    assert torch.equal(center_crop(x, INPUT[ndim]), expected)
    assert torch.equal(augment(x, INPUT[ndim], identity_parameters(4, ndim)), expected)
    # One sample is moved, so that all go through the matrices: the others stay exact.
    scale = torch.tensor([1.0, 1.0, 1.3, 1.0], dtype=torch.float64)
    out = augment(x, INPUT[ndim], only(ndim, scale=scale))
    assert out.dtype == torch.float32
    assert torch.equal(out[[0, 1, 3]], expected[[0, 1, 3]])
    assert not torch.equal(out[2], expected[2])


@BOTH
def test_probability_zero_is_the_identity(ndim: int) -> None:
    x = some_batch(ndim)
    parameters = draw_parameters(4, ndim, settings(ndim), rng())
    assert torch.equal(augment(x, INPUT[ndim], parameters), center_crop(x, INPUT[ndim]))


def reference(x: Tensor, input_vox: tuple[int, ...], p: Parameters) -> Tensor:
    """Warp by grid_sample with a rim for the blur, convolve with a Gaussian, change intensities."""
    out = []
    for i in range(len(x)):
        radius = int(4 * p.blur_sigma_vox[i] + 0.5)
        axes = []
        for axis, size in enumerate(input_vox):
            stored = x.shape[2 + axis]
            place = torch.arange(-radius, size + radius, dtype=torch.float64) - (size - 1) / 2
            place = -place if p.flip[i, axis] else place
            centre = (stored - size) // 2 + (size - 1) / 2
            voxel = centre + place / p.scale[i] - p.shift[i, axis] * size
            axes.append(2 * voxel / (stored - 1) - 1)
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
        y = F.grid_sample(x[i : i + 1].double(), grid, mode="bilinear", padding_mode="border", align_corners=True)
        y = y.numpy()[0]
        if radius:
            y = np.stack([gaussian_filter(channel, float(p.blur_sigma_vox[i]), truncate=4.0) for channel in y])
            inner = (slice(radius, -radius),) * len(input_vox)
            y = y[(slice(None), *inner)]
        mean = y.mean(axis=tuple(range(1, y.ndim)), keepdims=True)
        out.append(torch.from_numpy((y - mean) * float(p.contrast[i]) + mean + float(p.brightness[i])))
    return torch.stack(out)


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_grid_sample_and_convolution(ndim: int, channels: int) -> None:
    x = some_batch(ndim, n=6, channels=channels)
    drawn = draw_parameters(6, ndim, everything(ndim), rng(5))
    parameters = replace(drawn, noise_std=torch.zeros(6, dtype=torch.float64))
    out = augment(x, INPUT[ndim], parameters)
    expected = reference(x, INPUT[ndim], parameters)
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=0)
    rough = augment(x, INPUT[ndim], parameters, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert (rough - out).abs().mean() < 0.01


@BOTH
def test_flip_is_exact(ndim: int) -> None:
    x = some_batch(ndim)
    for axis in range(ndim):
        flip = torch.zeros(4, ndim, dtype=torch.bool)
        flip[1:, axis] = True
        out = augment(x, INPUT[ndim], only(ndim, flip=flip))
        plain = center_crop(x, INPUT[ndim])
        assert torch.equal(out[0], plain[0])
        assert torch.equal(out[1:], plain[1:].flip(2 + axis))


@BOTH
def test_shift_by_whole_voxels_is_exact_and_brings_in_the_margin(ndim: int) -> None:
    x = some_batch(ndim)
    for axis in range(ndim):
        for voxels in (-2, 2):
            shift = torch.zeros(4, ndim, dtype=torch.float64)
            shift[:, axis] = voxels / INPUT[ndim][axis]
            out = augment(x, INPUT[ndim], only(ndim, shift=shift))
            torch.testing.assert_close(out, center_crop(x.roll(voxels, 2 + axis), INPUT[ndim]), atol=1e-6, rtol=0)


def test_beyond_the_stored_array_the_edge_repeats() -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    out = augment(x, (8, 8), only(2, 1, shift=torch.tensor([[0.0, 0.25]], dtype=torch.float64)))
    assert out[0, 0, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@BOTH
def test_scale_is_about_the_centre_of_the_crop(ndim: int) -> None:
    stored, size = (41,) * ndim, (21,) * ndim
    axes = torch.meshgrid(*[torch.arange(41.0) - 20] * ndim, indexing="ij")
    for axis in range(ndim):
        x = axes[axis][None, None]
        out = augment(x, size, only(ndim, 1, scale=torch.tensor([0.5], dtype=torch.float64)))
        torch.testing.assert_close(out, 2 * center_crop(x, size))
        out = augment(x, size, only(ndim, 1, scale=torch.tensor([2.0], dtype=torch.float64)))
        torch.testing.assert_close(out, 0.5 * center_crop(x, size))
    assert x.shape[2:] == stored


@BOTH
def test_blur_reduces_variance_and_keeps_a_constant(ndim: int) -> None:
    x = some_batch(ndim)
    sigma = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    variance = augment(x, INPUT[ndim], only(ndim, blur_sigma_vox=sigma)).var(dim=tuple(range(1, ndim + 2)))
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)
    assert variance[3] < 0.1 * variance[0]
    flat = augment(torch.ones_like(x), INPUT[ndim], only(ndim, blur_sigma_vox=sigma))
    torch.testing.assert_close(flat, torch.ones_like(flat))


@BOTH
def test_contrast_and_brightness(ndim: int) -> None:
    x = some_batch(ndim)
    plain = center_crop(x, INPUT[ndim])
    contrast = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    brightness = torch.tensor([0.0, 0.0, 0.0, 0.25], dtype=torch.float64)
    out = augment(x, INPUT[ndim], only(ndim, contrast=contrast, brightness=brightness))
    mean = plain.mean(dim=tuple(range(2, ndim + 2)), keepdim=True)
    assert torch.equal(out[0], plain[0])
    for index, factor in ((1, 0.5), (2, 2.0)):
        torch.testing.assert_close(out[index], mean[index] + factor * (plain[index] - mean[index]))
    assert torch.equal(out[3], plain[3] + 0.25)


@pytest.mark.parametrize("pool", [1 << 22, 8])
def test_noise_has_its_standard_deviation_and_follows_its_seed(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_SIZE", pool)
    module._noise_pool.cache_clear()
    x = torch.zeros(4, 1, 64, 64)
    std = torch.tensor([0.0, 0.3, 0.3, 0.3], dtype=torch.float64)
    seed = torch.tensor([2, 2, 2, 3])
    out = augment(x, (64, 64), only(2, noise_std=std, noise_seed=seed))
    module._noise_pool.cache_clear()
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[1], out[2])
    assert not torch.equal(out[1], out[3])
    assert out[1].std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(out[1].mean().item()) < 0.02


@BOTH
def test_same_generator_same_bits_whatever_the_batch(ndim: int) -> None:
    x = some_batch(ndim, n=6, dtype=torch.float16)
    first, second = (draw_parameters(6, ndim, everything(ndim), rng(9)) for _ in range(2))
    assert all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Parameters))
    whole = augment(x, INPUT[ndim], first)
    assert torch.equal(whole, augment(x, INPUT[ndim], second))
    parts = [augment(x[i : i + 1], INPUT[ndim], first.rows(i, i + 1)) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-6, rtol=0)


def test_the_generator_advances_alike_whatever_the_settings() -> None:
    first, second = rng(1), rng(1)
    draw_parameters(4, 2, settings(2), first)
    draw_parameters(4, 2, everything(2), second)
    assert torch.equal(first.get_state(), second.get_state())


@BOTH
def test_drawn_values_stay_in_their_ranges_and_hit_as_often_as_said(ndim: int) -> None:
    plan = paper_augmentation(ndim)
    p = draw_parameters(20_000, ndim, plan, rng(2))
    neutral = {"scale": 1.0, "blur_sigma_vox": 0.0, "contrast": 1.0, "brightness": 0.0, "noise_std": 0.0}
    for key, value in neutral.items():
        drawn = getattr(p, key)
        hit = drawn != value
        low, high = getattr(plan, key)
        assert low - 1e-9 <= drawn[hit].min() <= drawn[hit].max() <= high + 1e-9
        expected = getattr(plan, key.replace("_std", "").replace("_sigma_vox", "") + "_probability")
        assert hit.double().mean().item() == pytest.approx(expected, abs=0.015)
    assert p.shift.abs().max() <= plan.shift
    assert (p.shift != 0).any(1).double().mean().item() == pytest.approx(plan.shift_probability, abs=0.015)
    expected_flips = [0.5 if allowed else 0.0 for allowed in plan.flip_axes]
    assert p.flip.double().mean(0).tolist() == pytest.approx(expected_flips, abs=0.015)


def test_mixup_mixes_images_and_targets_alike() -> None:
    targets = F.one_hot(torch.tensor([0, 1, 1, 0, 1, 0]), 2).float()
    x = targets[:, 1].view(6, 1, 1, 1).expand(6, 1, 4, 4)
    mixed, soft = mixup(x, targets, 0.4, rng(4))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed[:, 0, 0, 0], soft[:, 1])
    assert ((soft > 0) & (soft < 1)).any()
    again = mixup(x, targets, 0.4, rng(4))
    assert torch.equal(mixed, again[0])
    assert torch.equal(soft, again[1])
    same, untouched = mixup(x, targets, 0.0, rng(4))
    assert same is x
    assert untouched is targets


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixing_weights_follow_the_beta_distribution(alpha: float) -> None:
    n = 20_000
    _, position = mixup(torch.zeros(n, 1, 1, 1), torch.arange(n, dtype=torch.float64)[:, None], alpha, rng(6))
    partner_generator = rng(6)
    torch.rand(n, dtype=torch.float64, generator=partner_generator)
    partner = torch.randperm(n, generator=partner_generator)
    own = torch.arange(n)
    apart = partner != own
    weight = ((position[:, 0] - partner) / (own - partner))[apart]
    assert weight.mean().item() == pytest.approx(0.5, abs=0.01)
    assert weight.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@BOTH
@pytest.mark.parametrize("preset", [paper_augmentation, default_augmentation, mirrors_only])
def test_presets_are_valid_and_survive_json(ndim: int, preset: Any) -> None:
    plan = preset(ndim)
    assert AugmentationPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.ndim == ndim
    # The declared reach is what the strongest draw needs, and no more.
    size = 100
    p = identity_parameters(1, ndim)
    if plan.reach:
        p = replace(p, scale=p.scale * plan.scale[0], shift=torch.full((1, ndim), plan.shift, dtype=torch.float64))
    stored = size + 2 * int(np.ceil(plan.reach * size))
    matrix = module.axis_matrix(0, stored, size, p)[0]
    assert (matrix[:, 0] > 0).sum() <= 1  # the edge voxel is not repeated
    assert matrix[0].nonzero().min() <= 2  # and the row that looks furthest comes near it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": (1.4, 0.7)}, "scale is"),
        ({"noise_std": (-0.1, 0.3)}, "noise_std is"),
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"shift": 0.9}, "shift"),
        ({"flip_axes": (True,)}, "flip_axes"),
        ({"rotation": 1.0}, "rotation"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(2, **changes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = some_batch(2)
    with pytest.raises(ValueError, match="fewer than"):
        center_crop(x, (40, 24))
    with pytest.raises(ValueError, match="3 sets of parameters for 4 samples"):
        augment(x, INPUT[2], identity_parameters(3, 2))
    with pytest.raises(ValueError, match="spatial axes"):
        augment(x, INPUT[3], identity_parameters(4, 2))
    with pytest.raises(ValueError, match="3 spatial axes"):
        draw_parameters(4, 2, paper_augmentation(3), rng())
