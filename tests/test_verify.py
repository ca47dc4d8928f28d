"""Each check of a raw dataset finds what it is for, names the file, and finds nothing in good data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from raw_factory import (
    box_mask,
    change_cell,
    read_rows,
    smooth_noise,
    spec_of,
    write_dataset,
    write_png,
    write_table,
    write_volume,
)

from her2net import pipeline
from her2net.cli import verify as command
from her2net.paths import DatasetPaths, Roots
from her2net.plan.stage import PlanOptions
from her2net.raw.dataset import read_test_labels
from her2net.raw.scan import Scan
from her2net.raw.verify import Verification, format_verification, verify_folder

REAL = Path(__file__).parents[2] / "shared" / "data"
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("good") / "Dataset001_Tiny", n_patients=22)


@pytest.fixture(scope="module")
def good_scan(good: Path) -> Scan:
    scan = verify_folder(good, 1, quiet=True)[1]
    assert scan is not None
    return scan


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / good.name))


def check(folder: Path, known: Scan | None = None) -> Verification:
    return verify_folder(folder, 1, quiet=True, known=known)[2]


def test_good_data_have_no_problem(good: Path) -> None:
    dataset, scan, verification = verify_folder(good, 1, quiet=True)
    assert verification.problems == []
    assert format_verification(verification) == "No problem found."
    assert dataset is not None
    assert scan is not None
    image = scan.find()["C000"].images["MRI"]
    assert (image.shape, image.dtype, len(image.image), len(image.crop)) == ([8, 24, 24], "int16", 2, 2)
    assert image.spacing_mm == pytest.approx([2.5, 0.8, 0.8])
    assert image.lesion is not None
    assert (image.lesion.start, image.lesion.stop, image.lesion.volume_vox) == ([2, 6, 7], [6, 15, 17], 360)
    assert image.lesion.n_lesions == 1


def broken_mri(folder: Path, change: Callable[[np.ndarray], object]) -> None:
    array = smooth_noise(RNG, (8, 24, 24)).astype(np.float32)
    change(array)
    write_volume(folder / "imagesTr/MRI/C003_0001.nii.gz", array)


def mask_us(folder: Path, array: np.ndarray) -> None:
    write_png(folder / "masksTr/US/C003.png", array)


MRI_MASK = box_mask((8, 24, 24), (2, 6, 7), (6, 15, 17))
def whitened_us(folder: Path, *place: slice) -> None:
    path = folder / "imagesTr/US/C003.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[place] = 255
    Image.fromarray(pixels).save(path)


IMAGE_FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str, str]] = {
    "truncated": (
        lambda f: os.truncate(f / "imagesTr/US/C003.png", 700),
        "error", "image-unreadable", "imagesTr/US/C003.png", "truncated or damaged"),
    "not an image": (
        lambda f: (f / "imagesTr/US/C003.png").write_text("hello"),
        "error", "image-unreadable", "imagesTr/US/C003.png", "not a readable picture"),
    "NaN": (
        lambda f: broken_mri(f, lambda a: a.__setitem__((0, 0, 0), np.nan)),
        "error", "image-not-finite", "imagesTr/MRI/C003_0001.nii.gz", "1 of 4608"),
    "infinity": (
        lambda f: broken_mri(f, lambda a: a.__setitem__((0, 0), np.inf)),
        "error", "image-not-finite", "imagesTr/MRI/C003_0001.nii.gz", "24 of 4608"),
    "constant": (
        lambda f: broken_mri(f, lambda a: a.fill(7)),
        "error", "image-constant", "imagesTr/MRI/C003_0001.nii.gz", "found '7'"),
    "channels off grid": (
        lambda f: write_volume(f / "imagesTr/MRI/C003_0001.nii.gz", smooth_noise(RNG, (8, 24, 20))),
        "error", "image-unreadable", "imagesTr/MRI/C003_0001.nii.gz", "do not share a grid"),
    "tiny image": (
        lambda f: (write_png(f / "imagesTr/US/C003.png", np.arange(80, dtype=np.uint8).reshape(8, 10)),
                   mask_us(f, box_mask((8, 10), (2, 2), (6, 6)))),
        "warning", "image-tiny", "imagesTr/US/C003.png", "8 x 10"),
    "empty mask": (
        lambda f: mask_us(f, np.zeros((48, 64), np.uint8)),
        "error", "mask-empty", "masksTr/US/C003.png", "marks nothing"),
    "mask of another size": (
        lambda f: mask_us(f, box_mask((50, 64), (12, 20), (30, 44))),
        "error", "mask-size", "masksTr/US/C003.png", "found '50 x 64', expected 48 x 64"),
    "mask spacing": (
        lambda f: write_volume(f / "masksTr/MRI/C003.nii.gz", MRI_MASK, spacing_xyz=(1, 1, 1)),
        "error", "mask-spacing", "masksTr/MRI/C003.nii.gz", "2.5 x 0.8 x 0.8 mm"),
    "mask origin": (
        lambda f: write_volume(f / "masksTr/MRI/C003.nii.gz", MRI_MASK, origin=(0, 0, 9)),
        "error", "mask-origin", "masksTr/MRI/C003.nii.gz", "expected (0, 0, 0)"),
    "mask direction": (
        lambda f: write_volume(f / "masksTr/MRI/C003.nii.gz", MRI_MASK, direction=(1, 0, 0, 0, -1, 0, 0, 0, 1)),
        "error", "mask-direction", "masksTr/MRI/C003.nii.gz", "another direction"),
    "mask unreadable": (
        lambda f: (f / "masksTr/MRI/C003.nii.gz").write_bytes(b""),
        "error", "mask-unreadable", "masksTr/MRI/C003.nii.gz", "0 bytes"),
    "mask with NaN": (
        lambda f: write_volume(f / "masksTr/MRI/C003.nii.gz", np.where(MRI_MASK, np.nan, 0).astype(np.float32)),
        "error", "mask-not-finite", "masksTr/MRI/C003.nii.gz", "NaN"),
    "mask not binary": (
        lambda f: mask_us(f, np.arange(48 * 64, dtype=np.int64).reshape(48, 64).clip(0, 9).astype(np.uint8)),
        "note", "mask-not-binary", "masksTr/US/C003.png", "from 0 to 9"),
    "mask of everything": (
        lambda f: mask_us(f, np.ones((48, 64), np.uint8)),
        "warning", "mask-covers-image", "masksTr/US/C003.png", "100%"),
    "mask of all but the lesion": (
        lambda f: mask_us(f, 1 - box_mask((48, 64), (12, 20), (30, 44))),
        "warning", "mask-covers-image", "masksTr/US/C003.png", "covers 86% of the image, every corner included. Is it inverted?"),
    "lesion in one grey": (
        lambda f: whitened_us(f, slice(0, 48), slice(0, 60)),
        "warning", "crop-constant", "imagesTr/US/C003.png", "found '255'"),
    "mask of one voxel": (
        lambda f: mask_us(f, box_mask((48, 64), (12, 20), (13, 21))),
        "warning", "mask-tiny", "masksTr/US/C003.png", "only 1 voxel"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_each_fault_of_an_image_is_named(folder: Path, good_scan: Scan, name: str) -> None:
    damage, severity, check_id, where, message = IMAGE_FAULTS[name]
    damage(folder)
    verification = check(folder, known=good_scan)
    found = [item for item in verification.problems if item.check == check_id]
    assert [(item.severity, item.where) for item in found] == [(severity, where)], verification.problems
    assert message in found[0].message
    assert str(folder) not in format_verification(verification)


def test_mixed_dimensions_are_found(folder: Path) -> None:
    for channel in range(2):
        write_volume(
            folder / f"imagesTr/MRI/C003_{channel:04d}.nii.gz", smooth_noise(RNG, (24, 24)), spacing_xyz=(1, 1)
        )
    (folder / "masksTr/MRI/C003.nii.gz").unlink()
    found = next(item for item in check(folder).problems if item.check == "dimensions-mixed")
    assert found.where == "modality MRI"
    assert "1 in 2D, 23 in 3D" in found.message


def test_volumes_that_lie_otherwise_than_most_are_named(folder: Path, good_scan: Scan) -> None:
    turned = {"C003": "RAS", "C005": "RAS", "C023": "SRA"}
    for case_id, orientation in turned.items():
        for path in folder.glob(f"*/MRI/{case_id}*"):
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), orientation), str(path))
    (found,) = [item for item in check(folder, known=good_scan).problems if item.check != "image-tiny"]
    assert (found.severity, found.check, found.where) == ("warning", "orientation-mixed", "modality MRI")
    assert "the axes of 3 of 24 volumes run otherwise than those of the others (LPS); RAS: C003, C005; SRA: C023. " in found.message
    assert 'DICOMOrient(image, "LPS")' in found.message


def test_small_classes_are_a_warning(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset001_Few", n_patients=8)
    found = [item for item in check(folder).problems if item.check == "class-small"]
    assert [item.where for item in found] == ["class negative", "class positive"]


def test_a_modality_of_one_class_is_an_error(folder: Path, good_scan: Scan) -> None:
    for i in range(3, 22, 2):
        for path in folder.glob(f"*/MRI/C{i:03d}*"):
            path.unlink()
    found = next(item for item in check(folder, known=good_scan).problems if item.severity == "error")
    assert (found.check, found.where) == ("class-lacks-modality", "modality MRI")
    assert "1 training patient(s) of class positive have this modality, expected at least 2. Add such cases" in found.message


def test_the_same_said_of_many_files_is_told_once(folder: Path, good_scan: Scan) -> None:
    for i in range(12):
        (folder / f"masksTr/US/C{i:03d}.png").rename(folder / f"masksTr/US/C{i:03d}_mask.png")
    (folder / "imagesTr/US/a.dcm").write_bytes(b"x")
    verification = check(folder, known=good_scan)
    assert sum(item.check == "mask-without-image" for item in verification.problems) == 12
    lines = [line for line in format_verification(verification).splitlines() if line.startswith("warning") and ": " in line]
    assert [line.split(": ")[0] for line in lines] == ["warning imagesTr/US/a.dcm", "warning masksTr/US", "warning masksTr/US"]
    assert lines[1].startswith("warning masksTr/US: 12 files, C000_mask.png, C001_mask.png, ")
    assert "C007_mask.png and 4 more: a mask without a row in cases.csv. Masks are named" in lines[1]
    assert "her2net_verify --json lists every file." in format_verification(verification)


def test_two_lesions_in_one_image_may_differ_in_class(folder: Path) -> None:
    shutil.copy(folder / "imagesTr/US/C002.png", folder / "imagesTr/US/C003.png")
    change_cell(folder, 5, "patient_id", "P002")
    assert "same-pixels-labels" in {item.check for item in check(folder).problems}
    write_png(folder / "masksTr/US/C003.png", box_mask((48, 64), (2, 2), (10, 14)))
    assert {(item.severity, item.check) for item in check(folder).problems} == {("note", "same-pixels-cases")}


@pytest.mark.parametrize(
    ("target", "patient", "expected", "linked", "resembling"),
    [
        ("C004", "P004", ("warning", "same-pixels-patients"), [["P002", "P004"]], []),
        ("C003", "P003", ("error", "same-pixels-labels"), [["P002", "P003"]], []),
        ("C022", "P022", ("error", "same-pixels-train-test"), [], ["C022"]),
        ("C004", "P002", ("note", "same-pixels-cases"), [], []),
    ],
)
def test_copies_are_found(
    folder: Path, target: str, patient: str, expected: tuple[str, str], linked: list, resembling: list
) -> None:
    part = "Ts" if target == "C022" else "Tr"
    Image.open(folder / "imagesTr/US/C002.png").convert("RGB").save(folder / f"images{part}/US/{target}.png")
    change_cell(folder, int(target[1:]) + 2, "patient_id", patient)
    verification = check(folder)
    assert [(item.severity, item.check) for item in verification.problems] == [expected]
    assert f"C002 (patient P002), {target} (patient {patient})" in verification.problems[0].message
    assert verification.linked_patients == linked
    assert verification.resembling_test_cases == resembling


@pytest.mark.parametrize("kind", ["brighter", "resized", "jpeg", "annotated"])
def test_near_copies_are_found(folder: Path, kind: str, tmp_path: Path) -> None:
    picture = Image.open(folder / "imagesTr/US/C002.png")
    values = np.asarray(picture).copy()
    if kind == "brighter":
        picture = Image.fromarray((values * 0.8 + 20).astype(np.uint8))
    elif kind == "resized":
        picture = picture.resize((96, 72), Image.Resampling.BICUBIC).resize((64, 48), Image.Resampling.BICUBIC)
    elif kind == "jpeg":
        picture.save(tmp_path / "x.jpg", quality=60)
        picture = Image.open(tmp_path / "x.jpg")
    else:
        values[45:47, 60:62] = 255
        picture = Image.fromarray(values)
    picture.save(folder / "imagesTr/US/C004.png")
    picture.save(folder / "imagesTs/US/C022.png")
    verification = check(folder)
    found = [item for item in verification.problems if item.check == "near-duplicate"]
    assert len(found) == 1
    assert "C002 (patient P002), C004 (patient P004), C022 (patient P022)" in found[0].message
    assert verification.linked_patients == [["P002", "P004"]]
    assert verification.resembling_test_cases == ["C022"]


@pytest.mark.parametrize(("alike", "end"), [
    (["C002", "C004"], "give them one patient_id. The training patients are kept in one fold."),
    (["C002", "C022"], "give them one patient_id. Results are also reported without the test case."),
    (["C002", "C022", "C023"], "give them one patient_id. Results are also reported without the test cases."),
    (["C022", "C023"], "give them one patient_id. Until then each counts as a patient in the test figures."),
    (["C002", "C004", "C022"], "The training patients are kept in one fold. Results are also reported without the test case."),
])  # fmt: skip
def test_what_becomes_of_near_copies_is_said_by_where_they_stand(folder: Path, alike: list[str], end: str) -> None:
    """Test cases have no fold."""
    values = np.asarray(Image.open(next(folder.glob(f"images*/US/{alike[0]}.png"))))
    for i, case in enumerate(alike):
        part = "Ts" if case in ("C022", "C023") else "Tr"
        Image.fromarray((values * (1 - i / 20) + 5 * i).astype(np.uint8)).save(folder / f"images{part}/US/{case}.png")
    found = [item for item in check(folder).problems if item.check == "near-duplicate"]
    assert len(found) == 1
    assert found[0].message.endswith(end)


def test_patients_alike_through_a_test_case_alone_are_not_said_to_share_a_fold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C002 and C004 are like C022 and unlike each other; so is C006, which is a copy of C004's MRI besides."""
    from her2net.raw import verify as module

    def alike(names: list[str]) -> list[tuple[str, str]]:
        place = {case.case_id: i for i, case in enumerate(case for case in scan.cases if "US" in case.images)}
        return [(place[name], place["C022"]) for name in names]

    scan = verify_folder(folder, 1, quiet=True)[1]
    assert scan is not None
    calls = iter([alike(["C002", "C004"]), [], alike(["C002", "C004", "C006"]), []])
    monkeypatch.setattr(module, "find_lookalikes", lambda *_: next(calls))
    (found,) = check(folder, known=scan).problems
    apart = "one patient_id.{} Training patients who are alike through a test case alone are not kept in one fold. Results are"
    assert apart.format("") in found.message
    for channel in ("0000", "0001"):
        shutil.copy(folder / f"imagesTr/MRI/C004_{channel}.nii.gz", folder / f"imagesTr/MRI/C006_{channel}.nii.gz")
    found = next(item for item in check(folder).problems if item.check == "near-duplicate")
    assert apart.format(" P004 and P006 are kept in one fold.") in found.message


def test_only_changed_files_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verify_folder(folder, 1, quiet=True)[1]
    (folder / "masksTr/US/C001.png").unlink()
    write_png(folder / "imagesTr/US/C002.png", smooth_noise(RNG, (48, 64)).astype(np.uint8))
    read: list[str] = []
    from her2net.raw import scan as module

    genuine = module.scan_image
    monkeypatch.setattr(module, "scan_image", lambda job: read.append(job.files[0]) or genuine(job))
    again = verify_folder(folder, 1, quiet=True, known=first)[1]
    assert sorted(read) == ["imagesTr/US/C001.png", "imagesTr/US/C002.png"]
    assert again == verify_folder(folder, 1, quiet=True)[1]


def test_workers_do_not_change_the_scan_and_it_survives_the_disk(good: Path, good_scan: Scan, tmp_path: Path) -> None:
    assert verify_folder(good, 2, quiet=True)[1] == good_scan
    good_scan.save(tmp_path / "scan.json")
    assert Scan.load(tmp_path / "scan.json") == good_scan


def test_layout_and_images_are_reported_together(folder: Path) -> None:
    (folder / "imagesTr/US/C003.png").write_text("hello")
    change_cell(folder, 4, "label", "maybe")
    checks = {item.check for item in check(folder).problems}
    assert {"image-unreadable", "label-unknown"} <= checks


def test_one_patient_or_site_in_two_spellings_is_warned_of_or_one(folder: Path) -> None:
    for row, patient in ((3, "p000"), (4, "P 2"), (5, "P002")):
        change_cell(folder, row, "patient_id", patient)
    change_cell(folder, 2, "site", "South")
    change_cell(folder, 3, "site", "NA")
    change_cell(folder, 25, "label", "NA")
    dataset, _, found = verify_folder(folder, 1, quiet=True)
    assert dataset is not None
    assert [item.check for item in found.problems] == ["patient-spelling"]
    assert "'P000' and 'p000', 'P 2' and 'P002'" in found.problems[0].message
    assert {case.site for case in dataset.cases} == {"South", "north", None}
    assert read_test_labels(dataset, purpose="test", log=folder / "log.jsonl") == {"C022": 0}
    change_cell(folder, 2, "patient_id", "NA")
    assert "the patient of case 'C000' is missing" in check(folder).problems[0].message


def test_columns_that_mislead_are_warned_of(folder: Path) -> None:
    rows = read_rows(folder)
    for row in rows[1:]:
        test = row[2] in ("P022", "P023")
        row[3], row[4] = ("south" if row[1] == "1" else "north"), "" if test else row[4]
        row.append("T4" if test else "T1")
    write_table(folder / "cases.csv", [[*rows[0], "stage"], *rows[1:]])
    spec = spec_of(labels={"HER2-positive": 0, "HER2-negative": 1}, covariates={"age": "continuous", "stage": "categorical"})
    (folder / "dataset.json").write_text(json.dumps(spec), encoding="utf-8")
    found = {item.check: item.message for item in check(folder).problems}
    assert list(found) == ["labels-swapped", "site-class", "covariate-one-part", "level-untrained"]
    assert "north: 11 HER2-positive, 0 HER2-negative; south: 0 HER2-positive, 11 HER2-negative" in found["site-class"]
    assert "2 test case(s) have values that no training case has: T4" in found["level-untrained"]


def test_a_third_modality_needs_no_code(folder: Path) -> None:
    spec = spec_of()
    spec["modalities"]["MG"] = {"channels": {"0": "CC"}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(spec), encoding="utf-8")
    for i in range(0, 22, 3):
        write_png(folder / f"imagesTr/MG/C{i:03d}_0000.png", smooth_noise(RNG, (40, 40)).clip(0, 999).astype(np.uint16))
    problems = check(folder).problems
    assert {(item.severity, item.check) for item in problems} == {
        ("note", "modality-missing"),
        ("warning", "mask-missing"),
        ("warning", "modality-without-images"),  # in the test cases
    }


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("her2net_raw", str(folder.parent))
    monkeypatch.setenv("her2net_preprocessed", str(folder.parent / "p"))
    monkeypatch.setenv("her2net_results", str(folder.parent / "r"))
    arguments = ["-d", "1", "--num-workers", "1", "--quiet"]
    assert command.main(arguments) == 0
    assert "22 training and 2 test cases" in capsys.readouterr().out
    write_table(folder / "cases.csv", [*read_rows(folder), ["C900", "1", "P900", "north", "50"]])
    assert command.main([*arguments, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [item["check"] for item in found["problems"]] == ["case-without-image"]
    assert command.main(arguments) == 2
    assert "error     case-without-image      1" in capsys.readouterr().out
    assert not (folder.parent / "p").exists()


@pytest.mark.real
@pytest.mark.parametrize("name", ["Dataset101_BreastReal", "Dataset102_BreastUS"])
def test_real_cohorts_have_no_error(name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not beside the checkout")
    verification = verify_folder(REAL / name, 2, quiet=True)[2]
    assert verification.n_errors == 0
    assert sum(item.check == "near-duplicate" for item in verification.problems) <= 20


def test_the_example_of_the_template_is_good() -> None:
    template = Path(__file__).parents[1] / "her2net_raw_template"
    verification = check(template / "Dataset001_Example")
    assert {item.check for item in verification.problems} <= {"class-small", "modality-missing"}


def test_planning_says_that_there_are_warnings(folder: Path) -> None:
    """Who types `her2net_run` alone sees them, too; data without any say nothing."""
    root = folder.parent
    paths = DatasetPaths(Roots(root, root / "preprocessed", root / "results"), folder.name)
    options = PlanOptions(preprocess=False, n_workers=1, quiet=True)
    assert not any(remark.startswith("data:") for remark in pipeline.plan(paths, options)[1])
    (folder / "masksTr/MRI/C003.nii.gz").unlink()
    assert "data: 1 warning; her2net_verify -d Dataset001_Tiny lists them" in pipeline.plan(paths, options)[1]
