"""New images that the model has not learned from are named; ordinary ones are not."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from archive_factory import make_model, with_tiny_network, write_made_archive
from conftest import SHARED_DATA
from hypothesis import given
from hypothesis import strategies as st
from raw_factory import smooth_noise, write_dataset, write_png, write_volume

from her2net import Predictor
from her2net.cli import predict
from her2net.errors import RawDataError
from her2net.fingerprint import ModalityFingerprint, extract_fingerprint
from her2net.input_check import Finding, MeasuredImage, UnlikeTrainingWarning, check_image, inspect_case, measure_image
from her2net.raw.dataset import read_dataset
from her2net.raw.images import Volume, read_image
from her2net.raw.intensity import ChannelStatistics
from her2net.raw.scan import ImageScan, scan_cases


def as_measured(image: ImageScan) -> MeasuredImage:
    share = None if image.lesion is None else image.lesion.volume_vox / float(np.prod(image.shape))
    spacing = None if image.spacing_mm is None else tuple(image.spacing_mm)
    return MeasuredImage(tuple(image.shape), spacing, tuple(image.image), True, share, image.orientation)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, ModalityFingerprint], dict[str, list[MeasuredImage]]]:
    """Fingerprint of a tiny cohort, and its test images as measured: modality -> images."""
    dataset = read_dataset(write_dataset(tmp_path_factory.mktemp("cohort") / "Dataset001_Tiny"))
    scan = scan_cases(dataset, n_workers=1, quiet=True)
    images = {name: [as_measured(scan.find()[c.case_id].images[name]) for c in dataset.test] for name in ("US", "MRI")}
    return extract_fingerprint(dataset, scan).modalities, images


def checks(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.severity, finding.check) for finding in found}


def test_images_of_the_same_source_pass(cohort: tuple) -> None:
    trained, images = cohort
    assert [check_image(image, trained[name]) for name in images for image in images[name]] == [[]] * 4


def scaled(image: MeasuredImage, factor: float) -> MeasuredImage:
    def scale(c: ChannelStatistics | None) -> ChannelStatistics:
        assert c is not None
        return ChannelStatistics(**{key: value * factor for key, value in c.model_dump().items()})

    return replace(image, channels=tuple(scale(c) for c in image.channels))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("US", lambda i: replace(i, shape=(8, *i.shape)), {("error", "dimensions")}),
        ("MRI", lambda i: replace(i, shape=i.shape[1:]), {("error", "dimensions")}),
        ("MRI", lambda i: replace(i, channels=i.channels[:1]), {("error", "channels")}),
        ("MRI", lambda i: replace(i, channels=i.channels[:1], shape=i.shape[1:]), {("error", "channels"), ("error", "dimensions")}),
        ("US", lambda i: replace(i, finite=False), {("error", "not-finite")}),
        ("US", lambda i: replace(i, channels=(None,)), {("error", "not-finite")}),
        ("US", lambda i: scaled(i, 0), {("error", "constant")}),
        ("MRI", lambda i: replace(i, orientation="PIR"), {("warning", "orientation")}),
        ("MRI", lambda i: replace(i, spacing_mm=(5.0, 0.8, 0.8)), {("warning", "spacing")}),
        ("MRI", lambda i: replace(i, spacing_mm=(2.5, 0.8, 0.5)), {("warning", "spacing")}),
        ("MRI", lambda i: replace(i, spacing_mm=(2.5, 0.9, 0.7)), set()),
        ("MRI", lambda i: replace(i, spacing_mm=None), {("warning", "spacing")}),
        ("US", lambda i: replace(i, spacing_mm=(0.1, 0.1)), set()),
        ("US", lambda i: replace(i, shape=(480, 640)), {("warning", "size")}),
        ("US", lambda i: replace(i, shape=(40, 64)), set()),
        ("US", lambda i: replace(i, shape=(30, 64)), {("warning", "size")}),
        ("US", lambda i: scaled(i, 257), {("warning", "intensity")}),
        ("US", lambda i: scaled(i, 1 / 255), {("warning", "intensity")}),
        ("US", lambda i: replace(i, lesion_share=None), {("warning", "mask-missing")}),
        ("US", lambda i: replace(i, lesion_share=0.0), {("warning", "mask-missing")}),
        ("US", lambda i: replace(i, lesion_share=0.9), {("warning", "lesion-share")}),
    ],
)
def test_each_rule(cohort: tuple, name: str, change, expected: set) -> None:  # type: ignore[no-untyped-def]
    trained, images = cohort
    assert checks(check_image(change(images[name][0]), trained[name])) == expected


def test_masks_are_not_expected_where_training_had_none(cohort: tuple) -> None:
    trained, images = cohort
    bare = trained["US"].model_copy(update={"n_without_mask": trained["US"].n_cases, "lesion_fraction": None})
    assert checks(check_image(images["US"][0], bare)) == {("warning", "mask-unexpected")}
    assert check_image(replace(images["US"][0], lesion_share=None), bare) == []


def test_a_finding_says_where_what_found_and_expected(cohort: tuple) -> None:
    trained, images = cohort
    finding = check_image(replace(images["US"][0], shape=(480, 640)), trained["US"], case_id="A1", modality="US")[0]
    assert str(finding) == "US A1: size unlike the training images; found 480 x 640, expected (38.4 to 60) x (51.2 to 80)."


def test_a_volume_that_lies_otherwise_is_warned_of(cohort: tuple, tmp_path: Path) -> None:
    """From the file on disk, against a fingerprint as it is stored; one of before orientations were kept says nothing."""
    trained = ModalityFingerprint.model_validate_json(cohort[0]["MRI"].model_dump_json())
    older = ModalityFingerprint.model_validate_json(trained.model_dump_json(exclude={"orientations"}))
    assert (trained.orientations, older.orientations, cohort[0]["US"].orientations) == (["LPS"], [], [])
    write_volume(tmp_path / "a.nii.gz", smooth_noise(np.random.default_rng(0), (8, 24, 24)))
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.nii.gz")), "PIR")  # sagittal slices
    sitk.WriteImage(turned, str(tmp_path / "b.nii.gz"))

    def warnings(name: str, record: ModalityFingerprint) -> list[str]:
        found = inspect_case("N1", read_image([tmp_path / name] * 2), None, modality="MRI", trained=record)
        return [str(finding) for finding in found if finding.check == "orientation"]

    said = "MRI N1: the axes run otherwise than in the training images, and volumes are not turned; found PIR, expected LPS."
    assert (warnings("a.nii.gz", trained), warnings("b.nii.gz", trained), warnings("b.nii.gz", older)) == ([], [said], [])


@given(st.floats(0.5, 2), st.integers(0, 1), st.sampled_from(["shape", "spacing_mm"]))
def test_an_image_is_judged_by_its_range_alone(cohort: tuple, factor: float, axis: int, what: str) -> None:
    """Within 1.25 times the training range nothing is said, outside there is a warning; in every direction."""
    trained, images = cohort
    image = images["MRI"][0]
    values = list(getattr(image, what))
    values[axis] = values[axis] * factor
    spread = (trained["MRI"].size_vox if what == "shape" else trained["MRI"].spacing_mm)[axis]
    outside = not spread.minimum / 1.25 <= values[axis] <= spread.maximum * 1.25
    assert bool(check_image(replace(image, **{what: tuple(values)}), trained["MRI"])) == outside


def test_measuring_an_image(cohort: tuple) -> None:
    array = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    mask = np.zeros((4, 6), bool)
    mask[:2] = True
    found = measure_image(Volume(array, (1.0, 2.0)), mask)
    assert (found.shape, found.spacing_mm, found.finite, found.lesion_share) == ((4, 6), (1.0, 2.0), True, 0.5)
    assert found.channels[0] is not None
    assert found.channels[0].mean == 11.5
    array[0, 0, 0] = np.nan
    assert not measure_image(Volume(array), None).finite


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("made")
    with with_tiny_network():
        yield write_made_archive(root / "m.her2net", make_model(root))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Three new images of the made model's kind, one odd: N1 is large and without mask."""
    folder = tmp_path / "new"
    raw = write_dataset(tmp_path / "raw", n_patients=4, n_test=0)
    for kind, target in (("imagesTr/US", "US"), ("masksTr/US", "masks/US")):
        (folder / target).mkdir(parents=True)
        for i in (0, 2):
            shutil.copy(raw / kind / f"C00{i}.png", folder / target / f"N{i}.png")
    write_us_of(folder / "US/N1.png", (480, 640))
    return folder


def write_us_of(path: Path, size: tuple[int, int]) -> None:
    write_png(path, np.clip(smooth_noise(np.random.default_rng(5), size) / 4, 0, 255).astype(np.uint8))


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_warnings_are_printed_and_written(model_file: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (new / "US" / "forgotten.jpg").write_bytes(b"x")
    out = new.parent / "out"
    assert predict.main(["--model", str(model_file), "-i", str(new), "-o", str(out), "--quiet"]) == 0
    rows = read_csv(out / "warnings.csv")
    assert [(r["case_id"], r["modality"], r["check"]) for r in rows] == [
        ("forgotten.jpg", "US", "file-ignored"), ("N1", "US", "size"), ("N1", "US", "mask-missing"),
    ]  # fmt: skip
    assert rows[1]["found"] == "480 x 640"
    said = capsys.readouterr().err
    assert "Warning: 1 image with warnings and 1 other warning (file-ignored 1, size 1, mask-missing 1)" in said
    assert "US N1: no lesion mask, so the whole image is shown instead of the lesion" in said
    decisions = {(r["case_id"], r["model"]): r["warnings"] for r in read_csv(out / "decisions.csv")}
    assert decisions == {(f"N{i}", m): "2" if i == 1 else "0" for i in range(3) for m in ("US", "fusion")}
    for name in ("N1.png", "forgotten.jpg"):
        (new / "US" / name).unlink()
    assert predict.main(["--model", str(model_file), "-i", str(new), "-o", str(out), "--quiet"]) == 0
    assert read_csv(out / "warnings.csv") == [], "warnings of an earlier call do not stay"


def test_python_callers_are_warned_too(model_file: Path, new: Path) -> None:
    predictor = Predictor(model_file, device="cpu")
    with pytest.warns(UnlikeTrainingWarning, match=r"^1 image with warnings \(size 1, mask-missing 1\)"):
        predictor.predict(new, quiet=True)
    assert {finding.case_id for finding in predictor.findings} == {"N1"}


def test_images_that_make_no_sense_are_refused_all_at_once(
    model_file: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(new / "US/N0.png", np.full((48, 64), 7, np.uint8))
    (new / "US/N2.png").write_bytes(b"\x89PNG broken")
    assert predict.main(["--model", str(model_file), "-i", str(new), "-o", str(new.parent / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "2 of 3 images cannot be predicted" in said
    assert "US N0: every pixel of channel 0 has the same value" in said
    assert "N2.png" in said
    assert not (new.parent / "out").exists()


def test_a_volume_for_a_flat_model_is_refused(model_file: Path, tmp_path: Path) -> None:
    """The ending is not what counts: a model of flat NIfTI images is given a volume."""
    predictor = Predictor(model_file, device="cpu")
    section = predictor.plan.modalities["US"].model_copy(update={"file_ending": ".nii.gz"})
    predictor.plan = predictor.plan.model_copy(update={"modalities": {"US": section}})
    write_volume(tmp_path / "new/US/A.nii.gz", smooth_noise(np.random.default_rng(0), (8, 48, 64)))
    with pytest.raises(RawDataError, match="another number of axes than the training images; found 3D, expected 2D"):
        predictor.predict(tmp_path / "new", quiet=True)


def test_a_number_at_the_end_of_a_name_is_no_channel_of_a_single_channel_image(model_file: Path, new: Path) -> None:
    for path in [*new.glob("US/*.png"), *new.glob("masks/US/*.png")]:
        path.rename(path.with_name(path.name.replace("N", "BUSI_001")))
    with pytest.warns(UnlikeTrainingWarning):
        tables = Predictor(model_file, device="cpu").predict(new, quiet=True)
    assert tables["US"].case_ids == ("BUSI_0010", "BUSI_0011", "BUSI_0012")


def test_two_files_of_one_case_are_refused(model_file: Path, new: Path) -> None:
    shutil.copy(new / "US/N0.png", new / "US/N0_0000.png")
    with pytest.raises(RawDataError, match="the same channel of 'N0'"):
        Predictor(model_file, device="cpu").predict(new, quiet=True)


@pytest.mark.real
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real cohorts are not beside this checkout")
def test_real_images_of_the_same_source_rarely_warn_and_those_of_another_do() -> None:
    found = {}
    for name in ("Dataset101_BreastReal", "Dataset102_BreastUS"):
        dataset = read_dataset(SHARED_DATA / name)
        scan = scan_cases(dataset, n_workers=1, quiet=True)
        found[name] = (dataset, scan.find(), extract_fingerprint(dataset, scan))
    dataset, scans, fingerprint = found["Dataset101_BreastReal"]
    for name in ("US", "MRI"):
        warned = [bool(check_image(as_measured(scans[c.case_id].images[name]), fingerprint.modalities[name])) for c in dataset.test]
        assert np.mean(warned) <= 0.05
    other = found["Dataset102_BreastUS"][2].modalities["US"]
    assert all(check_image(as_measured(scans[c.case_id].images["US"]), other) for c in dataset.train)
