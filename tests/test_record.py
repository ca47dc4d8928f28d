"""The picture of a fold's training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from her2net.train.record import plot_progress

COLOURS = {"training loss": (0x00, 0x72, 0xB2), "held-out loss": (0x56, 0xB4, 0xE9), "held-out AUC": (0xD5, 0x5E, 0x00)}


@pytest.mark.parametrize("n_epochs", [1, 2, 40])
def test_progress_shows_every_series_however_few_epochs(n_epochs: int, tmp_path: Path) -> None:
    history = [{"epoch": k, "train_loss": 0.7 - 0.01 * k, "val_loss": 0.8 - 0.005 * k, "val_auc": 0.9} for k in range(n_epochs)]
    plot_progress(tmp_path / "progress.png", history, "US, fold 0")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "progress.png"))).astype(int)[..., :3]
    beside_the_legend = image[:, image.shape[1] // 2 :]  # it stands in the lower left corner
    for name, colour in COLOURS.items():
        assert (np.abs(beside_the_legend - colour).max(axis=-1) <= 3).sum() > 10, f"{name} is not to be seen"
