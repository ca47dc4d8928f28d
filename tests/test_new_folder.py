"""A folder of new images: files are matched as in training; what is not used, and what the table lacks, is named."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_factory import make_model, with_tiny_network, write_made_archive
from raw_factory import box_mask, smooth_noise, write_png

from her2net import Predictor
from her2net.artefact import write_csv
from her2net.cli import predict
from her2net.errors import RawDataError
from her2net.input_check import Finding, UnlikeTrainingWarning
from her2net.new_folder import find_cases
from her2net.paths import folder_name
from her2net.plan.schema import Plan
from her2net.predict import summarise_findings, write_tables
from her2net.predictions import Predictions
from her2net.raw.images import read_image
from her2net.trained import TrainedModel

NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedModel]:
    with with_tiny_network():
        yield make_model(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def model_file(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_archive(tmp_path_factory.mktemp("archive") / "m.her2net", model)


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


@pytest.mark.parametrize(
    ("names", "found"), [(("P1.png", "P2.png"), "P1.png, P2.png"), (("US/P1.dcm",), "US/P1.dcm"), ((), "no file")]
)
def test_where_no_image_is_found_it_is_said_what_lies_there(plan: Plan, tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RawDataError, match=rf"no image of any modality; found '{found}', expected US/<case>\.png or "):
        find_cases(tmp_path, plan)


def test_a_folder_among_the_images_is_not_called_a_file(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P1.png", "US/P2/P2.png")
    (finding,) = find_cases(tmp_path, plan)[1]
    assert str(finding) == "US P2: the folder is not read, only files beside it, expected a file that ends in .png."


def test_a_file_where_the_predictions_are_to_go_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("x")
    assert predict.main(["--model", str(tmp_path / "no.her2net"), "-i", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert f"-o {tmp_path / 'out'}: is not a folder. Name another" in capsys.readouterr().err


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


def test_a_folder_spelled_otherwise_than_its_modality_is_refused(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "us/P1.png")
    if (tmp_path / "US").is_dir():
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(RawDataError, match=r"us: the folder is spelled otherwise than the modality, expected US"):
        find_cases(tmp_path, plan)
    write_images(tmp_path, "US/P2.png")
    with pytest.raises(RawDataError, match=r"us: the folder is spelled otherwise than the modality, expected US"):
        find_cases(tmp_path, plan)


def test_another_name_of_a_folder_that_is_read_is_neither_refused_nor_warned_of(plan: Plan, tmp_path: Path) -> None:
    """As `us` is one of `US` where a file system does not tell upper from lower case."""
    write_images(tmp_path, "US/P1.png")
    if not (tmp_path / "us").is_dir():
        (tmp_path / "us").symlink_to("US", target_is_directory=True)
    found, ignored = find_cases(tmp_path, plan)
    assert [case.case_id for case in found["US"]] == ["P1"]
    assert not ignored


def test_a_folder_of_no_modality_is_named_if_it_holds_images(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P1.png", "XR/P1.png", "notes/readme.txt.png")
    (tmp_path / "empty").mkdir()
    found, ignored = find_cases(tmp_path, plan)
    assert [case.case_id for case in found["US"]] == ["P1"]
    assert checks(ignored) == [("XR", "", "folder-ignored"), ("notes", "", "folder-ignored")]


def test_images_of_every_place_are_read_and_doubles_refused(plan: Plan, tmp_path: Path) -> None:
    write_images(tmp_path, "US/P1.png", "images/US/P2.png", "imagesTs/US/P3.png")
    found, _ = find_cases(tmp_path, plan)
    assert [case.case_id for case in found["US"]] == ["P1", "P2", "P3"]
    write_images(tmp_path, "images/US/P1.png")
    with pytest.raises(RawDataError, match=r"images/US/P1\.png: the same channel of 'P1' as .*/US/P1\.png\. Keep one"):
        find_cases(tmp_path, plan)


def test_a_folder_of_tables_holds_those_of_one_call(model_file: Path, tmp_path: Path) -> None:
    """Tables of images that are not predicted now would stand beside the new ones, with names that those may hide."""
    write_images(tmp_path / "both", "US/P1.png")
    predictor = Predictor(model_file, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlikeTrainingWarning)
        tables = predictor.predict(tmp_path / "both", quiet=True)
    out = tmp_path / "out"
    for name in predictor.model.names:
        write_csv(out / f"{folder_name(name)}.csv", ["case_id"], [{"case_id": "P0"}])
    (out / "notes.csv").write_text("mine")
    write_tables(out, predictor, tables)
    assert {path.stem for path in out.iterdir()} == {*map(folder_name, tables), "decisions", "warnings", "notes"}
    assert set(tables) < set(predictor.model.names)
    assert not [path.name for path in out.iterdir() if "P0" in path.read_text()]


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


def predict_with_table(model_file: Path, folder: Path, table: str) -> tuple[Predictor, dict[str, Predictions]]:
    """Predict the images 001 and 002, of which the model reads age and sex."""
    write_images(folder, "US/001.png", "US/002.png")
    write_masks(folder, "masks/US/001.png", "masks/US/002.png")
    (folder / "cases.csv").write_text(table, encoding="utf-8")
    predictor = Predictor(model_file, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlikeTrainingWarning)
        return predictor, predictor.predict(folder, quiet=True)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("case_id,age,sex\n001,50,f\n002,60,M\n", []),
        ("case_id,age,sex\n001,50,f\n002,,\n", []),
        ("case_id,age,sex\n1,50,f\n002,60,m\n", [("001", "row-missing"), ("1", "row-without-image")]),
        ("case_id,age,sex\n001,50,f\n002,60,M\n" + "".join(f"9{i},50,f\n" for i in range(10, 40)), []),
        ("case_id,age,sex\n001,50,f\n2,60,M\n" + "".join(f"9{i},50,f\n" for i in range(10, 40)),
         [("002", "row-missing"), ("2", "row-without-image"), *((f"9{i}", "row-without-image") for i in range(10, 17)),
          ("cases.csv", "row-without-image")]),
        ("case_id,age,sex\n", [("001", "row-missing"), ("002", "row-missing")]),
        ("case_id,Alter,SEX\n001,50,f\n002,60,m\n", [("cases.csv", "column-missing")]),
        ("case_id,age,sex\n001,50,f\n002,60,w\n", [("002", "level-unseen")]),
    ],
)
def test_what_a_table_lacks_is_named(model_file: Path, tmp_path: Path, table: str, expected: list[tuple[str, str]]) -> None:
    predictor, tables = predict_with_table(model_file, tmp_path / "new", table)
    assert [(f.case_id, f.check) for f in predictor.findings if f.modality == "CLIN"] == expected
    assert all("CLIN" in str(f) for f in predictor.findings if f.modality == "CLIN")
    if ("cases.csv", "column-missing") in expected:
        assert {row["warnings"] for row in predictor.decide(tables) if row["model"] == "CLIN"} == {1}
        assert summarise_findings([f for f in predictor.findings if f.modality == "CLIN"]) == "1 warning (column-missing 1)"
    if ("002", "level-unseen") in expected:
        said = next(str(f) for f in predictor.findings if f.check == "level-unseen")
        assert said == "CLIN 002: the level of sex was not seen in training, so it counts as missing; found w, expected f, m."
        assert {r["case_id"]: r["warnings"] for r in predictor.decide(tables) if r["model"] == "CLIN"} == {"001": 0, "002": 1}


def test_a_table_in_the_other_unicode_form_fits_its_images(model_file: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "new", f"US/{NFD}.png")
    predictor, tables = predict_with_table(model_file, tmp_path / "new", f"case_id,age,sex\n{NFD},50,f\n001,5,f\n002,5,m\n")
    assert set(tables["CLIN"].case_ids) == {NFC, "001", "002"}
    assert not [f for f in predictor.findings if f.modality == "CLIN"]


def test_only_images_count_as_images_with_warnings() -> None:
    """Rows of covariates, cases that are not there, files that are not read and the fusion's choice are none."""
    of = [("size", "P1", "US"), ("spacing", "P1", "US"), ("size", "P1", "MRI"), ("row-missing", "P1", "CLIN"),
          ("row-missing", "P2", "CLIN"), ("row-without-image", "P9", "CLIN"), ("mask-without-image", "P8.png", "US"),
          ("fusion-set", "P1", "fusion")]  # fmt: skip
    findings = [Finding("warning", check, "", "", "", case_id, modality) for check, case_id, modality in of]
    assert summarise_findings(findings).startswith("2 images with warnings and 5 other warnings (size 2, spacing 1, row-missing 2")
    assert summarise_findings(findings[:3]) == "2 images with warnings (size 2, spacing 1)"
    assert summarise_findings(findings[3:5]) == "2 warnings (row-missing 2)"
