"""The cohorts: real ones below the raw root, and synthetic ones whose best possible AUC is known.

A cohort is a raw dataset of one modality. `make_cohort` writes it anew, so that two modalities of one dataset are two
cohorts, each with its own patients. Real cohorts are read below `--raw` or the environment's her2net_raw.

Synthetic cases carry one latent number of unit variance whose class means lie `separation` apart, so no classifier
beats Phi(separation / sqrt 2) in expectation, and a reader of the images reaches it only where the image shows the
number without error. Five signs show it:

- core: core against rim, in echogenicity (2D) or early enhancement (3D), as `her2net_demo` does (`her2net.raw.phantoms`);
- texture: the grain of a pattern of constant strength inside the lesion; mean and SD stay as they are;
- shape: how lobed the outline is, image and mask alike;
- size: as core, but lesions of the positive class are larger, too: two independent numbers tell the classes apart;
- none: nothing does, and any AUC but 0.5 is a leak.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage
from scipy.stats import norm

from her2net.artefact import write_csv, write_json
from her2net.evaluate.delong import auc
from her2net.raw.dataset import read_dataset
from her2net.raw.phantoms import make_mri, make_us

Sign = Literal["core", "texture", "shape", "size", "none"]
FOLDER = "Dataset001_Cohort"
US_SIZE, MRI_SIZE = (160, 200), (16, 64, 64)
SEPARATION = {2: 1.47, 3: 1.19}
SIZE_SEPARATION = 1.0
GRAIN_PX = (0.8, 3.0)
"""Correlation length of the texture at latents of -2.5 and 2.5, in pixels."""
GREY_LEVELS_SD = 18.0
LOBES, LOBE_DEPTH = 7, (0.0, 0.22)
"""Lobes around the outline, and their depth in radii at latents of -2.5 and 2.5."""
SIZE_PER_SD = 0.15


@dataclass(frozen=True)
class Synthetic:
    """What is drawn; `n_patients` have one case each."""

    ndim: int
    n_patients: int
    sign: Sign = "core"
    positive_share: float = 0.4
    every_slice: int = 1

    @property
    def bayes_auc(self) -> float:
        """AUC of the likelihood ratio of what tells the classes apart."""
        distance = 0.0 if self.sign == "none" else SEPARATION[self.ndim]
        return float(norm.cdf(np.hypot(distance, SIZE_SEPARATION * (self.sign == "size")) / np.sqrt(2)))


@dataclass(frozen=True)
class Real:
    """One modality of a dataset below the raw root."""

    dataset: str
    modality: str


COHORTS: dict[str, Synthetic | Real] = {
    "busi": Real("Dataset102_BreastUS", "US"),
    "real_us": Real("Dataset101_BreastReal", "US"),
    "real_mri": Real("Dataset101_BreastReal", "MRI"),
    **{f"core_{ndim}d_{n}": Synthetic(ndim, n) for ndim in (2, 3) for n in (40, 100, 200, 400)},
    **{f"{sign}_{ndim}d_200": Synthetic(ndim, 200, sign) for sign in ("texture", "shape", "size", "none") for ndim in (2, 3)},
    "rare_2d_200": Synthetic(2, 200, positive_share=0.25),
    "rare_3d_200": Synthetic(3, 200, positive_share=0.25),
    "thick_3d_200": Synthetic(3, 200, every_slice=2),
    **{f"{sign}_2d_{n}": Synthetic(2, n, sign) for sign in ("core", "texture", "shape") for n in (1000, 1600, 4000)},
    **{f"{sign}_3d_{n}": Synthetic(3, n, sign) for sign in ("core", "texture") for n in (500, 1500)},
}


def make_cohort(name: str, folder: Path, *, raw: Path | None, seed: int) -> float | None:
    """Write a cohort as a raw dataset; return its Bayes AUC where it is known.

    Args:
        raw: root of real datasets.
        seed: of synthetic ones; real ones are the same whatever the seed.

    Raises:
        SystemExit: unknown name, or a real cohort without a raw root.
    """
    if name not in COHORTS:
        raise SystemExit(f"no cohort {name!r}. There are: {', '.join(COHORTS)}.")
    recipe = COHORTS[name]
    if isinstance(recipe, Real):
        if raw is None:
            raise SystemExit(f"{name} is a real cohort: say where it lies with --raw, or set her2net_raw.")
        _copy_modality(raw / recipe.dataset, recipe.modality, folder)
        return None
    _draw(recipe, folder, seed)
    return recipe.bayes_auc


def _copy_modality(source: Path, modality: str, folder: Path) -> None:
    """Copy the training cases of one modality: no other column than case, label and patient comes along."""
    dataset = read_dataset(source)
    cases = [case for case in dataset.train if modality in case.images]
    for case in cases:
        for kind, files in (("images", case.images[modality]), ("masks", filter(None, [case.masks.get(modality)]))):
            for file in files:
                place = folder / f"{kind}Tr" / modality
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place / file.name)
    spec = dataset.spec.modalities[modality]
    _describe(folder, modality, spec.channels, spec.file_ending, [(c.case_id, int(c.label or 0), c.patient_id) for c in cases])


def _describe(folder: Path, modality: str, channels: dict[str, str], ending: str, rows: list[tuple[str, int, str]]) -> None:
    write_csv(folder / "cases.csv", ("case_id", "label", "patient_id"),
              [dict(zip(("case_id", "label", "patient_id"), row, strict=True)) for row in rows])  # fmt: skip
    write_json(folder / "dataset.json", {
        "name": "Cohort", "labels": {"negative": 0, "positive": 1},
        "modalities": {modality: {"channels": channels, "file_ending": ending}},
    })  # fmt: skip


def ideal_auc(name: str, seed: int) -> float | None:
    """Return what a reader who sees the planted numbers without error reaches on the very cases of a synthetic cohort.

    The Bayes AUC is that of endless cases; in one draw of 200 it scatters by some 0.03.
    """
    recipe = COHORTS[name]
    if isinstance(recipe, Real):
        return None
    labels = _draw_labels(recipe, seed)
    numbers = np.array([_draw_numbers(recipe, seed, k, label)[:2] for k, label in enumerate(labels)])
    return auc(labels, numbers @ (SEPARATION[recipe.ndim], SIZE_SEPARATION))


def _draw_labels(recipe: Synthetic, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, recipe.ndim, recipe.n_patients))
    return rng.permutation(np.arange(recipe.n_patients) < round(recipe.positive_share * recipe.n_patients)).astype(int)


def _draw_numbers(recipe: Synthetic, seed: int, k: int, label: int) -> tuple[float, float, np.random.Generator]:
    """Return the latent of the k-th case, how much larger its lesion is in standard deviations, and where the rest comes from."""
    own = np.random.default_rng((seed, recipe.ndim, recipe.n_patients, k))
    side = label - 0.5
    latent = side * SEPARATION[recipe.ndim] * (recipe.sign != "none") + own.standard_normal()
    larger = side * SIZE_SEPARATION + own.standard_normal() if recipe.sign == "size" else 0.0
    return float(latent), float(larger), own


def _draw(recipe: Synthetic, folder: Path, seed: int) -> None:
    modality, ending = ("US", ".png") if recipe.ndim == 2 else ("MRI", ".nii.gz")
    rows = []
    for k, label in enumerate(_draw_labels(recipe, seed)):
        latent, larger, own = _draw_numbers(recipe, seed, k, label)
        images, mask, spacing = _render(recipe, float(np.clip(latent, -2.5, 2.5)), float(np.exp(SIZE_PER_SD * larger)), own)
        for channel, image in enumerate(images):
            suffix = f"_{channel:04d}" if len(images) > 1 else ""
            _write(folder / "imagesTr" / modality / f"S{k:04d}{suffix}{ending}", image, spacing)
        _write(folder / "masksTr" / modality / f"S{k:04d}{ending}", mask * (255 if recipe.ndim == 2 else 1), spacing)
        rows.append((f"S{k:04d}", int(label), f"P{k:04d}"))
    channels = {"0": "B-mode"} if recipe.ndim == 2 else {"0": "DCE-pre", "1": "DCE-early"}
    _describe(folder, modality, channels, ending, rows)


def _render(
    recipe: Synthetic, latent: float, size: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray, tuple[float, ...]]:
    """Return the channels, the mask and the spacing of one case."""
    planted = latent if recipe.sign in ("core", "size") else 0.0
    if recipe.ndim == 2:
        us = make_us(planted, US_SIZE, rng)
        images, mask, spacing = [us.image], us.mask, (1.0, 1.0)
    else:
        mri = make_mri(planted, MRI_SIZE, rng)
        images, mask, spacing = [mri.pre, mri.early], mri.mask, mri.spacing_mm
    if recipe.sign == "texture":
        images[-1] = _add_texture(images[-1], mask, latent, rng)
    if recipe.sign in ("shape", "size"):
        images, mask = _deform(images, mask, _between(LOBE_DEPTH, latent) if recipe.sign == "shape" else 0.0, size, rng)
    if recipe.every_slice > 1:
        kept = slice(None, None, recipe.every_slice)
        images, mask = [image[kept] for image in images], mask[kept]
        spacing = (spacing[0] * recipe.every_slice, *spacing[1:])
    return images, mask, spacing


def _between(limits: tuple[float, float], latent: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * (latent + 2.5) / 5


def _add_texture(image: np.ndarray, mask: np.ndarray, latent: float, rng: np.random.Generator) -> np.ndarray:
    """Add a pattern of the latent's grain inside the mask, of zero mean and the same SD for every latent."""
    pattern = ndimage.gaussian_filter(rng.standard_normal(image.shape), _between(GRAIN_PX, latent))
    inside = mask > 0
    pattern = (pattern - pattern[inside].mean()) / pattern[inside].std()
    strength = GREY_LEVELS_SD * (image[inside].mean() / 80 if image.ndim == 3 else 1)
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(image + strength * pattern * inside), max(limits.min, 0), limits.max).astype(image.dtype)


def _deform(
    images: list[np.ndarray], mask: np.ndarray, depth: float, size: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Move image and mask together: lobes of a depth around the lesion in plane, and the lesion as a whole by `size`."""
    *_, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in mask.shape), indexing="ij")
    inside = np.nonzero(mask)
    centre = [float(axis.mean()) for axis in inside[-2:]]
    radius = np.sqrt(mask.any(axis=0).sum() / np.pi) if mask.ndim == 3 else np.sqrt(mask.sum() / np.pi)
    dy, dx = y - centre[0], x - centre[1]
    away = np.hypot(dy, dx) / radius
    lobes = depth * np.cos(LOBES * np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi)) * np.minimum(away, 1)
    fading = np.exp(-0.5 * (np.maximum(away - 1, 0) / 0.8) ** 2)
    pull = 1 + ((1 + lobes) / size - 1) * fading  # where a pixel comes from, as a share of its distance
    places = [axis.astype(float) for axis in np.indices(mask.shape)]
    places[-2], places[-1] = centre[0] + dy * pull, centre[1] + dx * pull
    moved = [np.rint(ndimage.map_coordinates(image.astype(float), places, order=1, mode="nearest")).astype(image.dtype)
             for image in images]  # fmt: skip
    return moved, (ndimage.map_coordinates(mask.astype(float), places, order=1, mode="nearest") >= 0.5).astype(np.uint8)


def _write(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])  # SimpleITK counts axes from the fastest
    sitk.WriteImage(image, str(path), useCompression=True)

