"""The synthetic cohort holds the effect it claims, inside the lesions only, and the same pixels for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.stats import norm, rankdata, spearmanr

from her2net.errors import Her2netError, RawDataError
from her2net.raw.phantoms import make_mri, make_us
from her2net.raw.synthetic import SEPARATION, SyntheticTruth, make_synthetic_dataset, truth_path

LIGHT = {"us_size": (96, 120), "mri_size": (12, 48, 48)}
MODALITIES = tuple(SEPARATION)


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(float)


def auc(label: np.ndarray, score: np.ndarray) -> float:
    n_positive = label.sum()
    ranks = rankdata(score)[label == 1].sum()
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(label) - n_positive))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def core_against_rim(folder: Path, modality: str, case_id: str) -> float:
    """Mean of the lesion's core over that of its rim, in its early phase or its only image."""
    if modality == "US":
        image = read(folder / f"imagesTr/US/{case_id}.png")
        inside = read(folder / f"masksTr/US/{case_id}.png") > 0
        spacing = (1.0, 1.0)
        unit = image[inside].std()  # the gain and dynamic range of the scanner are unknown
        unit = 1.0
    else:
        image = read(folder / f"imagesTr/MRI/{case_id}_0001.nii.gz")
        mask = SimpleITK.ReadImage(str(folder / f"masksTr/MRI/{case_id}.nii.gz"))
        inside, spacing = SimpleITK.GetArrayFromImage(mask) > 0, mask.GetSpacing()[::-1]
        unit = image[inside].mean()
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    depth /= depth.max()
    return float((image[depth > 0.5].mean() - image[(depth > 0) & (depth < 0.25)].mean()) / unit)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticTruth]:
    folder = tmp_path_factory.mktemp("raw") / "Dataset999_Synthetic"
    return folder, make_synthetic_dataset(folder, n_train=300, n_test=0, seed=3, **LIGHT)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_simple_readout_sees_the_latent(cohort: tuple[Path, SyntheticTruth], modality: str) -> None:
    folder, truth = cohort
    cases = [case for case in truth.cases if modality in case.latents]
    label = np.array([case.label for case in cases])
    latent = np.array([case.latents[modality] for case in cases])
    seen = np.array([core_against_rim(folder, modality, case.case_id) for case in cases])
    assert spearmanr(seen, latent).statistic > 0.9
    assert auc(label, seen) == pytest.approx(auc(label, latent), abs=0.03)
    assert auc(label, latent) == pytest.approx(truth.latent_auc["oof"][modality])
