"""Contour robustness: how masks are changed, and what is said of predictions that move with them."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from report_page import Page

from her2net import pipeline
from her2net.cli import explain as cli
from her2net.evaluate.evaluation import Options
from her2net.explain.contour_record import describe_contours, read_contours
from her2net.explain.contours import change_mask, dice
from her2net.explain.subjects import ExplainOptions
from her2net.paths import DatasetPaths
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.report.gallery import collect_contours

QUIET = ExplainOptions(quiet=True, device="cpu")


def disc(size: int = 64, radius: float = 15, centre: tuple[float, float] = (30, 34)) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return np.hypot(y - centre[0], x - centre[1]) < radius


def test_masks_change_by_a_tenth_of_the_lesion() -> None:
    mask = disc()
    changed = dict(change_mask(mask))
    assert list(changed) == ["eroded", "dilated", "shifted up", "shifted down", "shifted left", "shifted right"]
    radius = lambda m: np.sqrt(m.sum() / np.pi)
    assert radius(changed["eroded"]) == pytest.approx(radius(mask) - 3, abs=0.7)
    assert radius(changed["dilated"]) == pytest.approx(radius(mask) + 3, abs=0.7)
    np.testing.assert_array_equal(changed["shifted down"], disc(centre=(33, 34)))
    np.testing.assert_array_equal(changed["shifted left"], disc(centre=(30, 31)))
    assert all(0.7 < dice(mask, other) < 0.95 for other in changed.values())


def test_volumes_change_slice_by_slice_and_along_the_slices() -> None:
    mask = np.zeros((6, 64, 64), bool)
    mask[2:4] = disc()
    changed = dict(change_mask(mask))
    for name in ("eroded", "dilated"):
        np.testing.assert_array_equal(changed[name].any(axis=(1, 2)), mask.any(axis=(1, 2)))
    np.testing.assert_array_equal(changed["a slice forth"][3:5], mask[2:4])
    assert changed["a slice back"][1].any()


def test_what_leaves_the_image_is_gone_and_nothing_is_left_of_a_dot() -> None:
    corner = disc(centre=(10, 32), radius=12)
    up = dict(change_mask(corner))["shifted up"]
    assert up.sum() < corner.sum()
    assert not up[-5:].any()
    dot = np.zeros((16, 16), bool)
    dot[8, 8] = True
    assert "eroded" not in dict(change_mask(dot))


def test_contours_reach_the_report(copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    project = load_project(copied)
    record = pipeline.contours(project, "MRI", QUIET)
    oof = read_predictions(copied.model("MRI") / "oof.csv")
    rows = list(csv.DictReader((copied.explain("MRI") / "oof-contours.csv").open()))
    drawn = {row["case_id"]: row for row in rows if row["change"] == "unchanged"}
    assert set(drawn) == set(oof.case_ids)
    given = dict(zip(oof.case_ids, oof.probs[:, 1], strict=True))
    for case_id, row in drawn.items():  # the prediction with the mask as drawn is the out-of-fold prediction
        assert float(row["probability"]) == pytest.approx(given[case_id], abs=2e-3)
        assert (row["flipped"], float(row["dice"])) == ("0", 1.0)
    flips = [int(row["flipped"]) for row in rows if row["change"] != "unchanged"]
    assert record.flip_rate.value == pytest.approx(np.mean(flips), abs=0.02)
    assert record.changes[0].name == "unchanged"
    assert record.changes[0].auc.value is not None
    (found,) = read_contours(project, "MRI")
    assert (found.record, found.stale) == (record, ())
    page = pipeline.report(project).read_text(encoding="utf-8")
    assert "Would another outline change the answer?" in page
    assert "MRI: with masks eroded, dilated or shifted" in describe_contours(record)
    assert (copied.report.parent / "figures" / "contours.svg").exists()
    given_rule = Options(rule="given", parameter=0.01)  # other decisions: these flips are not theirs
    monkeypatch.setattr("her2net.explain.contour_record.recorded_options", lambda paths: given_rule)
    assert read_contours(project, "MRI")[0].stale == ("threshold",)
    text = " ".join(Page(pipeline.report(project).read_text(encoding="utf-8")).all("body")[0].text.split())
    assert "Would another outline change the answer?" not in text
    assert "explain/MRI/oof-contours.json" in text  # the digests still hold it
    assert (
        "MRI/oof-contours.json, predictions with other outlines, is not shown: its decisions are those of another threshold rule "
        "than the evaluation's. Run her2net_explain MRI --contours -d Dataset001_Small again."
    ) in text


def test_stale_contours_are_named_with_the_command_that_makes_them(copied: DatasetPaths) -> None:
    project = load_project(copied)
    pipeline.contours(project, "MRI", replace(QUIET, cohort="test", fold=1))
    assert collect_contours(project)[1] == []
    path = copied.model("MRI") / "oof.csv"
    path.write_text(path.read_text().replace("0.", "0.0", 1))
    assert collect_contours(project) == ([], [
        "MRI/test-contours-fold1.json, predictions with other outlines, is not shown: oof.csv changed since. "
        "Run her2net_explain MRI --contours --cohort test --fold 1 -d Dataset001_Small again."
    ])  # fmt: skip


def test_test_cases_keep_their_labels_sealed(copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = copied.test_openings.read_text()
    record = pipeline.contours(load_project(copied), "MRI", replace(QUIET, cohort="test"))
    assert all(change.auc.value is None for change in record.changes)
    assert copied.test_openings.read_text() == before
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(copied.roots, name)))
    assert cli.main(["MRI", "--contours", "--cohort", "test", "--fold", "9", "--quiet"]) == 2
