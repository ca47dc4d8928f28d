"""The good dataset that is damaged: eight patients, two test patients, two modalities, everything trained for one epoch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from conftest import make_paths
from raw_factory import write_dataset
from small_run import plan_options

from her2net.paths import DatasetPaths

FOLDER = "Dataset001_Tiny"
FOLDS = [["P000", "P001", "P002", "P003"], ["P004", "P005", "P006", "P007"]]
NEW = "new"


def make_good(root: Path) -> DatasetPaths:
    """Make the dataset, and run every stage on it but the drawing of figures, which no stage reads."""
    from her2net import pipeline
    from her2net.evaluate import figures
    from her2net.train import fold
    from her2net.train.fold import TrainOptions

    paths = make_paths(root, FOLDER)
    write_dataset(paths.raw, n_patients=8, n_test=2)
    own = root / "own.json"
    own.write_text(json.dumps(FOLDS), encoding="utf-8")
    drawn = figures.write_figures, fold.plot_progress
    figures.write_figures, fold.plot_progress = (lambda *_: None), (lambda *_: None)
    try:
        pipeline.run(paths, plan_options(root, splits=str(own)), TrainOptions(epochs=1, quiet=True), say=lambda _: None)
    finally:
        figures.write_figures, fold.plot_progress = drawn
    for path in paths.results.rglob("checkpoint_latest.pt"):
        if path.parent != paths.fold("US", 0):  # the largest files, and one is enough
            path.unlink()
    for part in ("images", "masks"):
        shutil.copytree(paths.raw / f"{part}Ts", root / NEW / part)
    return paths


def copy_good(good: DatasetPaths, root: Path, *, trained: bool) -> DatasetPaths:
    """Copy the dataset, with its results or without; checkpoints are linked, so damage must replace them."""
    source = good.roots.raw.parent
    ignore = None if trained else lambda folder, _: ["her2net_results", NEW] if Path(folder) == source else []
    shutil.copytree(source, root, ignore=ignore, copy_function=_copy)
    return make_paths(root, FOLDER)


def _copy(source: str, target: str) -> None:
    if source.endswith(".pt"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
