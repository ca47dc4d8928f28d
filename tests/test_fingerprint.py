"""The fingerprint measures the training cases, all of them and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from raw_factory import box_mask, change_cell, smooth_noise, write_dataset, write_png, write_volume

from her2net.errors import RawDataError
from her2net.fingerprint import Fingerprint, extract_fingerprint
from her2net.raw.dataset import read_dataset, seal_holdout
from her2net.raw.scan import scan_cases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "Dataset001_Tiny")


def fingerprint_of(folder: Path, n_workers: int = 1) -> Fingerprint:
    dataset = read_dataset(folder)
    return extract_fingerprint(dataset, scan_cases(dataset, n_workers=n_workers, quiet=True))


def test_it_measures_what_is_there(folder: Path) -> None:
    change_cell(folder, 3, "patient_id", "P000")
    (folder / "masksTr/US/C005.png").unlink()
    for channel in range(2):
        (folder / f"imagesTr/MRI/C006_{channel:04d}.nii.gz").unlink()
    (folder / "masksTr/MRI/C006.nii.gz").unlink()
    found = fingerprint_of(folder)
    assert (found.dataset, found.n_cases, found.n_patients, found.test_cases) == ("Dataset001_Tiny", 12, 11, 2)
    assert found.cases_per_class == {"negative": 6, "positive": 6}
    assert found.patients_per_class == {"negative": 6, "positive": 6}
    assert (found.n_sites, found.patients_per_site) == (2, {"north": 8, "south": 4})
    us, mri = found.modalities["US"], found.modalities["MRI"]
    assert (us.ndim, us.n_channels, us.n_cases, us.n_missing, us.n_without_mask) == (2, 1, 12, 0, 1)
    assert (us.fixed_range, us.dtypes, us.spacing_mm, us.lesion_size_mm) == (True, ["uint8"], None, None)
    assert [axis.median for axis in us.lesion_size_vox or []] == [18, 24]
    assert us.lesion_fraction is not None
    assert us.lesion_fraction.median == pytest.approx(18 * 24 / (48 * 64))
    assert (mri.ndim, mri.n_channels, mri.n_cases, mri.n_missing) == (3, 2, 11, 1)
    assert us.cases_per_class == {"negative": 6, "positive": 6}
    assert mri.cases_per_class == {"negative": 5, "positive": 6}
    assert mri.channel_names == ["pre", "post"]
    assert (mri.fixed_range, mri.dtypes) == (False, ["int16"])
    assert [axis.median for axis in mri.spacing_mm or []] == pytest.approx([2.5, 0.8, 0.8])
    assert [axis.median for axis in mri.lesion_size_mm or []] == pytest.approx([10, 7.2, 8])
    assert mri.lesion_volume_mm3 is not None
    assert mri.lesion_volume_mm3.median == pytest.approx(360 * 2.5 * 0.64)
    assert (mri.n_lesions_median, mri.n_lesions_max) == (1, 1)
    assert len(mri.crop_statistics) == len(mri.mask_statistics) == 2


def test_intensities_are_medians_over_cases(folder: Path) -> None:
    for i in range(12):
        array = np.full((48, 64), 10 * i, np.uint8)
        array[12:30, 20:44] = 100 + i
        array[0, 0] = 255
        write_png(folder / f"imagesTr/US/C{i:03d}.png", array)
    statistics = fingerprint_of(folder).modalities["US"].mask_statistics[0]
    assert (statistics.mean, statistics.std) == (pytest.approx(105.5), 0)


def test_nothing_of_a_test_case_enters(folder: Path) -> None:
    before = fingerprint_of(folder)
    write_png(folder / "imagesTs/US/C012.png", smooth_noise(np.random.default_rng(9), (100, 90)).astype(np.uint8))
    write_png(folder / "masksTs/US/C012.png", box_mask((100, 90), (1, 1), (80, 80)))
    write_volume(folder / "masksTs/MRI/C013.nii.gz", box_mask((8, 24, 24), (0, 0, 0), (8, 9, 9)))
    change_cell(folder, 14, "label", "1")
    change_cell(folder, 14, "site", "elsewhere")
    assert fingerprint_of(folder) == before


def test_a_sealed_holdout_equals_test_cases_that_lie_in_images_ts(folder: Path, tmp_path: Path) -> None:
    dataset = seal_holdout(read_dataset(folder), ["P010", "P011"])
    sealed = extract_fingerprint(dataset, scan_cases(dataset, n_workers=1, quiet=True))
    moved = Path(shutil.copytree(folder, tmp_path / "moved" / folder.name))
    for path in [*moved.glob("*Tr/*/C010*"), *moved.glob("*Tr/*/C011*")]:
        path.rename(str(path).replace("Tr", "Ts"))
    assert fingerprint_of(moved) == sealed
    assert sealed.test_cases == 4


def test_workers_and_times_do_not_matter_and_content_does(folder: Path, tmp_path: Path) -> None:
    before = fingerprint_of(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))
    for path in copy.rglob("*.png"):
        path.touch()
    assert fingerprint_of(copy, n_workers=2) == before
    change_cell(copy, 2, "label", "1")
    relabelled = fingerprint_of(copy)
    assert relabelled.dataset_digest != before.dataset_digest
    write_png(copy / "masksTr/US/C003.png", box_mask((48, 64), (12, 20), (30, 45)))
    assert fingerprint_of(copy).dataset_digest not in (before.dataset_digest, relabelled.dataset_digest)


def test_it_survives_the_disk(folder: Path, tmp_path: Path) -> None:
    found = fingerprint_of(folder)
    found.save(tmp_path / "fingerprint.json")
    assert Fingerprint.load(tmp_path / "fingerprint.json") == found


def test_unreadable_training_images_are_refused(folder: Path) -> None:
    (folder / "imagesTr/US/C003.png").write_text("x")
    with pytest.raises(RawDataError, match=r"Run her2net_verify(.|\n)*C003 US"):
        fingerprint_of(folder)
