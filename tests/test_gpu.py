"""On a graphics card: the same numbers as on a processor, folds side by side, resuming, and memory that does not suffice.

    pytest -m gpu
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_run, make_paths

from her2net import pipeline
from her2net.explain.subjects import ExplainOptions
from her2net.networks.build import build_network
from her2net.paths import DatasetPaths
from her2net.plan.augmentation import paper_augmentation
from her2net.plan.schema import Plan
from her2net.plan.stage import PlanOptions
from her2net.predict import Predictor
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.augment import augment, draw_parameters
from her2net.train.fold import TrainOptions
from her2net.train.loop import predict_probs
from her2net.train.record import RunRecord

pytestmark = pytest.mark.gpu
CARD = "cuda"
TRAIN = TrainOptions(device=CARD, epochs=2, quiet=True)
NETWORKS = {"US": ("resnet10t", [64, 64], "fp16"), "MRI": ("resnet10_3d", [16, 32, 32], "bf16")}


def plan_small_networks(paths: DatasetPaths) -> None:
    """The paper's plan with small networks and all batches of 8."""
    plan, _ = pipeline.plan(paths, PlanOptions(preset="paper", device=CARD, preprocess=False, n_workers=1, quiet=True))
    sections = {}
    for name, section in plan.modalities.items():
        network, size, precision = NETWORKS[name]
        preprocessing = section.preprocessing.model_copy(update={"input_vox": size, "stored_vox": [n + 8 for n in size]})
        training = section.training.model_copy(update={
            "network": network, "initialisation": "scratch", "precision": precision, "batch_size": 8, "ema_decay": 0.9,
        })  # fmt: skip
        sections[name] = section.model_copy(update={"preprocessing": preprocessing, "training": training})
    plan.model_copy(update={"modalities": sections}).save(paths.plan)
    pipeline.plan(paths, PlanOptions(n_workers=1, quiet=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """Everything, raw to report, on the card."""
    paths = make_paths(tmp_path_factory.mktemp("card"))
    make_synthetic_dataset(paths.raw, n_train=26, n_test=6, us_size=(96, 112), mri_size=(8, 40, 40))
    plan_small_networks(paths)
    pipeline.run(paths, PlanOptions(n_workers=1, quiet=True), TRAIN, say=lambda text: None)
    return paths


def test_raw_to_report_on_the_card(run: DatasetPaths) -> None:
    plan = Plan.load(run.plan)
    for name in plan.modalities:
        for fold in range(plan.splits.n_folds):
            record = RunRecord.load(run.fold(name, fold) / "run.json")
            assert record.status == "finished"
            assert record.environment["device"] == CARD
            assert min(record.duration_s[phase] for phase in ("forward", "backward", "optimizer", "validation")) > 0
    assert (run.report.parent / "report.html").is_file()


def test_a_processor_predicts_what_the_card_predicted(run: DatasetPaths) -> None:
    predictor = Predictor(run, device="cpu")
    found = pipeline.predict_test(load_project(run), predictor, tta=False, quiet=True)
    for name in ("US", "MRI", "fusion"):
        test = read_predictions(run.model(name) / "test.csv")
        assert np.abs(found[name].probs - test.probs).max() < 1e-4, name


def test_the_card_repeats_its_own_predictions(run: DatasetPaths) -> None:
    found = pipeline.predict_test(load_project(run), Predictor(run, device=CARD), tta=False, quiet=True)
    for name in ("US", "MRI", "fusion"):
        assert np.abs(found[name].probs - read_predictions(run.model(name) / "test.csv").probs).max() < 1e-6, name


def test_folds_side_by_side_are_all_trained(run: DatasetPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = copy_run(run, tmp_path / "copy", without="her2net_results")
    project = load_project(paths)
    options, n_folds = replace(TRAIN, quiet=False), project.plan.splits.n_folds
    folds = [(name, fold, options) for name in project.plan.modalities for fold in range(n_folds)]
    done = {str(job): record.epochs_done for job, record in pipeline.train_folds(project, folds)}
    assert done == {f"{name} fold {fold}": 2 for name, fold, _ in folds}
    assert "folds at once" in capsys.readouterr().err


def test_a_run_goes_on_where_it_was(run: DatasetPaths, tmp_path: Path) -> None:
    project = load_project(copy_run(run, tmp_path / "copy"))
    record = pipeline.train(project, "US", 0, replace(TRAIN, epochs=4))
    assert record.epochs_done == 4
    rows = (project.paths.fold("US", 0) / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1", "2", "3"]


def test_explanations_are_made_on_the_card(run: DatasetPaths, tmp_path: Path) -> None:
    project = load_project(copy_run(run, tmp_path / "copy"))
    case = project.training("MRI")[0].case_id
    record = pipeline.explain(project, "MRI", ExplainOptions(case_ids=(case,), device=CARD, quiet=True))
    assert len(record.cases) == 1


@pytest.mark.parametrize("size", [(40, 48), (12, 24, 24)])
def test_the_card_augments_as_the_processor_does(size: tuple[int, ...]) -> None:
    x = torch.randn(4, 2, *(n + 8 for n in size), generator=torch.Generator().manual_seed(0)).half()
    parameters = draw_parameters(4, len(size), paper_augmentation(len(size)), torch.Generator().manual_seed(1))
    here, there = augment(x, size, parameters), augment(x.to(CARD), size, parameters)
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=1e-3)


def test_batches_that_the_card_has_no_memory_for_go_in_parts() -> None:
    model = build_network("resnet18_3d", n_channels=1, n_classes=2).to(CARD).eval()
    images = torch.randn(32, 1, 64, 64, 64).half()
    whole = predict_probs(model, images, (64, 64, 64), batch_size=8)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
        parted = predict_probs(model, images, (64, 64, 64), batch_size=32)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert parted == pytest.approx(whole, abs=1e-5)


def test_what_auto_plans_is_solved_on_the_card_as_on_the_processor(run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(run, tmp_path / "copy", without="her2net_results")
    paths.plan.unlink()
    plan, _ = pipeline.plan(paths, PlanOptions(preset="auto", device=CARD, n_workers=1, quiet=True))
    assert plan.machine is None or plan.machine.device == CARD
    project, tables = load_project(paths), {}
    for device in (CARD, "cpu"):
        pipeline.train(project, "US", 0, TrainOptions(device=device, quiet=True, restart=True))
        tables[device] = read_predictions(paths.fold("US", 0) / "oof.csv")
    assert tables[CARD].probs == pytest.approx(tables["cpu"].probs, abs=1e-3)
