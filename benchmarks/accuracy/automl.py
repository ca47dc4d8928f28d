"""AutoGluon-Multimodal as a rival, in an environment of its own: it asks for an older torch than her2net's tests use.

    python -m venv autogluon && autogluon/bin/pip install "torch==2.11.*" "torchvision==0.26.*" autogluon.multimodal
    AUTOGLUON_PYTHON=autogluon/bin/python python benchmarks/accuracy/run.py --cohorts busi --methods auto autogluon
"""

from __future__ import annotations

import csv
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rivals import Fold, read_fold

from her2net.artefact import write_csv
from her2net.paths import DatasetPaths
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.prepare import prepare_arrays, read_case
from her2net.raw.dataset import Case

EDGE = 224
SCRIPT = Path(__file__).with_name("autogluon_fold.py")


def autogluon(paths: DatasetPaths, seconds: float, seed: int) -> dict[str, float]:
    """Its preset for medium quality, from scratch, on the lesion cut out as a picture; of a volume the slice with most lesion.

    Raises:
        SystemExit: the environment variable AUTOGLUON_PYTHON names no interpreter, or AutoGluon failed.
    """
    python = os.environ.get("AUTOGLUON_PYTHON", "")
    if not Path(python).is_file():
        raise SystemExit(f"autogluon needs an environment of its own: set AUTOGLUON_PYTHON to its python, found {python!r}.")
    fold = read_fold(paths)
    with tempfile.TemporaryDirectory() as folder:
        shown, places = (_draw(cases, fold, folder) for cases in (fold.training, fold.held_out))
        training = [{"image": place, "label": label} for place, label in zip(shown, fold.labels, strict=True)]
        write_csv(Path(folder) / "training.csv", ("image", "label"), training)
        write_csv(Path(folder) / "held_out.csv", ("image",), [{"image": place} for place in places])
        command = [str(Path(python).absolute()), str(SCRIPT), folder, str(seconds), str(seed)]
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # its packages are not ours
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        with (Path(folder) / "scores.csv").open(encoding="utf-8") as file:
            found = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    return {case.case_id: found[place] for case, place in zip(fold.held_out, places, strict=True)}


def _draw(cases: Sequence[Case], fold: Fold, folder: str) -> list[str]:
    """Write a picture of each case, and return where; its name tells nothing of the class."""
    plan = PreprocessingPlan(margin=0.3, margin_unit="lesion", aspect="keep", statistics="crop", joint_channels=fold.joint,
                             input_vox=[EDGE, EDGE], stored_vox=[EDGE, EDGE])  # fmt: skip
    places = []
    for case in cases:
        image, mask = read_case(case.images[fold.modality], case.masks.get(fold.modality))
        array = image.array
        if array.ndim == 4:
            k = array.shape[1] // 2 if mask is None or not mask.any() else int(mask.sum(axis=(1, 2)).argmax())
            array, mask = array[:, k], None if mask is None else mask[k]
            image = type(image)(array)
        crop = prepare_arrays(image, mask, plan).image.astype(np.float32)
        channels = np.clip(crop * 40 + 110, 0, 255).astype(np.uint8)[[min(c, len(crop) - 1) for c in range(3)]]
        places.append(str(Path(folder) / f"{case.case_id}.png"))
        Image.fromarray(channels.transpose(1, 2, 0)).save(places[-1])
    return places
