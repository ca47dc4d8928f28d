"""Write small raw datasets for tests: real files in the real layout, a second's worth of pixels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

SPACING_XYZ = (0.8, 0.8, 2.5)


def spec_of(**changes: Any) -> dict[str, Any]:
    """Return the content of a good dataset.json, with changes."""
    return {
        "name": "Tiny",
        "labels": {"negative": 0, "positive": 1},
        "modalities": {
            "US": {"channels": {"0": "B-mode"}, "file_ending": ".png"},
            "MRI": {"channels": {"0": "pre", "1": "post"}, "file_ending": ".nii.gz"},
        },
        "covariates": {"age": "continuous"},
        "site": "site",
    } | changes


def write_dataset(folder: Path, n_patients: int = 12, n_test: int = 2, seed: int = 0, **spec_changes: Any) -> Path:
    """Write a good dataset: US 48 x 64 (PNG) and two-channel MRI 8 x 24 x 24 (NIfTI) with masks.

    Args:
        folder: created; e.g. `tmp_path / "Dataset001_Tiny"`.
        n_patients: training patients C000, C001, ..., one case each, labels alternating.
        n_test: test patients after them.
        seed: of the pixels.
        spec_changes: keys of dataset.json to change.

    Returns:
        The folder.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_patients + n_test):
        part = "Tr" if i < n_patients else "Ts"
        write_us(folder / f"images{part}/US/C{i:03d}.png", rng)
        write_png(folder / f"masks{part}/US/C{i:03d}.png", box_mask((48, 64), (12, 20), (30, 44)))
        for channel in range(2):
            write_volume(folder / f"images{part}/MRI/C{i:03d}_{channel:04d}.nii.gz", smooth_noise(rng, (8, 24, 24)))
        write_volume(folder / f"masks{part}/MRI/C{i:03d}.nii.gz", box_mask((8, 24, 24), (2, 6, 7), (6, 15, 17)))
        rows.append([f"C{i:03d}", i % 2, f"P{i:03d}", "north" if i % 3 else "south", 40 + i])
    write_table(folder / "cases.csv", [["case_id", "label", "patient_id", "site", "age"], *rows])
    (folder / "dataset.json").write_text(json.dumps(spec_of(**spec_changes)), encoding="utf-8")
    return folder


def write_table(path: Path, rows: list[list[Any]], separator: str = ",") -> None:
    """Write rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)


def read_rows(folder: Path) -> list[list[str]]:
    """Return the rows of cases.csv, header first."""
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def change_cell(folder: Path, row: int, column: str, value: str) -> None:
    """Change one cell of cases.csv; `row` as a spreadsheet numbers it."""
    rows = read_rows(folder)
    rows[row - 1][rows[0].index(column)] = value
    write_table(folder / "cases.csv", rows)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return int16 noise with structure at several scales, different for every call."""
    coarse = rng.normal(size=[-(-n // 6) for n in shape])
    for axis, size in enumerate(shape):
        coarse = np.repeat(coarse, 6, axis=axis).take(range(size), axis=axis)
    return (400 + 120 * coarse + 30 * rng.normal(size=shape)).astype(np.int16)


def box_mask(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    """Return a uint8 mask with 1 inside the box."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return mask


def write_us(path: Path, rng: np.random.Generator) -> None:
    """Write an 8-bit PNG of 48 x 64."""
    noise = smooth_noise(rng, (48, 64))
    write_png(path, np.clip(noise / 4, 0, 255).astype(np.uint8))


def write_png(path: Path, array: np.ndarray) -> None:
    """Write an array with Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_volume(
    path: Path,
    array: np.ndarray,
    spacing_xyz: tuple[float, ...] = SPACING_XYZ,
    origin: tuple[float, ...] | None = None,
    direction: tuple[float, ...] | None = None,
) -> None:
    """Write an array (D, H, W) with SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing_xyz[: array.ndim] if array.ndim < 4 else (*spacing_xyz, 1.0))
    if origin:
        image.SetOrigin(origin)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
