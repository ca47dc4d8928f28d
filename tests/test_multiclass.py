"""Three ordered classes through every stage, with derived channels in the MRI: HER2-zero, low and positive."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_run, make_paths
from pydantic import ValidationError
from raw_factory import read_rows, spec_of, write_table
from small_run import TRAIN, plan_options

from her2net import pipeline, status
from her2net.archive.card import Training, write_card
from her2net.archive.licence import read_licence
from her2net.cli import evaluate as evaluate_command
from her2net.cli import report as report_command
from her2net.evaluate.evaluation import Evaluation, format_summary, recorded_options
from her2net.fuse.stage import FusionRecord
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.predict import Predictor, write_tables
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.raw.spec import DatasetSpec
from her2net.raw.synthetic import SyntheticTruth, make_synthetic_dataset
from her2net.trained import load_trained

CLASSES = {"HER2-zero": 0, "HER2-low": 1, "HER2-positive": 2}


def write_three_classes(folder: Path) -> None:
    """Relabel a synthetic cohort by thirds of the sum of its latents."""
    truth: SyntheticTruth = make_synthetic_dataset(folder, n_train=24, n_test=6, us_size=(48, 56), mri_size=(8, 24, 24))
    sums = {case.patient_id: sum(case.latents.values()) for case in truth.cases}
    low, high = np.quantile(list(sums.values()), [1 / 3, 2 / 3])
    rows = read_rows(folder)
    for row in rows[1:]:
        value = sums[row[2]]
        row[1] = list(CLASSES)[int(value > low) + int(value > high)]
    write_table(folder / "cases.csv", rows)
    spec = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(spec | {"labels": CLASSES, "ordinal": True}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("three")
    paths = make_paths(root)
    write_three_classes(paths.raw)
    rows = read_rows(paths.raw)
    trained = {path.name[:7] for path in (paths.raw / "imagesTr").rglob("*.*") if path.is_file()}
    patients = sorted({row[2] for row in rows[1:] if row[0] in trained})
    own = root / "folds.json"
    own.write_text(json.dumps([patients[::2], patients[1::2]]))
    options = plan_options(root, splits=str(own), preprocess=False)
    pipeline.plan(paths, options)
    plan = json.loads(paths.plan.read_text())
    plan["modalities"]["MRI"]["preprocessing"]["derived_channels"] = ["subtraction", "wash-in"]
    paths.plan.write_text(json.dumps(plan))
    pipeline.run(paths, plan_options(root, splits=None, machine=None, budget_h=None), TRAIN, say=lambda text: None)
    return paths


def test_fusion_is_multinomial(done: DatasetPaths) -> None:
    record = FusionRecord.load(done.model("fusion") / "fusion.json")
    both = next(model for model in record.models if len(model.modalities) == 2)
    assert np.shape(both.weights) == (2, 4)  # each class against the first, from two logits of two modalities
    assert {(c.modality, c.class_name) for c in both.coefficients} == {
        (m, name) for m in ("US", "MRI") for name in ("HER2-low", "HER2-positive")
    }
    for part in ("oof", "test"):
        table = read_predictions(done.model("fusion") / f"{part}.csv")
        assert table.n_classes == 3
        np.testing.assert_allclose(table.probs.sum(axis=1), 1, atol=1e-6)


def test_metrics_are_macro_one_vs_rest_and_ordinal(done: DatasetPaths) -> None:
    rows = list(csv.DictReader((done.evaluation / "metrics.csv").open(encoding="utf-8")))
    names = {row["metric"] for row in rows if (row["model"], row["cohort"]) == ("fusion", "oof")}
    assert {"auc", "auc_hand_till", "auc_class_0", "auc_class_2", "balanced_accuracy", "weighted_kappa", "brier"} <= names
    cells = {row["metric"]: row["value"] for row in rows if (row["model"], row["cohort"]) == ("US", "oof")}
    mean = np.mean([float(cells[f"auc_class_{c}"]) for c in range(3)])
    assert float(cells["auc"]) == pytest.approx(mean)
    counts = np.bincount(read_predictions(done.model("US") / "oof.csv").labels, minlength=3)
    found = {row["metric"]: int(row["n_positive"]) for row in rows if (row["model"], row["cohort"]) == ("US", "oof")}
    for c in range(3):
        for name in ("auc", "sensitivity", "ppv"):
            assert found[f"{name}_class_{c}"] == counts[c]
    assert found["auc"] == found["balanced_accuracy"] == counts[1] + counts[2]
    text = format_summary(done.evaluation)
    assert "weighted kappa" in text
    (header,) = [line.split() for line in text.splitlines() if line.startswith("model ")]
    assert header[:4] == ["model", "cohort", "n", "mean"]  # no class is the positive one
    assert Evaluation.load(done.evaluation / "metrics.json").class_names == list(CLASSES)


def test_an_order_that_is_taken_back_makes_the_evaluation_stale_and_is_not_asked_for_again(
    done: DatasetPaths, tmp_path: Path
) -> None:
    paths = copy_run(done, tmp_path / "copy")
    assert status.evaluation_state(load_project(paths)).state == "done"
    assert not recorded_options(paths).ordinal, "the dataset says so, nobody asked"
    spec = json.loads((paths.raw / "dataset.json").read_text())
    (paths.raw / "dataset.json").write_text(json.dumps(spec | {"ordinal": False}))
    found = status.evaluation_state(load_project(paths))
    assert (found.state, found.why) == ("stale", "changed since: ordinal")
    evaluation = pipeline.evaluate(load_project(paths), recorded_options(paths))
    assert "weighted_kappa" not in {metric.metric for metric in evaluation.metrics}
    (paths.raw / "dataset.json").write_text(json.dumps(spec))
    assert status.evaluation_state(load_project(paths)).why == "changed since: ordinal"


def test_no_threshold_is_chosen_for_three_classes(
    done: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(done.roots, name)))
    before = {path: path.stat().st_mtime_ns for path in done.evaluation.rglob("*")}
    assert evaluate_command.main(["-d", "1", "--threshold", "0.3"]) == 2
    assert "the most probable one is taken" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in done.evaluation.rglob("*")}


def test_three_classes_are_not_compared_with_the_paper(
    done: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(done.roots, name)))
    before = done.report.stat().st_mtime_ns
    assert report_command.main(["-d", "1", "--paper"]) == 2
    assert "--paper: Fan et al. 2025 tell two classes apart" in capsys.readouterr().err
    assert done.report.stat().st_mtime_ns == before


def test_the_card_tells_of_each_class_and_of_the_fusion(done: DatasetPaths) -> None:
    evaluation = Evaluation.load(done.evaluation / "metrics.json")
    training = {name: Training((1, 1), "random numbers") for name in ("US", "MRI")}
    card = write_card(load_trained(done, "cpu"), evaluation, training, read_licence("CC-BY-4.0"))
    for name in ("auc_class_0", "auc_class_2", "sensitivity_class_1"):
        auc = next(m for m in evaluation.metrics if (m.model, m.cohort, m.metric) == ("US", "oof", name))
        assert f"| US | oof | {name} | {auc.value:.3f} [" in card
    decisions = card.split("## Decisions")[1].split("##")[0]
    assert "The most probable class." in decisions
    assert "Fusion: logistic regression on the logits" in decisions
    assert "| US + MRI | MRI | HER2-positive | " in decisions


def test_a_new_case_gets_the_most_probable_class(done: DatasetPaths, tmp_path: Path) -> None:
    predictor = Predictor(done, device="cpu")
    tables = predictor.predict(done.raw / "imagesTs", quiet=True)
    write_tables(tmp_path, predictor, tables)
    rows = list(csv.DictReader((tmp_path / "decisions.csv").open(encoding="utf-8")))
    fused = [row for row in rows if row["model"] == "fusion"]
    expected = [list(CLASSES)[c] for c in tables["fusion"].probs.argmax(axis=1)]
    assert [row["decision"] for row in fused] == expected
    assert {row["threshold"] for row in fused} == {""}


def test_derived_channels_reach_the_network(done: DatasetPaths) -> None:
    section = Plan.load(done.plan).modalities["MRI"]
    assert (len(section.channels), section.n_inputs) == (2, 4)


def test_derived_channels_need_their_phases(done: DatasetPaths) -> None:
    section = Plan.load(done.plan).modalities["MRI"].model_dump()
    section["preprocessing"]["derived_channels"] = ["wash-out"]
    with pytest.raises(ValidationError, match="DCE-pre, DCE-early, DCE-late as the first channels"):
        ModalityPlan.model_validate(section)


def test_an_order_of_two_classes_is_refused() -> None:
    with pytest.raises(ValidationError, match="from three classes on"):
        DatasetSpec.model_validate(spec_of(ordinal=True))
