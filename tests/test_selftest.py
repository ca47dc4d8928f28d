"""The self-test finds an outline that gives the label away, finds nothing where nothing is, and notices a leak."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_factory import write_png, write_table
from small_run import plan_options

from her2net import pipeline
from her2net.evaluate.estimate import Estimate
from her2net.project import Project, load_project
from her2net.raw.dataset import Case
from her2net.raw.phantoms import make_us
from her2net.selftest import probes
from her2net.selftest.columns import can_be_judged, metadata_columns, predict_from_columns, size_columns
from her2net.selftest.inputs import background_only, choose_region, fits, outline_only, permute_labels, shrink
from her2net.selftest.record import SelfTest, word_verdict
from her2net.train.data import FoldCases, select_fold
from her2net.train.fold import TrainOptions

N_CASES = 28


def write_cohort(folder: Path) -> None:
    """Write two modalities of one pure-noise cohort: `US` is clean; in `BAD` benign outlines are drawn as rectangles."""
    rng = np.random.default_rng(5)
    rows: list[list[object]] = [["case_id", "label", "patient_id", "site"]]
    for i in range(N_CASES):
        phantom, label = make_us(0.0, (80, 96), rng), i % 2
        box = np.argwhere(phantom.mask)
        (top, left), (bottom, right) = box.min(axis=0), box.max(axis=0) + 1
        drawn = phantom.mask.copy()
        if label == 0:
            drawn[top:bottom, left:right] = 1
        for modality, mask in (("US", phantom.mask), ("BAD", drawn)):
            write_png(folder / f"imagesTr/{modality}/C{i:03d}.png", phantom.image)
            write_png(folder / f"masksTr/{modality}/C{i:03d}.png", mask)
        rows.append([f"C{i:03d}", label, f"P{i:03d}", "north" if label else "south"])
    write_table(folder / "cases.csv", rows)
    channel = {"channels": {"0": "B-mode"}, "file_ending": ".png"}
    spec = {"name": "Drawn", "labels": {"benign": 0, "malignant": 1}, "site": "site",
            "modalities": {"US": channel, "BAD": channel}}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("selftest")
    paths = make_paths(root)
    write_cohort(paths.raw)
    own = root / "folds.json"
    patients = [f"P{i:03d}" for i in range(N_CASES)]
    own.write_text(json.dumps([patients[: N_CASES // 2], patients[N_CASES // 2 :]]))
    pipeline.plan(paths, plan_options(root, splits=str(own)))
    return load_project(paths)


@pytest.fixture(scope="module")
def tested(project: Project) -> SelfTest:
    return pipeline.selftest(project, n_permutations=1, device="cpu", quiet=True)


def row_of(record: SelfTest, modality: str, probe: str):  # type: ignore[no-untyped-def]
    return next(row for row in record.results if (row.modality, row.probe) == (modality, probe))


def test_a_planted_outline_is_found_and_a_clean_cohort_gives_nothing(tested: SelfTest) -> None:
    planted, clean = row_of(tested, "BAD", "outline"), row_of(tested, "US", "outline")
    assert planted.auc > 0.9
    assert planted.verdict.startswith("The outline alone gives AUC")
    assert clean.ci_low < 0.5
    assert "tells nothing" in clean.verdict
    for modality in ("US", "BAD"):
        assert row_of(tested, modality, "background").ci_low < 0.5
        assert row_of(tested, modality, "permuted labels").ci_low < 0.5
        site = row_of(tested, modality, "metadata")
        assert site.auc > 0.95
        assert "site" in site.hint
    assert not tested.leak


def test_it_leaves_its_tables_and_no_networks(project: Project, tested: SelfTest) -> None:
    folder = project.paths.selftest
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    probes = ("image", "outline", "background", "lesion-size", "metadata", "permuted-labels-0")
    assert names == {"selftest.json", "selftest.csv", *(f"predictions/{m}_{p}.csv" for m in ("US", "BAD") for p in probes)}
    rows = list(csv.DictReader((folder / "selftest.csv").open(encoding="utf-8")))
    assert [row["probe"] for row in rows] == [row.probe for row in tested.results]
    assert pipeline.selftest(project, n_permutations=1, device="cpu", quiet=True) == tested  # read, not made again


def test_training_on_the_held_out_cases_is_noticed(
    project: Project, tested: SelfTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(*arguments) -> FoldCases:  # type: ignore[no-untyped-def]
        found = select_fold(*arguments)
        return FoldCases(found.training + found.held_out, found.held_out)

    monkeypatch.setattr(probes, "select_fold", leaky)
    modality = replace(probes.prepare_modality(project, "US", TrainOptions(device="cpu", quiet=True), probes.MIN_VOX), work=tmp_path)
    row = probes._permuted(modality, 1, 0.5)
    assert row.auc > 0.8
    assert row.verdict.startswith("LEAK")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5), offset=st.floats(-3, 3))
def test_surroundings_do_not_know_what_was_in_the_hole(seed: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, 1, 40, 40)).astype(np.float32)
    masks = np.zeros((2, 40, 40), np.float32)
    masks[0, 12:22, 10:28], masks[1, 16:30, 18:24] = 1, 1
    region = choose_region(masks, (32, 32))
    assert region is not None
    changed = images.copy()
    changed[:, 0][masks > 0] = rng.normal(5, 3, size=int(masks.sum()))  # another lesion ...
    changed = changed * scale + offset  # ... changes what the z-score of the crop did to the surroundings
    one, other = background_only(images, masks, region), background_only(changed, masks, region)
    np.testing.assert_allclose(one.astype(float), other.astype(float), atol=0.01)
    holes = (one == 0).sum(axis=(1, 2, 3))
    assert holes[0] == holes[1]  # of one size, whatever the outline


def test_a_lesion_that_reaches_out_of_the_hole_is_left_out() -> None:
    masks = np.zeros((40, 40, 40), np.float32)
    masks[:, 12:24, 10:28] = 1
    masks[0, 12:38] = 1
    region = choose_region(masks, (32, 32))
    assert region is not None
    assert [fits(mask, region, (32, 32)) for mask in masks] == [False] + [True] * 39


def test_lesions_that_fill_the_crop_leave_no_surroundings() -> None:
    assert choose_region(np.ones((1, 32, 32), np.float32), (32, 32)) is None


def test_shrink_averages_blocks() -> None:
    array = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    small = shrink(array, (2, 3))
    assert small.shape == (2, 2, 2)
    assert small[0, 0, 0] == array[0, :2, :3].mean()
    assert outline_only(np.ones((1, 4, 4)), 3).shape == (1, 3, 4, 4)


def case_of(case_id: str, patient: str, label: int) -> Case:
    return Case(case_id, patient, "train", label, None, {}, {}, {})


@given(labels=st.lists(st.integers(0, 2), min_size=6, max_size=30), seed=st.integers(0, 99))
def test_permuted_labels_keep_the_classes_of_each_fold(labels: list[int], seed: int) -> None:
    cases = [case_of(f"c{i}", f"p{i}", label) for i, label in enumerate(labels)]
    folds = [[case.patient_id for case in cases[k::3]] for k in range(3)]
    permuted = permute_labels(cases, folds, np.random.default_rng(seed))
    for fold in folds:
        assert sorted(c.label for c in cases if c.patient_id in fold) == sorted(
            c.label for c in permuted if c.patient_id in fold
        )


def test_permuted_labels_of_a_patient_come_from_one_patient() -> None:
    cases = [case_of(f"c{i}", f"p{i // 2}", (i // 2) % 2) for i in range(20)]
    permuted = permute_labels(cases, [[f"p{i}" for i in range(10)]], np.random.default_rng(0))
    assert all(permuted[i].label == permuted[i + 1].label for i in range(0, 20, 2))
    assert [c.label for c in permuted] != [c.label for c in cases]


def test_brightness_outside_the_lesion_is_that_of_the_pixels(project: Project) -> None:
    cases = project.training("US")[:3]
    scans = {entry.case_id: entry.images["US"] for entry in project.scan.cases}
    columns = metadata_columns(project.training("US"), [scans[c.case_id] for c in project.training("US")], "US")
    for i, case in enumerate(cases):
        pixels = np.asarray(Image.open(case.images["US"][0])).astype(float)
        outside = pixels[np.asarray(Image.open(case.masks["US"])) == 0]
        assert columns["mean intensity outside the lesion"][i] == pytest.approx(outside.mean())
        assert columns["SD of intensity outside the lesion"][i] == pytest.approx(outside.std())


def test_columns_predict_held_out_patients_alone(project: Project) -> None:
    cases = project.training("US")
    scans = {entry.case_id: entry.images["US"] for entry in project.scan.cases}
    columns = size_columns([scans[case.case_id] for case in cases])
    folds = project.splits.folds(project.plan.splits)
    table = predict_from_columns(cases, columns, folds, 2, seed=0)
    flipped = tuple(replace(c, label=1 - c.label) if c.patient_id in folds[0] else c for c in cases)
    again = predict_from_columns(flipped, columns, folds, 2, seed=0)
    first = np.isin(table.patient_ids, folds[0])
    np.testing.assert_array_equal(table.probs[first], again.probs[first])  # their own labels play no part
    assert not np.array_equal(table.probs[~first], again.probs[~first])


def test_masks_of_one_class_alone_leave_their_probes_out_and_say_so(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.paths.roots.raw.parent, tmp_path / "copy")
    paths = make_paths(tmp_path / "copy", project.paths.folder)
    for case in project.dataset.train:
        if case.label == 0:
            for name, path in case.masks.items():
                (paths.raw / "masksTr" / name / path.name).unlink()
    pipeline.plan(paths, plan_options(tmp_path / "copy", splits=str(tmp_path / "copy" / "folds.json")))
    record = pipeline.selftest(load_project(paths), n_permutations=1, device="cpu", quiet=True)
    for modality in ("US", "BAD"):
        assert "lesion size" not in {row.probe for row in record.results if row.modality == modality}
        assert record.skipped[f"{modality} lesion size"].startswith("too few cases")
        assert row_of(record, modality, "metadata").auc > 0.95


def test_what_can_be_judged() -> None:
    cases = [case_of(f"c{i}", f"p{i}", i % 2) for i in range(4)]
    assert can_be_judged(cases, [["p0", "p1"], ["p2", "p3"]], 2)
    assert not can_be_judged(cases, [["p0", "p1", "p2", "p3"], []], 2), "nobody is left to learn from"
    assert not can_be_judged(cases[::2], [["p0"], ["p2"]], 2), "one class only"


def test_more_permutations_narrow_the_interval() -> None:
    one = probes.average_permutations([Estimate(0.55, 0.35, 0.75, "")])
    four = probes.average_permutations([Estimate(0.55, 0.35, 0.75, "")] * 4)
    assert one.ci_low < 0.35  # 99 %, not 95 %
    assert four.ci_high - four.ci_low == pytest.approx((one.ci_high - one.ci_low) / 2)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.99, 0.97, 1.0, 0.90), "no more"),
        ((0.65, 0.60, 0.70, 0.90), "38% of what the image"),
        ((0.55, 0.48, 0.62, 0.90), "tells nothing"),
        ((0.60, 0.55, 0.65, 0.48), "no more"),
    ],
)
def test_verdicts_in_words(figures: tuple[float, float, float, float], expected: str) -> None:
    assert expected in word_verdict("outline", *figures)


def test_verdicts_of_several_things_are_in_the_plural() -> None:
    for probe in ("background", "lesion size", "metadata"):
        assert " tell nothing that shows" in word_verdict(probe, 0.55, 0.48, 0.62, 0.90)
        assert " give AUC 0.99 (0.97 to 1.00); the image gives 0.90" in word_verdict(probe, 0.99, 0.97, 1.0, 0.90)
        assert " give AUC 0.65" in word_verdict(probe, 0.65, 0.60, 0.70, 0.90)
