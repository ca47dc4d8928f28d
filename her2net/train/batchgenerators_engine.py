"""Augmentation of single samples by batchgenerators, for what mixes axes or is no matrix: rotation, elastic deformation, gamma.

Runs in worker processes, which is why nothing here imports torch. The transforms shared with the separable engine
take the same drawn values and give the same result; `her2net.train.batches` draws them.

Order: elastic deformation, rotation, flip, scale and shift (one interpolation), blur, contrast, brightness, gamma, noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from her2net.errors import MissingDependencyError

BLUR_TRUNCATE = 4.0  # standard deviations, as in the separable engine and in SciPy


@dataclass(frozen=True)
class Draw:
    """What was drawn for one sample, as plain numbers; the first eight as in `her2net.train.augment.Parameters`.

    Attributes:
        angles_rad: one in 2D, about the axes D, H and W in 3D; all 0 for no rotation.
        elastic_alpha: strength of the deformation as batchgenerators takes it; 0 for none.
        elastic_sigma_vox: smoothness of the deformation.
        gamma: range from which batchgenerators draws the exponent; `None` for none.
        seed: of the deformation, the exponent and the noise.
    """

    flip: tuple[bool, ...]
    scale: float
    shift: tuple[float, ...]
    blur_sigma_vox: float
    contrast: float
    brightness: float
    noise_std: float
    seed: int
    angles_rad: tuple[float, ...]
    elastic_alpha: float
    elastic_sigma_vox: float
    gamma: tuple[float, float] | None


@dataclass(frozen=True)
class Job:
    """A batch for a worker: (N, C, *stored_vox) float16, and a draw for each sample."""

    images: np.ndarray
    input_vox: tuple[int, ...]
    draws: tuple[Draw, ...]


def require_batchgenerators() -> None:
    """Refuse to begin without the package.

    Raises:
        MissingDependencyError: names the command that installs it.
    """
    try:
        import batchgenerators.augmentations.utils  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'training.augmentation.engine is "batchgenerators", which cannot be imported ({error}). '
            'Run: pip install "her2net[batchgenerators]", or set the engine to "separable" in the plan.'
        ) from error


def augment_job(job: Job) -> np.ndarray:
    """Augment a batch; returns (N, C, *input_vox) float32. At module level so that worker processes find it."""
    return np.stack([augment_sample(image, job.input_vox, draw) for image, draw in zip(job.images, job.draws, strict=True)])


def augment_sample(image: np.ndarray, input_vox: Sequence[int], draw: Draw) -> np.ndarray:
    """Augment one sample.

    Args:
        image: (C, *stored_vox); beyond it the edge voxel repeats.
        input_vox: size wanted, ([D,] H, W).
        draw: what to do.

    Returns:
        (C, *input_vox) float32.
    """
    from batchgenerators.augmentations.color_augmentations import augment_gamma
    from batchgenerators.augmentations.noise_augmentations import augment_gaussian_blur, augment_gaussian_noise
    from batchgenerators.augmentations.utils import interpolate_img

    with _seeded(draw.seed):
        reach = int(BLUR_TRUNCATE * draw.blur_sigma_vox + 0.5)
        coordinates = _coordinates(image.shape[1:], input_vox, reach, draw)
        warped = np.stack([interpolate_img(c.astype(np.float32), coordinates, order=1, mode="nearest") for c in image])
        if draw.blur_sigma_vox:
            warped = augment_gaussian_blur(warped, (draw.blur_sigma_vox, draw.blur_sigma_vox), per_channel=False)
            warped = warped[(slice(None), *(slice(reach, reach + n) for n in input_vox))]
        mean = warped.mean(axis=tuple(range(1, warped.ndim)), keepdims=True)
        x = (warped - mean) * draw.contrast + mean + draw.brightness
        if draw.gamma is not None:
            x = augment_gamma(x, draw.gamma, retain_stats=True, per_channel=True)
        if draw.noise_std:
            x = augment_gaussian_noise(x, (draw.noise_std**2, draw.noise_std**2))
    return x.astype(np.float32)


def _coordinates(stored: Sequence[int], size: Sequence[int], reach: int, draw: Draw) -> np.ndarray:
    """Return (ndim, *size + 2 reach): at which stored voxel each output voxel looks."""
    from batchgenerators.augmentations.utils import (
        create_zero_centered_coordinate_mesh,
        elastic_deform_coordinates,
        rotate_coords_2d,
        rotate_coords_3d,
    )

    places = create_zero_centered_coordinate_mesh(tuple(n + 2 * reach for n in size))
    if draw.elastic_alpha:
        places = elastic_deform_coordinates(places, draw.elastic_alpha, draw.elastic_sigma_vox)
    if any(draw.angles_rad):
        places = rotate_coords_2d(places, *draw.angles_rad) if len(size) == 2 else rotate_coords_3d(places, *draw.angles_rad)
    for axis, (n_stored, n, flipped, shift) in enumerate(zip(stored, size, draw.flip, draw.shift, strict=True)):
        places[axis] *= (-1.0 if flipped else 1.0) / draw.scale
        places[axis] += (n_stored - 1) / 2 - shift * n
    return places


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which batchgenerators draws, and give it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
