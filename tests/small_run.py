"""A tiny cohort, planned from a recorded machine and trained for two epochs: the fixture of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from conftest import make_paths

from her2net import pipeline
from her2net.paths import DatasetPaths
from her2net.plan.machine import Machine
from her2net.plan.stage import PlanOptions
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.fold import TrainOptions

# only the smallest candidates are fast enough for the budget, and nothing is measured
SPEEDS = {
    f"{network}|{size}|{channels}|{batch}": 1e6 if size in ("64x64", "8x32x32", "16x32x32", "32x32x32") else 1e-3
    for batch in (8, 16)
    for network, sizes, channels in (
        ("scattering_2d", ("64x64",), 1),
        ("scattering_3d", ("8x32x32", "16x32x32", "24x32x32", "32x32x32"), 2),
        ("resnet10t", ("128x128", "96x96", "64x64"), 1),
        ("resnet10_3d_s122", ("16x64x64", "16x48x48", "16x32x32", "8x64x64", "8x48x48", "8x32x32"), 2),
        ("resnet10_3d_s2", ("24x64x64", "24x48x48", "24x32x32", "32x64x64", "32x48x48", "32x32x32"), 2),
    )
    for size in sizes
}
MACHINE = Machine(device="cpu", name="recorded", n_threads=2, memory_gb=8, bf16=False, samples_per_s=SPEEDS)
TRAIN = TrainOptions(device="cpu", epochs=2, quiet=True)


def plan_options(root: Path, **changes: object) -> PlanOptions:
    """Plan from the recorded machine, in this process."""
    path = root / "machine.json"
    if not path.exists():
        MACHINE.save(path)
    values: dict = {"budget_h": 1.0, "machine": path, "n_workers": 1, "quiet": True}
    return PlanOptions(**(values | changes))


def make_small_run(root: Path) -> DatasetPaths:
    """Make the cohort and run everything on it."""
    paths = make_paths(root)
    make_synthetic_dataset(paths.raw, n_train=26, n_test=8, us_size=(96, 112), mri_size=(8, 40, 40))
    with mock.patch("her2net.plan.stage.radiomics_at_hand", return_value=False):
        pipeline.run(paths, plan_options(root), TRAIN, say=lambda text: None)
    return paths
