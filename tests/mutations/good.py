"""The good dataset that is damaged: eight patients, two test patients, two modalities, planned and preprocessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import make_paths
from raw_factory import write_dataset
from small_run import plan_options

from her2net.paths import DatasetPaths
from her2net.plan.stage import plan_dataset

FOLDER = "Dataset001_Tiny"
FOLDS = [["P000", "P001", "P002", "P003"], ["P004", "P005", "P006", "P007"]]


def make_good(root: Path) -> DatasetPaths:
    """Make the dataset and plan it."""
    paths = make_paths(root, FOLDER)
    write_dataset(paths.raw, n_patients=8, n_test=2)
    own = root / "own.json"
    own.write_text(json.dumps(FOLDS), encoding="utf-8")
    plan_dataset(paths, plan_options(root, splits=str(own)))
    return paths


def copy_good(good: DatasetPaths, root: Path) -> DatasetPaths:
    """Copy the dataset and its plan."""
    shutil.copytree(good.roots.raw.parent, root)
    return make_paths(root, FOLDER)
