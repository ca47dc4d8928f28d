"""Features of what lies around a lesion: the ring, the margin, and the tissue behind it. None of them knows the outline's shape.

IBSI describes the inside of a mask. Readers of breast ultrasound also look at how the lesion differs from the tissue
around it, how sharp its margin is, and whether sound is swallowed or enhanced behind it (BI-RADS). Every length is a share of the
lesion's own radius and every figure a ratio, so neither size nor gain of the image matters.

Source:
    Ring: Braman et al. 2017, doi:10.1186/s13058-017-0846-1 (peritumoral radiomics). Margin and posterior features: ACR BI-RADS
    Atlas 2013, ultrasound lexicon; Flores et al. 2015, doi:10.1016/j.patcog.2014.06.006.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

import numpy as np

RIM, NEAR, FAR = 0.25, 0.35, 1.0
"""Depth of the rim inside, and outer edges of the near and the far ring outside, in radii of the lesion."""
MIN_VOX = 2.0
SCALES = {"fine": 0.05, "coarse": 0.15}
"""SDs of the Gaussian derivatives at the margin, in radii."""
LOST = 0.1
"""Slope across the outline, in SDs of the surroundings per SD of the derivative, below which no margin is seen."""
BANDS = (0.06, 0.12, 0.25)
"""SDs between whose Gaussian blurs texture is measured, in radii."""
BEHIND = 1.0
"""Depth of the region behind the lesion, in radii."""
FLANK = 0.6
"""Width of the tissue beside it that it is compared with, in radii."""
MIN_STD = 1e-6


def describe_surroundings(
    array: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], families: Collection[str]
) -> dict[str, float]:
    """Return the features of one channel, NaN where there is no tissue to measure.

    Args:
        array: ([D,] H, W); the image as far as it goes around the lesion.
        lesion: bool, of the same shape, not empty.
        spacing_mm: in the order of the array; only its ratios matter.
        families: of `ring`, `margin` and `behind`; the last is of flat images, whose rows go down into the body.
    """
    from scipy import ndimage

    unit = min(spacing_mm)
    spacing = tuple(s / unit for s in spacing_mm)
    radius = _radius(lesion, spacing)
    window = _window(lesion, spacing, radius)
    image, inside = array[window].astype(np.float64), lesion[window]
    depth = ndimage.distance_transform_edt(inside, spacing) - ndimage.distance_transform_edt(~inside, spacing)
    near = (depth < 0) & (depth >= -max(NEAR * radius, MIN_VOX))
    parts = {
        "lesion": inside, "rim": inside & (depth <= max(RIM * radius, MIN_VOX)), "core": depth > 0.5 * depth.max(), "near": near,
        "far": (depth < 0) & ~near & (depth >= -max(FAR * radius, 2 * MIN_VOX)),
    }  # fmt: skip
    found: dict[str, float] = {}
    if "ring" in families:
        found |= _ring(image, parts) | _texture(image, parts, spacing, radius)
    if "margin" in families:
        found |= _margin(image, depth, parts, spacing, radius)
    if "behind" in families:
        found |= _behind(image, inside, radius)
    return found


def _radius(lesion: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Radius of the circle or ball of the lesion's size, in voxels of the smallest edge."""
    size = float(lesion.sum()) * math.prod(spacing)
    return math.sqrt(size / math.pi) if lesion.ndim == 2 else (3 * size / (4 * math.pi)) ** (1 / 3)


def _window(lesion: np.ndarray, spacing: tuple[float, ...], radius: float) -> tuple[slice, ...]:
    """Lesion box with the tissue around it that is looked at."""
    slices = []
    for axis, step in enumerate(spacing):
        room = math.ceil(1.5 * max(FAR * radius, 2 * MIN_VOX) / step)
        at = np.flatnonzero(lesion.any(axis=tuple(a for a in range(lesion.ndim) if a != axis)))
        slices.append(slice(max(int(at[0]) - room, 0), int(at[-1]) + room + 1))
    return tuple(slices)


def _ring(image: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, float]:
    values = {name: image[part] for name, part in parts.items()}
    spread = max(float(image[parts["lesion"] | parts["near"] | parts["far"]].std()), MIN_STD)
    means = {name: float(v.mean()) if len(v) else math.nan for name, v in values.items()}
    sds = {name: float(v.std()) if len(v) else math.nan for name, v in values.items()}
    pairs = [("lesion", "near"), ("lesion", "far"), ("rim", "near"), ("core", "rim"), ("near", "far")]
    found = {f"ring_contrast_{a}_{b}": (means[a] - means[b]) / spread for a, b in pairs}
    found |= {f"ring_sd_ratio_{a}_{b}": math.log((sds[a] + MIN_STD) / (sds[b] + MIN_STD)) for a, b in pairs}
    found |= {f"ring_order_{a}_{b}": _order(values[a], values[b]) for a, b in pairs[:2]}
    for name in ("lesion", "near", "far"):
        found[f"ring_cov_{name}"] = sds[name] / max(abs(means[name]), MIN_STD)
        low, mid, high = np.percentile(values[name], (10, 50, 90)) if len(values[name]) else (math.nan,) * 3
        found[f"ring_tail_{name}"] = float((high + low - 2 * mid) / max(high - low, MIN_STD))
    return found


def _order(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that a voxel of `a` is brighter than one of `b`."""
    if not len(a) or not len(b):
        return math.nan
    b = np.sort(b)
    return float((np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")).mean() / (2 * len(b)))


def _texture(
    image: np.ndarray, parts: dict[str, np.ndarray], spacing: tuple[float, ...], radius: float
) -> dict[str, float]:
    """Energy between Gaussian blurs, inside against around, and how it falls off with scale."""
    from scipy import ndimage

    blurs = [image, *(ndimage.gaussian_filter(image, [s * radius / step for step in spacing]) for s in BANDS)]
    found = {}
    spread = max(float(image.std()), MIN_STD)
    for k, (fine, coarse) in enumerate(pairwise(blurs)):
        energy = {name: _rms((fine - coarse)[parts[name]]) for name in ("lesion", "near", "far")}
        found[f"ring_band{k}_lesion"] = math.log((energy["lesion"] + MIN_STD) / spread)
        found[f"ring_band{k}_near"] = math.log((energy["near"] + MIN_STD) / spread)
        found[f"ring_band{k}_ratio"] = math.log((energy["lesion"] + MIN_STD) / (energy["far"] + MIN_STD))
    return found


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else math.nan


def _margin(
    image: np.ndarray, depth: np.ndarray, parts: dict[str, np.ndarray], spacing: tuple[float, ...], radius: float
) -> dict[str, float]:
    """Slope of the image across the outline, outwards, along it: strong and even, or faint and patchy."""
    from scipy import ndimage

    outwards = ndimage.gaussian_filter(-depth, [1.0 / s for s in spacing])
    normal = np.stack([np.gradient(outwards, step, axis=axis) if image.shape[axis] > 1 else np.zeros_like(outwards)
                       for axis, step in enumerate(spacing)])  # fmt: skip
    normal /= np.maximum(np.linalg.norm(normal, axis=0), MIN_STD)
    band = np.abs(depth) <= MIN_VOX
    spread = max(float(image[parts["lesion"] | parts["near"]].std()), MIN_STD)
    found: dict[str, float] = {}
    for name, scale in SCALES.items():
        sd = max(scale * radius, 1.0)
        slopes = np.stack([ndimage.gaussian_filter(image, [sd / s for s in spacing], order=[int(a == axis) for a in range(image.ndim)])
                           / spacing[axis] for axis in range(image.ndim)])  # fmt: skip
        across = (slopes * normal).sum(axis=0)[band] * sd / spread
        size = np.linalg.norm(slopes, axis=0) * sd / spread
        found |= {
            f"margin_{name}_slope": float(across.mean()), f"margin_{name}_patchy": float(across.std()),
            f"margin_{name}_p10": float(np.percentile(across, 10)), f"margin_{name}_p90": float(np.percentile(across, 90)),
            f"margin_{name}_lost": float((across < LOST).mean()),
            f"margin_{name}_aligned": float(across.mean() / max(size[band].mean(), MIN_STD)),
            f"margin_{name}_inside": float(size[parts["lesion"]].mean() / max(size[band].mean(), MIN_STD)),
        }  # fmt: skip
    return found


def _behind(image: np.ndarray, inside: np.ndarray, radius: float) -> dict[str, float]:
    """Brightness of the columns below the lesion against the tissue beside them at the same depth, and against above."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    centre, half = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0] + 1) / 2
    below = slice(rows[-1] + 1, rows[-1] + 1 + math.ceil(BEHIND * radius))
    middle = slice(round(centre - 0.6 * half), round(centre + 0.6 * half) + 1)
    width = math.ceil(FLANK * radius)
    strip = image[below]
    left, right = slice(max(columns[0] - width, 0), columns[0]), slice(columns[-1] + 1, columns[-1] + 1 + width)
    beside = np.concatenate([strip[:, left].ravel(), strip[:, right].ravel()])
    above = image[max(rows[0] - math.ceil(BEHIND * radius / 2), 0) : rows[0], middle].ravel()
    under = strip[:, middle].ravel()
    spread = max(float(image.std()), MIN_STD)
    mean = lambda values: float(values.mean()) if len(values) else math.nan
    sd = lambda values: float(values.std()) + MIN_STD if len(values) else math.nan
    return {
        "behind_shadow": (mean(under) - mean(beside)) / spread, "behind_lesion": (mean(under) - mean(image[inside])) / spread,
        "behind_above": (mean(under) - mean(above)) / spread,
        "behind_near": (mean(strip[: max(len(strip) // 3, 1), middle].ravel()) - mean(beside)) / spread,
        "behind_sd_ratio": math.log(sd(under) / sd(beside)),
    }  # fmt: skip
