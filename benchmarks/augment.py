"""Augmentation: her2net against batchgenerators and MONAI, the same seven transforms, each applied always.

    python benchmarks/augment.py                 # 2D 256 and 3D 96, one thread
    python benchmarks/augment.py --size 48 --ndim 3 --threads 2

Flip, scale 0.7 to 1.4, shift by up to a tenth, blur 0.5 to 1 voxel, contrast, brightness, noise; linear
interpolation for all. Rivals work sample by sample, as in their data loaders. First each rival's centre
crop, scale, flip and (MONAI) shift must equal her2net's; then the variants take turns, and medians count.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from her2net.plan.augmentation import AugmentationPlan, paper_augmentation
from her2net.train.augment import augment, draw_parameters, identity_parameters

SHIFT, SCALE, BLUR, CONTRAST, BRIGHTNESS, NOISE_STD = 0.1, (0.7, 1.4), (0.5, 1.0), (0.75, 1.25), 0.25, 0.3
Variant = Callable[[torch.Tensor], object]


def her2net_variant(ndim: int, size: int, dtype: torch.dtype) -> Variant:
    """Return a function that augments a batch (N, 1, *stored) float16."""
    certain = {key: 1.0 for key in AugmentationPlan.model_fields if key.endswith("_probability")}
    settings = AugmentationPlan(**(paper_augmentation(ndim).model_dump() | certain | {"flip_probability": 0.5}))
    generator = torch.Generator().manual_seed(0)
    return lambda x: augment(x, (size,) * ndim, draw_parameters(len(x), ndim, settings, generator), dtype=dtype)


def batchgenerators_variant(ndim: int, size: int) -> Variant:
    """Return the same by batchgenerators, sample by sample."""
    from batchgenerators.augmentations.spatial_transformations import augment_mirroring, augment_spatial
    from batchgenerators.transforms.color_transforms import BrightnessTransform, ContrastAugmentationTransform
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform

    intensity = [
        GaussianBlurTransform(BLUR, different_sigma_per_channel=False),
        ContrastAugmentationTransform(CONTRAST, preserve_range=False),
        BrightnessTransform(0.0, BRIGHTNESS / 2),
        GaussianNoiseTransform((0.0, NOISE_STD**2)),
    ]

    def run(x: torch.Tensor) -> None:
        for sample in x.float().numpy():
            data, _ = augment_spatial(
                sample[None], None, (size,) * ndim, patch_center_dist_from_border=size / 2, do_elastic_deform=False,
                do_rotation=False, scale=(1 / SCALE[1], 1 / SCALE[0]), order_data=1, random_crop=True,
            )  # fmt: skip
            data, _ = augment_mirroring(data[0], None, axes=tuple(range(ndim)))
            batch = {"data": data[None]}
            for transform in intensity:
                batch = transform(**batch)

    return run


def monai_variant(ndim: int, size: int) -> Variant:
    """Return the same by MONAI's array transforms, sample by sample."""
    from monai import transforms as t

    transform = t.Compose([
        *(t.RandFlip(0.5, axis) for axis in range(ndim)),
        t.RandAffine(
            1.0, translate_range=(SHIFT * size,) * ndim, scale_range=((1 / SCALE[1] - 1, 1 / SCALE[0] - 1),),
            spatial_size=(size,) * ndim, padding_mode="border",
        ),
        t.RandGaussianSmooth(BLUR, BLUR, BLUR, prob=1.0),
        t.RandScaleIntensityFixedMean(1.0, CONTRAST[1] - 1),
        t.RandShiftIntensity(BRIGHTNESS, prob=1.0),
        t.RandGaussianNoise(1.0, std=NOISE_STD),
    ])  # fmt: skip
    return lambda x: [transform(sample) for sample in x.float()]


def check_batchgenerators(x: torch.Tensor, size: int) -> None:
    """Compare centre crop, flip and scale with batchgenerators; refuse to go on if they differ."""
    from batchgenerators.augmentations.spatial_transformations import augment_spatial

    ndim, factor = (
        x.ndim - 2,
        0.8,
    )  # it draws from a fixed range only where that lies above 1, and its scale is 1 / ours
    ours = identity_parameters(1, ndim)
    ours = replace(ours, flip=~ours.flip, scale=ours.scale * factor)
    off = {"do_elastic_deform": False, "do_rotation": False, "random_crop": False, "order_data": 1}
    theirs, _ = augment_spatial(x.numpy(), None, (size,) * ndim, scale=(1 / factor, 1 / factor), **off)
    _compare("batchgenerators", augment(x, (size,) * ndim, ours), np.flip(theirs, tuple(range(2, ndim + 2))))


def check_monai(x: torch.Tensor, size: int) -> None:
    """Compare centre crop, flip, scale and shift with MONAI; refuse to go on if they differ."""
    from monai.transforms import Affine

    ndim, factor, voxels = x.ndim - 2, 1.25, 2
    affine = Affine(
        scale_params=(1 / factor,) * ndim, translate_params=(voxels,) * ndim, spatial_size=(size,) * ndim,
        padding_mode="border", image_only=True,
    )  # fmt: skip
    ours = identity_parameters(1, ndim)
    shift = torch.full((1, ndim), -voxels / size, dtype=torch.float64)  # MONAI moves the grid, not the content
    ours = replace(ours, scale=ours.scale * factor, shift=shift, flip=~ours.flip)
    theirs = np.asarray(affine(x[0]))[None]
    _compare("MONAI", augment(x, (size,) * ndim, ours), np.flip(theirs, tuple(range(2, ndim + 2))))


def _compare(name: str, ours: torch.Tensor, theirs: np.ndarray) -> None:
    difference = float(np.abs(ours.numpy() - theirs).max())
    if difference > 1e-3:
        raise SystemExit(f"{name} does other work: the results differ by up to {difference:.3g}. Nothing was timed.")
    print(f"  {name:<16} agrees to {difference:.1e} on what both can be told to do exactly")


def run(ndim: int, size: int, n: int, repeats: int) -> None:
    """Check, time in turns and print one table."""
    stored = size + 2 * round(SHIFT * size) + size % 2  # of the size's parity: centres differ by no half voxel
    stored -= (stored - size) % 2
    x = torch.randn(n, 1, *(stored,) * ndim, generator=torch.Generator().manual_seed(0)).half()
    variants: dict[str, Variant] = {
        "her2net fp32": her2net_variant(ndim, size, torch.float32),
        "her2net bf16": her2net_variant(ndim, size, torch.bfloat16),
    }
    print(f"\n{ndim}D, {n} samples of {stored}^{ndim} -> {size}^{ndim}")
    rivals = (
        ("batchgenerators", check_batchgenerators, batchgenerators_variant),
        ("MONAI", check_monai, monai_variant),
    )
    for name, check, make in rivals:
        try:
            check(x[:1].float(), size)
            variants[name] = make(ndim, size)
        except ImportError as error:
            print(f"  {name:<16} left out: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant(x)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    fastest = statistics.median(seconds["her2net bf16"])
    print(f"  {'':<16} {'samples/s':>10} {'her2net bf16 is faster by':>27}   (slowest to fastest run)")
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{n / max(times):.1f} to {n / min(times):.1f}"
        print(f"  {name:<16} {n / median:>10.1f} {median / fastest:>26.1f}x   ({spread})")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ndim", type=int, choices=(2, 3), help="default: both")
    parser.add_argument("--size", type=int, help="output voxels per axis; default 256 in 2D, 96 in 3D")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, torch {torch.__version__}, {args.threads} thread(s), {args.repeats} rounds")
    for ndim in (args.ndim,) if args.ndim else (2, 3):
        run(ndim, args.size or (256 if ndim == 2 else 96), args.samples, args.repeats)


if __name__ == "__main__":
    main()
