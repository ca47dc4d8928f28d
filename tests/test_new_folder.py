"""A folder of new images: files are matched as those of a dataset are, and whatever is not used is named."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_factory import make_model, with_tiny_network
from raw_factory import box_mask, smooth_noise, write_png

from her2net.errors import RawDataError
from her2net.input_check import Finding
from her2net.new_folder import find_cases
from her2net.plan.schema import Plan
from her2net.raw.images import read_image
from her2net.trained import TrainedModel

NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedModel]:
    with with_tiny_network():
        yield make_model(tmp_path_factory.mktemp("made"))


@pytest.fixture
def plan(model: TrainedModel) -> Plan:
    return model.plan


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        image = np.clip(smooth_noise(np.random.default_rng(len(name)), (48, 64)) / 4, 0, 255).astype(np.uint8)
        write_png(folder / name, image)


def write_masks(folder: Path, *names: str) -> None:
    for name in names:
        write_png(folder / name, box_mask((48, 64), (12, 20), (30, 44)))


def checks(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.case_id, finding.modality, finding.check) for finding in found]


@pytest.mark.parametrize(
    ("image", "mask", "case_id"),
    [
        ("US/P1.png", "masks/US/P1.PNG", "P1"),
        ("US/P1.Png", "masksTs/US/P1.png", "P1"),
        (f"US/{NFD}.png", f"masks/US/{NFC}.png", NFC),
        (f"US/{NFC}.png", f"masks/US/{NFD}.png", NFC),
        (f"US/{NFD}_0000.png", f"masks/US/{NFD}.png", NFC),
    ],
)
def test_the_mask_of_an_image_is_found_as_in_training(plan: Plan, tmp_path: Path, image: str, mask: str, case_id: str) -> None:
    write_images(tmp_path, image)
    write_masks(tmp_path, mask)
    cases, ignored = find_cases(tmp_path, plan)
    assert [(case.case_id, case.mask) for case in cases["US"]] == [(case_id, tmp_path / mask)]
    assert not ignored


def test_masks_that_belong_to_no_image_are_named(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P3.png", "US/P4.png", "MG/P5.png")
    write_masks(tmp_path, "masks/US/P3_0000.png", "masks/US/P5.png", "masks/US/P4.bmp", "masks/MG/P5.png")
    cases, ignored = find_cases(tmp_path, plan)
    assert [(case.case_id, case.mask) for case in cases["US"]] == [("P3", None), ("P4", None)]
    assert checks(ignored) == [
        ("P4.bmp", "US", "file-ignored"), ("P3_0000.png", "US", "mask-without-image"), ("P5.png", "US", "mask-without-image"),
    ]  # fmt: skip
    assert "expected <case> plus the ending, without a channel number" in str(ignored[1])


def test_two_masks_of_one_case_are_refused(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P1.png", "US/P2.png")
    write_masks(tmp_path, "masks/US/P1.png", "masks/US/P1.PNG", "masks/US/P2.png", "masksTs/US/P2.png")
    with pytest.raises(RawDataError) as caught:
        find_cases(tmp_path, plan)
    for case_id in ("P1", "P2"):
        assert f"a second mask of {case_id!r} beside {tmp_path}/masks/US/{case_id}" in str(caught.value)


def test_one_case_in_two_unicode_forms_is_refused(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, f"US/{NFC}.png", f"US/{NFD}.png")
    with pytest.raises(RawDataError, match=f"the same channel of '{NFC}'"):
        find_cases(tmp_path, plan)


def test_a_sidecar_that_is_read_is_not_said_to_be_ignored(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P1.png", "US/P2_0000.png", "US/P3.png")
    for name in ("US/P1.json", "US/P2.json", "US/P4.json"):
        (tmp_path / name).write_text('{"spacing_mm": [0.1, 0.2]}')
    (tmp_path / "US/P3.txt").write_text("x")
    cases, ignored = find_cases(tmp_path, plan)
    assert [read_image(case.images).spacing_mm for case in cases["US"]] == [(0.1, 0.2), (0.1, 0.2), None]
    assert checks(ignored) == [("P3.txt", "US", "file-ignored"), ("P4.json", "US", "sidecar-without-image")]
    assert str(ignored[0]).endswith("expected .png.")
    section = plan.modalities["US"].model_copy(update={"file_ending": ".nii.gz"})
    flat = plan.model_copy(update={"modalities": {"US": section}})
    for path in (tmp_path / "US").glob("*.png"):
        path.rename(path.with_name(path.name.replace(".png", ".nii.gz")))
    assert ("P1.json", "US", "file-ignored") in checks(find_cases(tmp_path, flat)[1]), "volume files tell their spacing themselves"
