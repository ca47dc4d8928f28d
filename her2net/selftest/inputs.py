"""What a probe sees instead of the image: the outline alone, the surroundings alone, or a patient's labels at another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from her2net.raw.dataset import Case

GUARD_SHARE = 1 / 12
"""Around the lesion box this share of the crop is removed too: the lesion's border, and what resampling smeared over it."""

COVERED = 95
"""Percentile of the lesions' sizes in the crop that the hole covers."""

MIN_SURROUNDINGS = 0.1
"""With less of the crop left there are no surroundings to look at."""

MIN_STD = 1e-6


@dataclass(frozen=True)
class Region:
    """The box that is cut out of every case of a modality, in voxels per axis; the same size for all of them."""

    size_vox: tuple[int, ...]


def shrink(array: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Average blocks of voxels along the last axes; float32.

    Args:
        array: (..., *spatial), each spatial axis a multiple of its factor.
        factors: one per spatial axis.
    """
    leading = array.shape[: array.ndim - len(factors)]
    split = [part for n, by in zip(array.shape[len(leading) :], factors, strict=True) for part in (n // by, by)]
    blocks = array.astype(np.float32).reshape(*leading, *split)
    return blocks.mean(axis=tuple(len(leading) + 2 * i + 1 for i in range(len(factors))))


def outline_only(masks: np.ndarray, n_channels: int) -> np.ndarray:
    """Return the masks as images: 1 inside the lesion, -1 outside, the same in every channel.

    Args:
        masks: (N, *spatial), share of each voxel that is lesion, 0 to 1.

    Returns:
        (N, n_channels, *spatial) float16.
    """
    return np.repeat((2 * masks - 1).astype(np.float16)[:, None], n_channels, axis=1)


def choose_region(masks: np.ndarray, input_vox: Sequence[int]) -> Region | None:
    """Choose the box that covers the lesions of most cases and a guard around them.

    One size for all cases, so that the hole tells nothing of the outline that it hides. The few lesions that are
    larger than nearly all others in the crop (they reach over the border of the image) are left out, see `fits`.

    Args:
        masks: (N, *spatial); every case has some lesion.
        input_vox: size the network sees.

    Returns:
        `None` if too little of the crop would be left.
    """
    guard = _guard(input_vox)
    edges = np.percentile([np.subtract(stop, start) for start, stop in map(_box, masks)], COVERED, axis=0)
    size = tuple(int(np.ceil(e)) + 1 + 2 * g for e, g in zip(edges, guard, strict=True))
    left = 1 - np.prod([min(s, n) / n for s, n in zip(size, input_vox, strict=True)])
    return Region(size) if left >= MIN_SURROUNDINGS else None


def fits(mask: np.ndarray, region: Region, input_vox: Sequence[int]) -> bool:
    """Whether the region covers a lesion and its guard."""
    start, stop = _box(mask)
    return bool(np.all(stop - start + 2 * np.array(_guard(input_vox)) <= region.size_vox))


def _guard(input_vox: Sequence[int]) -> list[int]:
    return [max(2, int(np.ceil(n * GUARD_SHARE))) for n in input_vox]


def background_only(images: np.ndarray, masks: np.ndarray, region: Region) -> np.ndarray:
    """Cut the region around each lesion out, and z-score what is left by itself.

    The z-score of the cache includes the lesion, so a dark lesion brightens its surroundings; taking mean and standard
    deviation of the remaining voxels undoes that exactly. The hole is filled with their mean.

    What remains: where in the crop the lesion lies (off centre near the border of the image), how much the crop was
    magnified (its grain tells the size of the lesion), and what the lesion does to its surroundings, such as a shadow.

    Args:
        images: (N, C, *spatial).
        masks: (N, *spatial); every case has some lesion.

    Returns:
        (N, C, *spatial) float16.
    """
    out = images.astype(np.float32)
    for image, mask in zip(out, masks, strict=True):
        kept = ~_hole(mask, region)
        values = image[:, kept]
        mean, std = values.mean(axis=1, keepdims=True), values.std(axis=1, keepdims=True)
        image[:, ~kept] = 0
        image[:, kept] = (values - mean) / np.maximum(std, MIN_STD)
    return out.astype(np.float16)


def _hole(mask: np.ndarray, region: Region) -> np.ndarray:
    """Return (*spatial) bool: the region centred on the lesion box."""
    start, stop = _box(mask)
    hole = np.zeros(mask.shape, bool)
    low = [int(np.floor((a + b - s) / 2)) for a, b, s in zip(start, stop, region.size_vox, strict=True)]
    hole[tuple(slice(max(a, 0), max(a + s, 0)) for a, s in zip(low, region.size_vox, strict=True))] = True
    return hole


def _box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.argwhere(mask > 0)
    return places.min(axis=0), places.max(axis=0) + 1


def permute_labels(cases: Sequence[Case], folds: Sequence[Sequence[str]], rng: np.random.Generator) -> tuple[Case, ...]:
    """Give each patient the labels of another patient of the same fold, drawn without replacement.

    Within folds, so that each keeps its share of every class: a fold with more positives than the others would
    otherwise be predicted by a model that saw fewer, which pushes the AUC below 0.5. All cases of a patient
    take from one patient, so cases of a patient stay alike.
    """
    labels: dict[str, list[int]] = {}
    for case in cases:
        if case.label is not None:
            labels.setdefault(case.patient_id, []).append(case.label)
    taken_from: dict[str, str] = {}
    for fold in folds:
        members = sorted(set(fold) & set(labels))
        taken_from |= dict(zip(members, (members[i] for i in rng.permutation(len(members))), strict=True))
    seen: dict[str, int] = {}
    permuted = []
    for case in cases:
        source = labels[taken_from[case.patient_id]]
        permuted.append(replace(case, label=source[seen.get(case.patient_id, 0) % len(source)]))
        seen[case.patient_id] = seen.get(case.patient_id, 0) + 1
    return tuple(permuted)
