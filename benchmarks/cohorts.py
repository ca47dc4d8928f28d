"""Cohorts and plans for the benchmarks: synthetic images, the plan of the paper with networks that a processor can train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from her2net import pipeline
from her2net.artefact import write_csv, write_json
from her2net.paths import DatasetPaths, Roots
from her2net.plan.schema import ModalityPlan, Plan
from her2net.plan.stage import PlanOptions
from her2net.project import Project, load_project
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.fold import TrainOptions

US_SIZE, MRI_SIZE = (400, 500), (60, 160, 160)

SETTINGS: dict[str, tuple[str, list[int], list[int]]] = {
    "US": ("convnextv2_atto", [256, 256], [288, 288]),
    "MRI": ("resnet18_3d_s2", [64, 64, 64], [72, 72, 72]),
}
"""Modality -> network, input_vox, stored_vox."""
SMALL: dict[str, tuple[str, list[int], list[int]]] = {
    "US": ("resnet10t", [128, 128], [144, 144]),
    "MRI": ("resnet10_3d_s2", [32, 64, 64], [36, 72, 72]),
}
SOLVED: dict[str, tuple[str, list[int], list[int]]] = {
    "US": ("scattering_2d", [96, 96], [96, 96]),
    "MRI": ("scattering_3d", [16, 48, 48], [16, 48, 48]),
}
NETWORKS = {"large": SETTINGS, "small": SMALL, "solved": SOLVED}


def make_paths(root: Path, folder: str = "Dataset001_Bench") -> DatasetPaths:
    """Return the paths of a dataset below one folder."""
    return DatasetPaths(Roots(*(root / f"her2net_{name}" for name in ("raw", "preprocessed", "results"))), folder)


def plan_cohort(
    paths: DatasetPaths, settings: dict[str, tuple[str, list[int], list[int]]] = SETTINGS, *, epochs: int = 1
) -> Project:
    """Plan as the paper does, with other networks and sizes, and preprocess.

    All in this process: workers would import the benchmark, and with it every rival.
    """
    options = PlanOptions(preset="paper", preprocess=False, n_workers=1, quiet=True)
    plan, _ = pipeline.plan(paths, options)
    edited = {name: _edit(section, *settings[name], epochs) for name, section in plan.modalities.items()}
    plan.model_copy(update={"modalities": edited, "decisions": []}).save(paths.plan)  # else these count as edits, some without effect
    pipeline.plan(paths, PlanOptions(n_workers=1, quiet=True))
    return load_project(paths)


def _edit(section: ModalityPlan, network: str, input_vox: list[int], stored_vox: list[int], epochs: int) -> ModalityPlan:
    preprocessing = section.preprocessing.model_copy(update={"input_vox": input_vox, "stored_vox": stored_vox})
    changes = {"network": network, "initialisation": "scratch", "epochs": epochs, "checkpoint": "last"}
    training = section.training.model_copy(update=changes)
    return section.model_copy(update={"preprocessing": preprocessing, "training": training})


def make_trained_run(root: Path, *, n_cases: int) -> DatasetPaths:
    """Make a cohort of small images, train every fold for an epoch, and evaluate."""
    paths = make_paths(root)
    make_synthetic_dataset(paths.raw, n_train=n_cases, n_test=8, us_size=(96, 112), mri_size=(8, 40, 40))
    small = {"US": ("resnet10t", [32, 32], [36, 36]), "MRI": ("resnet10_3d_s122", [8, 32, 32], [8, 36, 36])}
    plan_cohort(paths, small)
    pipeline.run(paths, PlanOptions(quiet=True), TrainOptions(quiet=True), say=lambda text: None)
    return paths


def make_large_images(
    paths: DatasetPaths, n_train: int, n_test: int, *, us_size: tuple[int, ...] = US_SIZE, mri_size: tuple[int, ...] = MRI_SIZE
) -> None:
    """Write a dataset of ultrasound images and MRI volumes of clinical size, of coarse and fine noise; in a tenth of the
    time that simulated anatomy takes, and as costly to read."""
    folder, rng = paths.raw, np.random.default_rng(0)
    for case_id, ending in [(f"c{k:03d}", "Tr" if k < n_train else "Ts") for k in range(n_train + n_test)]:
        for name, size, file in (("US", us_size, "{}.png"), ("MRI", mri_size, "{}.nii.gz")):
            coarse = rng.normal(size=[n // 10 for n in size])
            for axis in range(len(size)):
                coarse = coarse.repeat(10, axis)
            image, mask = 128 + 32 * coarse + rng.normal(0, 4, size), np.zeros(size, np.uint8)
            mask[tuple(slice(n * 2 // 5, n * 3 // 5) for n in size)] = 255
            content = {"images": image.clip(0, 255).astype(np.uint8 if name == "US" else np.int16), "masks": mask}
            for kind, array in content.items():
                path = folder / f"{kind}{ending}" / name / file.format(case_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), path, useCompression=True)
    write_json(folder / "dataset.json", {
        "name": "Bench", "labels": {"negative": 0, "positive": 1},
        "modalities": {"US": {"channels": {"0": "B-mode"}, "file_ending": ".png"},
                       "MRI": {"channels": {"0": "T1"}, "file_ending": ".nii.gz"}},
    })  # fmt: skip
    rows = ({"case_id": f"c{k:03d}", "label": k % 2, "patient_id": f"p{k:03d}"} for k in range(n_train + n_test))
    write_csv(folder / "cases.csv", ("case_id", "label", "patient_id"), rows)


def make_many_small(paths: DatasetPaths, n_cases: int, *, size: int = 48) -> None:
    """Write a dataset of many tiny ultrasound images with masks; quickly, and no two alike."""
    folder = paths.raw
    for name in ("imagesTr/US", "masksTr/US"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 3 : -size // 3, size // 3 : -size // 3] = 255
    for k in range(n_cases):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        Image.fromarray(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))).save(
            folder / f"imagesTr/US/c{k:06d}.png", compress_level=1)  # fmt: skip
        Image.fromarray(mask).save(folder / f"masksTr/US/c{k:06d}.png", compress_level=1)
    write_json(folder / "dataset.json", {
        "name": "Bench", "labels": {"negative": 0, "positive": 1},
        "modalities": {"US": {"channels": {"0": "B-mode"}, "file_ending": ".png"}},
    })  # fmt: skip
    rows = ({"case_id": f"c{k:06d}", "label": k % 2, "patient_id": f"p{k:06d}"} for k in range(n_cases))
    write_csv(folder / "cases.csv", ("case_id", "label", "patient_id"), rows)


def read_plan(paths: DatasetPaths) -> Plan:
    """Return the plan on disk."""
    return Plan.load(paths.plan)
