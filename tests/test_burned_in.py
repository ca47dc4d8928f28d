"""Calipers, letters, rulers and colours are found where they are drawn, and nowhere in speckle; pixel spacing from a sidecar."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA
from PIL import Image, ImageDraw
from raw_factory import box_mask, write_dataset, write_png

from her2net.artefact import digest_json
from her2net.errors import RawDataError
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan, PreprocessingPlan
from her2net.preprocess.prepare import prepare_case
from her2net.raw.burned_in import BurnedIn, find_burned_in, inpaint_marks
from her2net.raw.images import read_image
from her2net.raw.phantoms import make_us
from her2net.raw.verify import verify_folder


def picture(seed: int = 0, size: tuple[int, int] = (300, 400)) -> Image.Image:
    """A simulated picture at the gain of a real one, which leaves white to what is drawn on it."""
    return Image.fromarray((0.6 * make_us(0.0, size, np.random.default_rng(seed)).image).astype(np.uint8))


def draw_cross(image: Image.Image, x: int, y: int, arm: int = 6) -> None:
    pen = ImageDraw.Draw(image)
    fill: object = 255 if image.mode == "L" else (255, 255, 255)
    pen.line((x - arm, y, x + arm, y), fill=fill)
    pen.line((x, y - arm, x, y + arm), fill=fill)


def find(image: Image.Image) -> BurnedIn:
    grey = np.asarray(image.convert("L"))
    return find_burned_in(grey, np.asarray(image) if image.mode == "RGB" else None)


@pytest.mark.parametrize("seed", range(6))
def test_speckle_holds_no_marks(seed: int) -> None:
    assert find(picture(seed)).kinds == []
    assert find(Image.fromarray(make_us(0.0, (300, 400), np.random.default_rng(seed)).image)).kinds == []


def test_calipers_are_counted_and_placed() -> None:
    image = picture()
    for x, y in ((100, 120), (180, 125), (140, 90)):
        draw_cross(image, x, y)
    found = find(image)
    assert found.calipers == 3
    assert {((left + right) // 2, (top + bottom) // 2) for top, left, bottom, right in found.boxes} == {
        (100, 120), (180, 125), (140, 90)
    }  # fmt: skip
    assert found.touches("calipers", (slice(110, 140), slice(90, 200)))
    assert not found.touches("calipers", (slice(200, 240), slice(90, 200)))
    assert not found.touches("text", (slice(0, 300), slice(0, 400)))


def test_text_is_found_and_two_letters_are_let_pass() -> None:
    image = picture()
    ImageDraw.Draw(image).text((60, 240), "RT AXILLA", fill=255, font_size=16)
    assert find(image).letters >= 6
    assert find(image).kinds == ["text"]
    image = picture()
    ImageDraw.Draw(image).text((60, 240), "LT", fill=255, font_size=16)
    assert find(image).kinds == []


def test_ticks_of_a_ruler_are_found() -> None:
    image = picture()
    pen = ImageDraw.Draw(image)
    for y in range(20, 280, 25):
        pen.line((image.width - 12, y, image.width - 5, y), fill=255, width=2)
    assert find(image).ticks >= 8


def test_a_coloured_box_is_found_and_a_tint_is_not() -> None:
    image = picture().convert("RGB")
    assert find(image).kinds == []
    ImageDraw.Draw(image).rectangle((100, 100, 150, 150), fill=(200, 30, 30))
    assert find(image).kinds == ["colour"]
    assert find(image).colour == pytest.approx(51 * 51 / (image.width * image.height))


def test_verify_notes_marks_and_warns_where_they_go_with_the_class(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset001_Marked", n_patients=24, n_test=0)
    for i in range(24):
        image = picture(100 + i)
        if i % 2:
            draw_cross(image, 100, 120)
        write_png(folder / f"imagesTr/US/C{i:03d}.png", np.asarray(image))
        write_png(folder / f"masksTr/US/C{i:03d}.png", box_mask(np.asarray(image).shape, (90, 80), (140, 130)))
    before = (folder / "imagesTr/US/C001.png").read_bytes()
    _, _, found = verify_folder(folder, n_workers=1, quiet=True)
    (note,) = [item for item in found.problems if item.check == "burned-in"]
    assert (note.severity, note.where) == ("note", "modality US")
    assert note.message.startswith("calipers burned into 12 of 24 images: C001, C003, C005, ")
    assert "C023; near the lesion in 12. " in note.message
    (warning,) = [item for item in found.problems if item.check == "burned-in-class"]
    assert "calipers burned into the images of 0 of 12 negative, 12 of 12 positive" in warning.message
    assert (folder / "imagesTr/US/C001.png").read_bytes() == before


def test_colour_pictures_are_one_note(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset001_Doppler", n_patients=24, n_test=2)
    for part, i in (*(("Tr", i) for i in range(24)), ("Ts", 25)):
        image = picture(100 + i).convert("RGB")
        ImageDraw.Draw(image).rectangle((100, 100, 150, 150), fill=(200, 30, 30))
        write_png(folder / f"images{part}/US/C{i:03d}.png", np.asarray(image))
        (folder / f"masks{part}/US/C{i:03d}.png").unlink()
    _, _, found = verify_folder(folder, n_workers=1, quiet=True)
    (note,) = [item for item in found.problems if item.check == "burned-in"]
    assert note.where == "modality US"
    assert note.message.startswith("colour burned into 25 of 26 images: C000, C001, ")
    assert "C019 and 5 more. " in note.message


def test_pixel_spacing_comes_from_a_sidecar(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset001_Tiny")
    (folder / "imagesTr/US/C000.json").write_text(json.dumps({"spacing_mm": [0.07, 0.08], "Manufacturer": "any"}))
    (folder / "imagesTr/US/stray.json").write_text(json.dumps({"spacing_mm": [0.07, 0.08]}))
    _, scan, found = verify_folder(folder, n_workers=1, quiet=True)
    assert scan is not None
    assert [item.check for item in found.problems if ".json" in item.where] == ["sidecar-without-row"]
    images = {case.case_id: case.images["US"] for case in scan.cases}
    assert images["C000"].spacing_mm == [0.07, 0.08]
    assert images["C001"].spacing_mm is None
    (folder / "imagesTr/US/C000.json").write_text(json.dumps({"spacing_mm": [0.09, 0.09]}))
    _, again, _ = verify_folder(folder, n_workers=1, quiet=True, known=scan)
    assert again is not None
    assert again.find()["C000"].images["US"].spacing_mm == [0.09, 0.09]
    assert again.find()["C000"].images["US"].source_digest != images["C000"].source_digest


@pytest.mark.parametrize("content", ['{"spacing_mm": [0.07]}', '{"spacing_mm": [0, 0.07]}', '{"spacing": 0.07}', "{", "[]"])
def test_a_sidecar_that_says_nothing_is_refused(tmp_path: Path, content: str) -> None:
    write_png(tmp_path / "a.png", np.zeros((20, 20), np.uint8))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RawDataError, match=r"a\.json"):
        read_image([tmp_path / "a.png"])


@pytest.mark.real
def test_text_on_real_images_is_found() -> None:
    """Counted by eye on the first 130 images: nothing is found that is not there; marks of one or two letters are missed."""
    folder = SHARED_DATA / "Dataset102_BreastUS" / "imagesTr" / "US"
    if not folder.is_dir():
        pytest.skip("no real data here")
    kinds = {name: find(Image.open(folder / f"{name}.png")).kinds for name in ("BU0002", "BU0017", "BU0009", "BU0001")}
    assert kinds == {"BU0002": ["calipers"], "BU0017": ["text"], "BU0009": ["calipers", "text"], "BU0001": []}


def test_inpainting_takes_the_marks_away_and_leaves_the_rest() -> None:
    clean, marked = picture(), picture()
    for x, y in ((100, 120), (180, 125)):
        draw_cross(marked, x, y)
    ImageDraw.Draw(marked).text((60, 240), "RT AXILLA", fill=255, font_size=16)
    before, truth = np.asarray(marked), np.asarray(clean)
    after = inpaint_marks(before)
    assert find(Image.fromarray(after)).kinds == []
    touched = after != before
    assert touched.mean() < 0.03
    drawn = before != truth
    assert np.abs(after[drawn].astype(float) - truth[drawn]).mean() < 0.25 * np.abs(before[drawn].astype(float) - truth[drawn]).mean()
    assert inpaint_marks(truth) is truth  # nothing to do


def test_the_plan_asks_for_inpainting_and_only_then_pictures_change(tmp_path: Path) -> None:
    image = picture()
    draw_cross(image, 200, 150)
    image.save(tmp_path / "a.png")
    keep = PreprocessingPlan(margin=0.3, margin_unit="lesion", aspect="keep", statistics="image", joint_channels=True,
                             input_vox=[300, 400], stored_vox=[300, 400])  # fmt: skip
    fill = keep.model_copy(update={"burned_in": "inpaint"})
    a, b = (prepare_case([tmp_path / "a.png"], None, plan).image for plan in (keep, fill))
    assert b.max() < a.max()
    assert keep.digest != fill.digest
    values = keep.model_dump(mode="json")
    del values["burned_in"], values["derived_channels"]
    assert keep.digest == digest_json(values)  # a cache made before the option existed stays fresh


def test_volumes_cannot_be_inpainted(done: DatasetPaths) -> None:
    section = Plan.load(done.plan).modalities["MRI"].model_dump()
    section["preprocessing"]["burned_in"] = "inpaint"
    with pytest.raises(ValueError, match="flat pictures only"):
        ModalityPlan.model_validate(section)
