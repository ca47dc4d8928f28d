"""Simulated breast ultrasound and contrast-enhanced MRI of one lesion whose look carries one number.

The number, `sign`, is a latent of about unit variance. It moves the lesion's core against its rim, in echogenicity
(ultrasound) or early enhancement (MRI), and nothing else: size, outline, place, tissue, gain and noise come from `rng`
alone, and every pixel outside the mask is the same whatever the sign. What a model knows, it knows from inside the
lesion; one that does well on the mask or the background has found a leak. Core against rim, because the contrast of a
whole lesion with its surroundings all but vanishes when the crop is z-scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Array = np.ndarray

SIGN_LIMIT = 3.5
"""Signs beyond it are rendered as it, to keep lesions credible."""

COMPOUNDED_LOOKS = 3
"""Views averaged into one ultrasound image, as scanners do against speckle."""

CORE_ECHO_DB = -5.0
CORE_ECHO_DB_PER_SIGN = 5.5
RIM_ECHO_DB = -10.0
RIM_ECHO_DB_PER_SIGN = -1.0
"""Echo strength of core and rim against the surroundings."""

CORE_ENHANCEMENT = 0.3
CORE_ENHANCEMENT_PER_SIGN = 0.7
RIM_ENHANCEMENT = 0.8
RIM_ENHANCEMENT_PER_SIGN = -0.1
LEAST_ENHANCEMENT = -0.9
"""Early signal gain of core and rim over the pre-contrast signal; a core that loses signal stands for necrosis."""


@dataclass(frozen=True)
class UsPhantom:
    """One simulated B-mode image.

    Attributes:
        image: log-compressed echo amplitude, uint8, (H, W).
        mask: 1 inside the lesion, uint8, (H, W).
    """

    image: Array
    mask: Array


@dataclass(frozen=True)
class MriPhantom:
    """One simulated fat-suppressed T1 examination, before and shortly after contrast agent.

    Attributes:
        pre: signal before contrast, arbitrary units, int16, (D, H, W).
        early: signal of the early phase on the same grid and scale, int16, (D, H, W).
        mask: 1 inside the lesion, uint8, (D, H, W).
        spacing_mm: voxel size in mm, in the order (D, H, W).
    """

    pre: Array
    early: Array
    mask: Array
    spacing_mm: tuple[float, float, float]


def make_us(sign: float, size_px: tuple[int, int], rng: np.random.Generator) -> UsPhantom:
    """Simulate one ultrasound image with a hypoechoic lesion.

    Speckle is the magnitude of band-limited complex Gaussian noise, Rayleigh distributed in each of three compounded
    views; echo strength follows tissue layers, falls with depth, and is log-compressed to 8 bits.

    Args:
        sign: latent; each unit makes the core 5.5 dB brighter (5 dB below the surroundings at 0) and the rim 1 dB
            darker (10 dB below at 0): a low sign looks like a dark lesion, a high one like a bright one in a ring.
        size_px: (H, W), both at least 48; each image is up to 8 % smaller or larger.
        rng: source of everything else; the same state gives the same pixels.

    Source: Burckhardt, Speckle in ultrasound B-mode scans, 1978, doi:10.1109/T-SU.1978.30978 (Rayleigh statistics).
    """
    height, width = (max(48, round(side * rng.uniform(0.92, 1.08))) for side in size_px)
    shape = (height, width)
    radius = rng.uniform(0.15, 0.22) * min(shape)
    radii = (radius * rng.uniform(0.7, 1.0), radius)
    centre = (height * rng.uniform(0.42, 0.58), width * rng.uniform(0.38, 0.62))
    distance = _lesion_distance(shape, (1.0, 1.0), centre, radii, rng)
    mask = distance < 1

    echo_db = _tissue_layers_db(shape, rng)
    border = rng.uniform(0.08, 0.16)
    heterogeneity = 0.5 * _smooth_noise(shape, 0.25 * radius, rng)
    core = _core(distance)
    core_db = CORE_ECHO_DB + CORE_ECHO_DB_PER_SIGN * _limited(sign)
    rim_db = RIM_ECHO_DB + RIM_ECHO_DB_PER_SIGN * _limited(sign)
    contrast = core * core_db + (1 - core) * rim_db + heterogeneity
    echo_db += _smoothstep((1 - distance) / border) * contrast

    lateral = rng.uniform(1.2, 1.8)
    blur = (rng.uniform(0.6, 0.9), lateral)
    looks = [_smooth_noise(shape, blur, rng) ** 2 for _ in range(2 * COMPOUNDED_LOOKS)]
    speckle = np.sqrt(np.mean(looks, axis=0))
    amplitude = 10 ** (echo_db / 20) * speckle + 0.01
    dynamic_range_db = rng.uniform(50, 60)
    level = 255 * (20 * np.log10(amplitude) + dynamic_range_db - 10 + rng.uniform(-3, 3)) / dynamic_range_db
    return UsPhantom(np.clip(np.rint(level), 0, 255).astype(np.uint8), mask.astype(np.uint8))


def make_mri(sign: float, size_vox: tuple[int, int, int], rng: np.random.Generator) -> MriPhantom:
    """Simulate a pre-contrast and an early post-contrast volume with an enhancing lesion.

    Args:
        sign: latent; each unit raises the relative enhancement of the core by 0.7 (0.3 at 0) and lowers that of the rim
            by 0.1 (0.8 at 0): a low sign looks like ring enhancement, a high one like a bright core.
        size_vox: (D, H, W), at least (8, 24, 24).
        rng: source of everything else; the same state gives the same voxels.

    Source: Gudbjartsson & Patz, The Rician distribution of noisy MRI data, 1995, doi:10.1002/mrm.1910340618 (noise).
    """
    in_plane_mm = rng.uniform(1.1, 1.3)
    spacing_mm = (round(rng.uniform(2.7, 3.3), 3), round(in_plane_mm, 3), round(in_plane_mm, 3))
    extent_mm = np.asarray(size_vox) * np.asarray(spacing_mm)
    radius_mm = min(rng.uniform(0.15, 0.22) * min(extent_mm[1:]), 0.36 * extent_mm[0])
    radii_mm = tuple(radius_mm * rng.uniform(0.8, 1.0, size=3))
    centre_mm = tuple(extent_mm * (rng.uniform(0.44, 0.56), rng.uniform(0.52, 0.6), rng.uniform(0.45, 0.55)))
    distance = _lesion_distance(size_vox, spacing_mm, centre_mm, radii_mm, rng)
    mask = distance < 1

    breast, gland = _breast(size_vox, spacing_mm, rng)
    background_pre = 0.04 + breast * (0.3 + 0.1 * gland)
    background_early = background_pre * (1 + rng.uniform(0.02, 0.12) + rng.uniform(0.05, 0.15) * gland * breast)
    lesion_pre = rng.uniform(0.45, 0.5)
    core = _core(distance)
    rim_gain = max(LEAST_ENHANCEMENT, RIM_ENHANCEMENT + RIM_ENHANCEMENT_PER_SIGN * _limited(sign))
    core_gain = max(LEAST_ENHANCEMENT, CORE_ENHANCEMENT + CORE_ENHANCEMENT_PER_SIGN * _limited(sign))
    enhancement = core * core_gain + (1 - core) * rim_gain
    enhancement += 0.05 * _smooth_noise(size_vox, _in_voxels(0.3 * radius_mm, spacing_mm), rng)
    presence = _smoothstep((1 - distance) / 0.1)

    coil = np.exp(0.06 * _smooth_noise(size_vox, _in_voxels(0.4 * float(extent_mm[1]), spacing_mm), rng))
    scale = rng.uniform(400, 1000)
    phases = []
    for background, lesion in (
        (background_pre, np.full(size_vox, lesion_pre)),
        (background_early, lesion_pre * (1 + enhancement)),
    ):
        signal = coil * (background + presence * (lesion - background))
        real, imaginary = (0.015 * rng.standard_normal(size_vox) for _ in range(2))
        phases.append(np.rint(scale * np.hypot(signal + real, imaginary)).astype(np.int16))
    return MriPhantom(phases[0], phases[1], mask.astype(np.uint8), spacing_mm)


def _limited(sign: float) -> float:
    return float(np.clip(sign, -SIGN_LIMIT, SIGN_LIMIT))


def _core(distance: Array) -> Array:
    """Return how far each pixel is core rather than rim, 0 to 1."""
    return _smoothstep((0.9 - distance) / 0.3)


def _smoothstep(x: Array) -> Array:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _in_voxels(length_mm: float, spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(length_mm / side for side in spacing_mm)


def _smooth_noise(shape: tuple[int, ...], sigma: float | tuple[float, ...], rng: np.random.Generator) -> Array:
    """Return Gaussian noise of zero mean and unit variance, correlated over `sigma` pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _lesion_distance(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    rng: np.random.Generator,
) -> Array:
    """Return the distance from the lesion's centre, 1 on its outline: a tilted ellipsoid with bumps, in 2D or 3D.

    The outline is a function of direction alone, so the lesion is one piece without holes.
    """
    axes = [(np.arange(n) + 0.5) * step - middle for n, step, middle in zip(shape, spacing, centre, strict=True)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    tilt = rng.uniform(-0.5, 0.5)
    turn = np.eye(len(shape))
    turn[-2:, -2:] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    scaled = (offset @ turn) / np.asarray(radii)
    length = np.sqrt((scaled**2).sum(-1))
    direction = scaled / np.maximum(length, 1e-6)[..., None]
    bumps = np.zeros(shape)
    for frequency in (2.0, 3.5, 5.0):
        wave = rng.standard_normal(len(shape))
        wave *= frequency / np.linalg.norm(wave)
        bumps += rng.uniform(0, 0.25) / frequency * np.cos(direction @ wave + rng.uniform(0, 2 * np.pi))
    return length / (1 + bumps)


def _tissue_layers_db(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return echo strength in dB, (H, W): skin, fat, gland, muscle with wavy borders, and what depth takes away."""
    height, width = shape
    depth = ((np.arange(height) + 0.5) / height)[:, None] * np.ones((1, width))
    waves = [0.02 * _smooth_noise((width,), width / 10, rng)[None, :] for _ in range(3)]
    fat_from, gland_from, muscle_from = 0.04, rng.uniform(0.15, 0.24), rng.uniform(0.8, 0.9)
    echo_db = 3 + _smoothstep((depth - fat_from) / 0.02) * -6.0
    echo_db += _smoothstep((depth - gland_from + waves[0]) / 0.05) * 3.0
    echo_db += _smoothstep((depth - muscle_from + waves[1]) / 0.03) * -4.0
    echo_db += 0.5 * _smooth_noise(shape, 0.06 * height, rng)
    return echo_db - rng.uniform(4, 8) * (depth - 0.3)


def _breast(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return how far each voxel is breast, and how far it is gland rather than fat, both 0 to 1, (D, H, W)."""
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    widths = rng.uniform(1.2, 1.5), rng.uniform(0.95, 1.05), rng.uniform(0.52, 0.6)
    away = np.sqrt(((z - 0.5) / widths[0]) ** 2 + ((1.0 - y) / widths[1]) ** 2 + ((x - 0.5) / widths[2]) ** 2)
    breast = _smoothstep((1.0 - away) / 0.06 + 0.5)
    pattern = _smooth_noise(shape, _in_voxels(5.0, spacing_mm), rng)
    gland = _smoothstep(0.5 + pattern + rng.uniform(-0.4, 0.4)) * _smoothstep((0.8 - away) / 0.3)
    return breast, gland
