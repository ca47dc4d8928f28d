"""Augmentation: her2net against batchgenerators, batchgeneratorsv2, MONAI, TorchIO and kornia; the same seven transforms.

    python benchmarks/augment.py                 # 2D 256 and 3D 96, one thread
    python benchmarks/augment.py --size 48 --ndim 3 --threads 2

Flip, scale 0.7 to 1.4, shift by up to a tenth, blur 0.5 to 1 voxel, contrast, brightness, noise, each applied always;
linear interpolation for all. kornia works on the batch, in 2D (its 3D has the geometric ones alone); the others sample by
sample, as in their data loaders. TorchIO has no brightness or contrast: a lambda stands in. First each rival's centre crop
and magnification (flip and shift where they can be told exactly) must equal her2net's; then the variants take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from harness import Row, compare, finish, refuse, take_turns

from her2net.plan.augmentation import AugmentationPlan, paper_augmentation
from her2net.plan.machine import cpu_has_bf16
from her2net.train.augment import augment, draw_parameters, identity_parameters

SHIFT, SCALE, BLUR, CONTRAST, BRIGHTNESS, NOISE_STD = 0.1, (0.7, 1.4), (0.5, 1.0), (0.75, 1.25), 0.25, 0.3
FACTOR = 1.25
TARGETS = {
    2: {"batchgenerators": 5, "batchgeneratorsv2": 5, "MONAI": 8, "TorchIO": 9, "kornia": 1.8},
    3: {"batchgenerators": 12, "batchgeneratorsv2": 8, "MONAI": 10, "TorchIO": 6},
}
Variant = Callable[[torch.Tensor], object]


def her2net_variant(ndim: int, size: int, dtype: torch.dtype) -> Variant:
    """Return a function that augments a batch (N, 1, *stored) float16."""
    certain = {f"{key}_probability": 1.0 for key in ("scale", "shift", "blur", "contrast", "brightness", "noise")}
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


def batchgeneratorsv2_variant(ndim: int, size: int) -> Variant:
    """Return the same by batchgeneratorsv2, sample by sample."""
    from batchgeneratorsv2.transforms.intensity.brightness import BrightnessAdditiveTransform
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    transforms = [
        SpatialTransform((size,) * ndim, size / 2, random_crop=True, p_scaling=1, scaling=(1 / SCALE[1], 1 / SCALE[0]),
                         p_synchronize_scaling_across_axes=1, padding_mode_image="border"),
        MirrorTransform(tuple(range(ndim))), GaussianBlurTransform(BLUR, synchronize_axes=True),
        ContrastTransform(CONTRAST, preserve_range=False, synchronize_channels=True),
        BrightnessAdditiveTransform(0.0, BRIGHTNESS / 2), GaussianNoiseTransform((0.0, NOISE_STD**2)),
    ]  # fmt: skip

    def run(x: torch.Tensor) -> None:
        for sample in x.float():
            data = {"image": sample}
            for transform in transforms:
                data = transform(**data)

    return run


def torchio_variant(ndim: int, size: int) -> Variant:
    """Return the same by TorchIO, sample by sample."""
    import torchio as tio

    axes = tuple(range(3))[:ndim]
    move = (SHIFT * size,) * ndim + (0.0,) * (3 - ndim)
    chain = tio.Compose([
        tio.RandomFlip(axes), tio.CropOrPad((size,) * ndim + (1,) * (3 - ndim)),
        tio.RandomAffine(scales=SCALE, degrees=0, translation=move, isotropic=True, default_pad_value="minimum"),
        tio.RandomBlur((*BLUR,) * ndim + (0.0, 0.0) * (3 - ndim)),
        tio.Lambda(lambda x: (x - x.mean()) * np.random.uniform(*CONTRAST) + x.mean() + np.random.uniform(-BRIGHTNESS, BRIGHTNESS)),
        tio.RandomNoise(std=(0.0, NOISE_STD)),
    ])  # fmt: skip

    def run(x: torch.Tensor) -> None:
        for sample in x.float():
            chain(sample if ndim == 3 else sample[..., None])

    return run


def kornia_variant(ndim: int, size: int) -> Variant:
    """Return the same by kornia, the whole batch at once."""
    import kornia.augmentation as K

    chain = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5),
        K.RandomAffine(0.0, (SHIFT, SHIFT), SCALE, padding_mode="border", p=1.0), K.CenterCrop(size),
        K.RandomGaussianBlur((9, 9), BLUR, border_type="replicate", p=1.0),
        K.RandomContrast(CONTRAST, clip_output=False, p=1.0),
        K.RandomBrightness((1 - BRIGHTNESS, 1 + BRIGHTNESS), clip_output=False, p=1.0),
        K.RandomGaussianNoise(std=NOISE_STD, p=1.0),
    )  # fmt: skip
    return lambda x: chain(x.float())


def check_batchgenerators(x: torch.Tensor, size: int) -> None:
    """Compare centre crop, flip and scale with batchgenerators; refuse to go on if they differ."""
    from batchgenerators.augmentations.spatial_transformations import augment_spatial

    ndim, factor = x.ndim - 2, 0.8  # it draws from a fixed range only where that lies above 1, and its scale is 1 / ours
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


def check_batchgeneratorsv2(x: torch.Tensor, size: int) -> None:
    """Compare centre crop and scale with batchgeneratorsv2."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    transform = SpatialTransform((size,) * (x.ndim - 2), 0, random_crop=False, p_scaling=1, scaling=1 / FACTOR,
                                 p_synchronize_scaling_across_axes=1, padding_mode_image="border")  # fmt: skip
    _compare("batchgeneratorsv2", _magnified(x, size), transform(image=x[0])["image"].numpy()[None])


def check_torchio(x: torch.Tensor, size: int) -> None:
    """Compare centre crop and scale with TorchIO."""
    import torchio as tio

    ndim = x.ndim - 2
    sample = x[0] if ndim == 3 else x[0, ..., None]
    affine = tio.Affine(scales=FACTOR, degrees=0, translation=0, center="image")
    crop = tio.CropOrPad((size,) * ndim + (1,) * (3 - ndim))
    theirs = crop(affine(sample)).numpy()
    _compare("TorchIO", _magnified(x, size), (theirs if ndim == 3 else theirs[..., 0])[None])


def check_kornia(x: torch.Tensor, size: int) -> None:
    """Compare centre crop and scale with kornia."""
    from kornia.geometry.transform import center_crop, scale

    factor = torch.tensor([[FACTOR, FACTOR]])
    theirs = center_crop(scale(x, factor, padding_mode="border", align_corners=True), (size, size))
    _compare("kornia", _magnified(x, size), theirs.numpy())


def _magnified(x: torch.Tensor, size: int) -> torch.Tensor:
    ours = identity_parameters(1, x.ndim - 2)
    return augment(x, (size,) * (x.ndim - 2), replace(ours, scale=ours.scale * FACTOR))


RIVALS: dict[str, tuple[Callable[[torch.Tensor, int], None], Callable[[int, int], Variant]]] = {
    "batchgenerators": (check_batchgenerators, batchgenerators_variant),
    "batchgeneratorsv2": (check_batchgeneratorsv2, batchgeneratorsv2_variant),
    "MONAI": (check_monai, monai_variant),
    "TorchIO": (check_torchio, torchio_variant),
    "kornia": (check_kornia, kornia_variant),
}


def _compare(name: str, ours: torch.Tensor, theirs: np.ndarray) -> None:
    difference = float(np.abs(ours.numpy() - theirs).max())
    if difference > 2e-3:
        refuse(f"{name}: the results differ by up to {difference:.3g}")
    print(f"  {name:<18} agrees to {difference:.1e} on what both can be told to do exactly")


def run(ndim: int, size: int, n: int, rounds: int) -> list[Row]:
    """Check, then time in turns."""
    stored = size + 2 * round(SHIFT * size) + size % 2  # of the size's parity: centres differ by no half voxel
    stored -= (stored - size) % 2
    x = torch.randn(n, 1, *(stored,) * ndim, generator=torch.Generator().manual_seed(0)).half()
    dtype = torch.bfloat16 if cpu_has_bf16() else torch.float32
    variants: dict[str, Variant] = {"ours": her2net_variant(ndim, size, dtype)}
    print(f"{ndim}D, {n} samples of {stored}^{ndim} -> {size}^{ndim}")
    for name in TARGETS[ndim]:
        check, make = RIVALS[name]
        check(x[:1].float(), size)
        variants[name] = make(ndim, size)
    cost = take_turns({name: lambda f=f: f(x) for name, f in variants.items()}, rounds)
    note = f"matrix products in {str(dtype).removeprefix('torch.')}"
    return [compare(f"augment {size}^{ndim}: {name}", cost["ours"], cost[name], target=target, per=n, note=note)
            for name, target in TARGETS[ndim].items()]  # fmt: skip


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ndim", type=int, choices=(2, 3), help="default: both")
    parser.add_argument("--size", type=int, help="output voxels per axis; default 256 in 2D, 96 in 3D")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for ndim in (args.ndim,) if args.ndim else (2, 3):
        rows += run(ndim, args.size or (256 if ndim == 2 else 96), args.samples, args.rounds)
    return finish(rows)


if __name__ == "__main__":
    raise SystemExit(main())
