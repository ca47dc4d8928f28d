"""Radiomics of one case: the lesion by mirp, an implementation of the IBSI reference manual, and what lies around it.

mirp reads files, so image and mask go through a temporary folder, cut to the lesion with room for interpolation. What
it prints and configures of the root logger is undone, for her2net's own output must stay as it is. Its time goes into
small data frames for each slice and direction, hardly into voxels; so slices are laid side by side and described at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from her2net.errors import MissingDependencyError, RawDataError, describe
from her2net.plan.table_schema import RadiomicsPlan
from her2net.preprocess.prepare import read_case
from her2net.tabular.surroundings import describe_surroundings

FAMILY_TAGS = {
    "statistics": "stat", "histogram": "ih", "intensity_volume": "ivh", "glcm": "cm", "glrlm": "rlm", "glszm": "szm",
    "gldzm": "dzm", "ngtdm": "ngtdm", "ngldm": "ngldm", "morphology": "morph",
}  # fmt: skip
FAMILY_PREFIXES = {
    "stat_": "statistics", "ih_": "histogram", "ivh_": "intensity_volume", "cm_": "glcm", "rlm_": "glrlm",
    "szm_": "glszm", "dzm_": "gldzm", "ngt_": "ngtdm", "ngl_": "ngldm", "morph_": "morphology",
    "ring_": "ring", "margin_": "margin", "behind_": "behind",
}  # fmt: skip
"""How the name of a feature begins -> its family; other columns of mirp's table are settings and file names."""
MERGED = {
    "glcm_spatial_method": "2.5d_volume_merge", "glrlm_spatial_method": "2.5d_volume_merge", "glszm_spatial_method": "2.5d",
    "gldzm_spatial_method": "2.5d", "ngtdm_spatial_method": "2.5d", "ngldm_spatial_method": "2.5d",
}  # fmt: skip
"""Texture within slices, the matrices of all slices added up (IBSI 2.5D)."""
MARGIN_VOX = 5
MIN_STD = 1e-6


def radiomics_at_hand() -> bool:
    """Whether mirp is installed."""
    return util.find_spec("mirp") is not None


def require_mirp() -> str:
    """Return the version of mirp.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if not radiomics_at_hand():
        raise MissingDependencyError(
            "radiomics needs the package mirp, which is not installed. Run pip install 'her2net[radiomics]' (Python 3.11 or "
            "newer), or remove the tables RAD:... from the plan."
        )
    return metadata.version("mirp")


def family_of(feature: str) -> str:
    """Return the family of a feature such as `B-mode: cm_contrast_...`; empty if it is of none."""
    own = feature.rpartition(": ")[2]
    return next((family for prefix, family in FAMILY_PREFIXES.items() if own.startswith(prefix)), "")


def describe_case(
    images: tuple[Path, ...], mask: Path, channels: list[str], plan: RadiomicsPlan
) -> dict[str, float]:
    """Read one case and return its features, `<channel>: <feature>` -> value, NaN where undefined.

    Raises:
        RawDataError: a file cannot be read, the mask is empty, or it cannot be described.
    """
    image, lesion = read_case(images, mask)
    if lesion is None or not lesion.any():
        raise RawDataError(describe("the mask is empty", where=mask, remedy="Radiomics describes what lies inside a mask."))
    spacing = image.spacing_mm or (1.0,) * lesion.ndim
    try:
        return describe_arrays(image.array, lesion, spacing, channels, plan)
    except Exception as error:  # whatever a third-party package raises, the case is what the user has to know
        raise RawDataError(f"{images[0]}: the lesion cannot be described ({type(error).__name__}: {error}).") from error


def describe_arrays(
    array: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], channels: list[str], plan: RadiomicsPlan
) -> dict[str, float]:
    """Return the features of arrays in memory.

    Args:
        array: (C, [D,] H, W).
        lesion: ([D,] H, W) bool, not empty.
        spacing_mm: in the order of the array; 1 where unknown.
        channels: C names.
    """
    array = array.astype(np.float32)
    own = [describe_surroundings(channel, lesion, spacing_mm, plan.families) for channel in array]
    if plan.normalisation == "z-score":
        array = (array - array.mean()) / max(float(array.std()), MIN_STD)
    if lesion.ndim == 2:
        array, lesion, spacing_mm = array[:, None], lesion[None], (1.0, *spacing_mm)
    window = _window(lesion, spacing_mm, plan.spacing_mm)
    features: dict[str, float] = {}
    describe_inside = _describe_slices if plan.by_slice else _describe_volume
    for name, channel, around in zip(channels, array, own, strict=True):
        found = around | describe_inside(channel[window], lesion[window], spacing_mm, plan)
        features |= {f"{name}: {feature}": value for feature, value in found.items()}
    return features


def _window(lesion: np.ndarray, spacing_mm: tuple[float, ...], target: list[float] | None) -> tuple[slice, ...]:
    """Lesion box with as many voxels around it as interpolation looks at."""
    wanted = [1.0, *target] if target and len(target) == 2 else target or [0.0] * 3
    slices = []
    for axis in range(3):
        room = MARGIN_VOX + math.ceil(2 * wanted[axis] / spacing_mm[axis])
        inside = np.flatnonzero(lesion.any(axis=tuple(a for a in range(3) if a != axis)))
        slices.append(slice(max(int(inside[0]) - room, 0), int(inside[-1]) + room + 1))
    return tuple(slices)


def _describe_volume(
    image: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], plan: RadiomicsPlan
) -> dict[str, float]:
    return _run_mirp(image, lesion, spacing_mm, plan, plan.families, new_spacing=plan.spacing_mm)


def _describe_slices(
    image: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], plan: RadiomicsPlan
) -> dict[str, float]:
    """Describe all slices at once: the same figures as from the volume with `MERGED`, in the time of one slice.

    Shape is none of a slice, so it is taken from the volume.
    """
    shape = [family for family in plan.families if family == "morphology"]
    found = _run_mirp(image, lesion, spacing_mm, plan, shape, new_spacing=plan.spacing_mm, by_slice=True)
    if plan.spacing_mm is not None:
        image, lesion = _resample_slices(image, lesion, spacing_mm, plan.spacing_mm)
    image, lesion = lay_side_by_side(image, lesion)
    rest = [family for family in plan.families if family not in shape]
    return found | _run_mirp(image, lesion, spacing_mm, plan, rest, by_slice=True, **MERGED)


def lay_side_by_side(image: np.ndarray, lesion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay the slices that hold lesion side by side as one, cut to the lesion, two voxels outside it between them.

    No voxel of the lesion has a neighbour in another slice, so each texture matrix is the sum of those of the slices.

    Args:
        image, lesion: (D, H, W).

    Returns:
        Image and lesion, (1, n * (h + 2), w + 2) of n slices and the box h x w.
    """
    slices, rows, columns = (np.flatnonzero(lesion.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = np.s_[slices, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tiles = [np.pad(values[box], ((0, 0), (1, 1), (1, 1))) for values in (image, lesion)]
    return tiles[0].reshape(1, -1, tiles[0].shape[2]), tiles[1].reshape(1, -1, tiles[1].shape[2])


def _resample_slices(
    image: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], target_mm: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as mirp resamples them within slices; before they are laid side by side, so that none bleeds into another."""
    with _as_files(image, lesion, spacing_mm) as files, _silence():
        from mirp import extract_images

        images, masks = extract_images(**files, by_slice=True, new_spacing=target_mm, image_export_format="numpy")[0]
    return np.asarray(images[0], dtype=np.float32), np.asarray(masks[0]) > 0


def _run_mirp(
    image: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...], plan: RadiomicsPlan, families: Sequence[str],
    **settings: Any,
) -> dict[str, float]:  # fmt: skip
    tags = [FAMILY_TAGS[f] for f in families if f in FAMILY_TAGS]
    if not tags:
        return {}
    with _as_files(image, lesion, spacing_mm) as files, _silence():
        from mirp import extract_features

        table = extract_features(
            **files, **settings, export_features=True, base_feature_families=tags,
            base_discretisation_method="fixed_bin_size" if plan.bin_width else "fixed_bin_number",
            base_discretisation_n_bins=plan.bins, base_discretisation_bin_width=plan.bin_width,
            resegmentation_intensity_range=[-1000.0, 3000.0] if plan.bin_width else None,
        )[0]  # fmt: skip
    row = table.iloc[0]
    return {str(name): float(row[name]) for name in table.columns if family_of(str(name))}


@contextlib.contextmanager
def _as_files(image: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, ...]) -> Iterator[dict[str, str]]:
    """Yield the paths of both as mirp's arguments `image` and `mask`."""
    import SimpleITK as sitk  # noqa: N813

    with tempfile.TemporaryDirectory(prefix="her2net-") as folder:
        files = {name: f"{folder}/{name}.nii" for name in ("image", "mask")}
        for path, values in zip(files.values(), (image, lesion.astype(np.uint8)), strict=True):
            volume = sitk.GetImageFromArray(values)
            volume.SetSpacing([float(s) for s in reversed(spacing_mm)])
            sitk.WriteImage(volume, path)
        yield files


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep mirp's messages off the screen, and its handler off the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
