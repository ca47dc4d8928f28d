"""`her2net_explain` as a user meets it: what it leaves, who is explained by whom, and whether maps find a planted sign."""

from __future__ import annotations

import csv
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_run, make_paths
from PIL import Image
from small_run import TRAIN, plan_options

from her2net import pipeline
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.explain.measure import METRICS
from her2net.explain.record import ExplainRecord, read_galleries
from her2net.explain.subjects import ExplainOptions
from her2net.inference import load_network
from her2net.networks.build import network_spec
from her2net.paths import DatasetPaths
from her2net.plan.stage import plan_dataset
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.raw.images import compare_grids, read_image, read_mask
from her2net.raw.synthetic import make_synthetic_dataset

QUIET = ExplainOptions(quiet=True)


@pytest.fixture(scope="module")
def copied(small_run: DatasetPaths, tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """A copy of the finished run to explain; each test reads sets of its own."""
    return copy_run(small_run, tmp_path_factory.mktemp("explain") / "run", without="explain")


def call(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(paths.roots, name)))
    return importlib.import_module("her2net.cli.explain").main([*arguments, "--quiet", "--device", "cpu"])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_call_leaves_exactly_these_files(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oof = read_predictions(copied.model("MRI") / "oof.csv")
    chosen = [oof.case_ids[0], oof.case_ids[-1]]
    for _ in range(2):  # the second time replaces the first
        assert call(copied, monkeypatch, "MRI", "--cases", *chosen) == 0
    folder = copied.explain("MRI") / "oof-gradcam-predicted"
    expected = {"explain.json", "metrics.csv", "contact_sheet.png"}
    expected |= {f"{kind}/{c}{end}" for kind, end in (("overlays", ".png"), ("maps", ".nii.gz")) for c in chosen}
    expected |= {f"slices/{c}_{k}.jpg" for c in chosen for k in range(8)}  # the volumes have eight slices
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == expected
    said = capsys.readouterr().out
    assert all(name in said for name in METRICS)
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_each_case_is_explained_by_the_fold_that_never_saw_it(copied: DatasetPaths) -> None:
    project = load_project(copied)
    oof = read_predictions(copied.model("US") / "oof.csv")
    chosen = oof.case_ids[:5]
    record = pipeline.explain(project, "US", replace(QUIET, target=1, case_ids=chosen))
    for case in record.cases:
        row = oof.case_ids.index(case.case_id)
        assert case.folds == [int(oof.folds[row])]
        assert case.patient_id in project.splits.folds(project.plan.splits)[case.folds[0]]
        assert case.probability == pytest.approx(oof.probs[row, 1], abs=1e-5)
    table = rows_of(copied.explain("US") / "oof-gradcam-class1" / "metrics.csv")
    assert [row["case_id"] for row in table] == sorted(chosen)
    assert {row["target"] for row in table} == {"1"}
    assert [float(row["probability"]) for row in table] == [case.probability for case in record.cases]


def test_test_cases_are_explained_by_all_folds_and_their_labels_stay_sealed(copied: DatasetPaths) -> None:
    openings = copied.test_openings.read_text()
    known = read_predictions(copied.model("US") / "test.csv")
    options = replace(QUIET, cohort="test", target=0, case_ids=known.case_ids[:2])
    record = pipeline.explain(load_project(copied), "US", options)
    n_folds = load_project(copied).plan.splits.n_folds
    for case in record.cases:
        assert (case.folds, case.label) == (list(range(n_folds)), None)
        assert case.probability == pytest.approx(known.probs[known.case_ids.index(case.case_id), 0], abs=1e-5)
    alone = pipeline.explain(load_project(copied), "US", replace(options, fold=1))
    assert {tuple(case.folds) for case in alone.cases} == {(1,)}
    assert copied.test_openings.read_text() == openings


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_a_map_lies_on_its_original_volume(copied: DatasetPaths, method: str) -> None:
    project = load_project(copied)
    case = project.training("MRI")[0]
    record = pipeline.explain(project, "MRI", replace(QUIET, method=method, case_ids=(case.case_id,)))
    folder = copied.explain("MRI") / f"oof-{method}-predicted"
    image, found = read_image(case.images["MRI"]), read_image([folder / record.cases[0].map])
    heat = found.array[0]
    assert not compare_grids(replace(found, array=heat), image)
    mask = read_mask(case.masks["MRI"], like=image).array
    figures = record.cases[0].figures
    if heat.any():
        assert heat.max() == 1
        assert figures["energy_inside"] == pytest.approx(heat[mask].sum() / heat.sum(), rel=1e-5)
    assert heat.min() >= 0
    assert figures["mask_share"] > mask.mean()


def test_deep_features_are_what_the_last_layer_turns_into_probabilities(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert call(copied, monkeypatch, "US", "--features") == 0
    table = rows_of(copied.explain("US") / "oof-features.csv")
    oof = read_predictions(copied.model("US") / "oof.csv")
    assert tuple(row["case_id"] for row in table) == oof.case_ids
    assert tuple(row["fold"] for row in table) == oof.folds
    project = load_project(copied)
    section = project.plan.modalities["US"]
    for fold in range(project.plan.splits.n_folds):
        network = load_network(copied, section, "US", fold, "cpu")
        last = network.get_submodule(network_spec(section.training.network).classifier)
        own = [i for i, row in enumerate(table) if row["fold"] == str(fold)]
        values = [[float(v) for k, v in table[i].items() if k.startswith("feature_")] for i in own]
        with torch.inference_mode():
            probs = last(torch.tensor(values, dtype=torch.float32)).double().softmax(1).numpy()
        assert np.abs(probs - oof.probs[own]).max() < 1e-4


def test_the_gallery_shows_what_is_there_and_says_when_it_is_stale(small_run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(small_run, tmp_path / "run", without="explain")
    assert read_galleries(load_project(paths), "US") == []
    case = load_project(paths).training("US")[0]
    pipeline.explain(load_project(paths), "US", replace(QUIET, case_ids=(case.case_id,)))
    (gallery,) = read_galleries(load_project(paths), "US")
    (item,) = gallery.items
    assert gallery.stale == ()
    assert item.overlay.exists()
    assert item.map.exists()
    assert item.label_name == load_project(paths).plan.class_names[case.label]
    assert set(item.figures) == set(METRICS)
    fold = gallery.record.cases[0].folds[0]
    pipeline.train(load_project(paths), "US", fold, replace(TRAIN, epochs=3))
    assert read_galleries(load_project(paths), "US")[0].stale == ("folds",)
    item.overlay.unlink()
    with pytest.raises(MissingArtefactError, match="her2net_explain"):
        read_galleries(load_project(paths), "US")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("US", "--class", "maybe"), "negative (0), positive (1)"),
        (("US", "--cases", "NOBODY"), "NOBODY"),
        (("US", "--method", "gradcam++"), "--method gradcam"),
        (("XR",), "US, MRI"),
        (("US", "--fold", "9"), "0 to 3"),
    ],
)
def test_a_wrong_call_is_one_message_and_writes_nothing(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], named: str,
) -> None:  # fmt: skip
    before = {p: p.stat().st_mtime_ns for p in copied.results.rglob("*")}
    assert call(copied, monkeypatch, *arguments) == 2
    assert named in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in copied.results.rglob("*")} == before


def test_untrained_and_stale_folds_are_refused(small_run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(small_run, tmp_path / "run", without="explain")
    (paths.fold("US", 2) / "run.json").unlink()
    with pytest.raises(MissingArtefactError, match=r"her2net_train US 2.*--fold"):
        pipeline.explain(load_project(paths), "US", QUIET)
    text = json.loads(paths.plan.read_text())
    text["modalities"]["MRI"]["training"]["loss_weights"] = [0.9, 1.1]
    paths.plan.write_text(json.dumps(text))
    with pytest.raises(StaleArtefactError, match="her2net_train MRI 0"):
        pipeline.explain(load_project(paths), "MRI", QUIET)
    assert not paths.explain("US").exists()
    assert not paths.explain("MRI").exists()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """A cohort with a strong sign inside the lesion, and one fold that has learned it."""
    root = tmp_path_factory.mktemp("learned")
    paths = make_paths(root)
    make_synthetic_dataset(paths.raw, n_train=40, n_test=0, effect=3.0, us_size=(96, 112), mri_size=(8, 24, 24))
    description = json.loads((paths.raw / "dataset.json").read_text())
    del description["modalities"]["MRI"]
    (paths.raw / "dataset.json").write_text(json.dumps(description))
    for kind in ("images", "masks"):
        for path in (paths.raw / f"{kind}Tr" / "MRI").iterdir():
            path.unlink()
        (paths.raw / f"{kind}Tr" / "MRI").rmdir()
    ids = {p.stem for p in (paths.raw / "imagesTr" / "US").iterdir()}
    lines = (paths.raw / "cases.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if line.split(",")[0] in ids]
    (paths.raw / "cases.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    plan_dataset(paths, plan_options(root))
    pipeline.train(load_project(paths), "US", 0, replace(TRAIN, epochs=20))
    return paths


def test_the_map_finds_the_planted_sign(learned: DatasetPaths) -> None:
    """Every pixel that depends on the sign lies inside the lesion: so must the map, clearly more than its share.

    Some maps are empty: of cases in which no place speaks for the class more than the average case does.
    """
    record: ExplainRecord = pipeline.explain(load_project(learned), "US", replace(QUIET, fold=0))
    summary = record.summary
    assert summary["energy_inside"].n >= 0.5 * len(record.cases)
    assert summary["energy_inside"].value > 2 * summary["mask_share"].value
    assert summary["pointing"].value > summary["mask_share"].value
    assert summary["insertion_auc"].value > summary["deletion_auc"].value
    assert summary["randomised_abs_rho"].value < 0.8


def test_occlusion_finds_the_planted_sign_where_there_is_one(learned: DatasetPaths) -> None:
    """The sign of class 1 is a bright core: hiding it has to cost. That of class 0 is that there is none, and cannot be hidden."""
    record: ExplainRecord = pipeline.explain(load_project(learned), "US", replace(QUIET, method="occlusion", fold=0))
    shown = [case.figures for case in record.cases if case.target == 1 and case.figures["energy_inside"] is not None]
    assert len(shown) >= 3
    energy, share, pointing = (np.mean([f[name] for f in shown]) for name in ("energy_inside", "mask_share", "pointing"))
    assert energy > 2 * share
    assert pointing > 0.7
