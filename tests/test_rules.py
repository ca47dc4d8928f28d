"""The planning rules say what is so, also where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_paths
from small_run import MACHINE, plan_options

from her2net.plan.machine import Machine, speed_key
from her2net.plan.planner import PAPER
from her2net.plan.rules import Candidate, Choice, choose_candidate, choose_n_folds, fit_memory
from her2net.plan.stage import plan_dataset
from her2net.raw.synthetic import make_synthetic_dataset


@pytest.mark.parametrize(("epochs", "budget_h", "left", "said"), [
    (40, 20.0, 40, "fits the budget of 1200 min"),
    (40, 5.0, 20, "cut from 40 to fit the budget of 300 min"),
    (40, 0.1, 1, "a single one takes longer than the budget of 6 min"),
    (1, 0.1, 1, "a single one takes longer than the budget of 6 min"),  # as of a solved network, of which nothing can be cut
])  # fmt: skip
def test_a_budget_that_one_epoch_exceeds_is_not_said_to_be_kept(epochs: int, budget_h: float, left: int, said: str) -> None:
    candidate, n_cases = Candidate("resnet10t", (64, 64)), 100
    per_epoch = n_cases * (4 - 1) + 0.35 * n_cases
    speed = 1.25 * per_epoch / 3600 / 0.25  # a quarter of an hour an epoch
    machine = Machine(device="cpu", name="recorded", n_threads=1, memory_gb=8, bf16=False,
                      samples_per_s={speed_key("resnet10t", [64, 64], 1, 8): speed})  # fmt: skip
    chosen, n_epochs = choose_candidate([candidate], machine, n_channels=1, batch_size=8, n_cases=n_cases, n_folds=4, epochs=epochs,
                                        budget_h=budget_h)  # fmt: skip
    assert chosen.value == candidate
    assert (n_epochs.value, n_epochs.reason) == (left, said)


@pytest.mark.parametrize(("fixed_gb", "size", "end"), [
    (1.0, 4, "in batches of 4"),
    (9.0, 2, "in batches of 2, which needs 10.0 GB and may be refused here"),  # as where the matrix of a solved network is too large
])  # fmt: skip
def test_a_batch_that_does_not_fit_either_is_not_said_to_fit(fixed_gb: float, size: int, end: str) -> None:
    _, batch = fit_memory([Candidate("resnet10t", (64, 64))], Choice(16, "16"), 4, lambda _, n: fixed_gb + 0.5 * n)
    assert batch.value == size
    assert batch.reason.endswith(f"resnet10t at 64x64 {end}")


@pytest.mark.parametrize(("smallest", "n_classes", "said"), [
    (1, 2, "1 patient in the smaller class; 4 folds"), (30, 3, "30 patients in the smallest class; 4 folds"),
    (50, 3, "50 patients in the smallest class leave"),
])  # fmt: skip
def test_the_smallest_of_three_classes_is_not_called_the_smaller(smallest: int, n_classes: int, said: str) -> None:
    assert choose_n_folds(smallest, n_classes=n_classes).reason.startswith(said)


def test_reasons_fit_the_values_beside_them(tmp_path: Path) -> None:
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=20, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))

    def decided(name: str, **changes: object) -> dict[str, tuple[object, str]]:
        made, _ = plan_dataset(replace(paths, plan_name=name), plan_options(tmp_path, preprocess=False, **changes))
        return {d.path: (d.value, d.reason) for d in made.decisions}

    auto = decided("auto", splits="leave-one-site-out")
    for modality in ("US", "MRI"):
        assert auto[f"modalities.{modality}.training.network"][0].startswith("scattering")
        for name, value in (("label_smoothing", 0.0), ("gradient_clip", 1.0), ("warmup_epochs", 0.1)):
            assert auto[f"modalities.{modality}.training.{name}"] == (value, "without effect: the classifier is solved, not stepped")
        value, reason = auto[f"modalities.{modality}.training.checkpoint"]
        assert (value, "averaged" in reason) == ("last", False)
    assert "stratified" not in auto["splits.scheme"][1]
    MACHINE.model_copy(update={"bf16": True}).save(tmp_path / "bf16.json")
    paper = decided("cpu", preset="paper", machine=tmp_path / "bf16.json")
    assert paper["modalities.US.training.precision"][0] == paper["modalities.MRI.training.precision"][0] == "bf16"
    assert "cpu computes bfloat16 natively; the dynamic loss scaling" in paper["modalities.US.training.precision"][1]
    assert paper["modalities.MRI.training.precision"][1] == f"{PAPER} does not say; taken: cpu computes bfloat16 natively"
    assert paper["modalities.US.training.label_smoothing"] == (0.0, f"{PAPER} does not say; taken: none")
    MACHINE.model_copy(update={"device": "cuda", "bf16": True}).save(tmp_path / "cuda.json")
    paper = decided("card", preset="paper", machine=tmp_path / "cuda.json")
    assert paper["modalities.US.training.precision"] == ("fp16", f"dynamic loss scaling on US: {PAPER}")
    assert paper["modalities.MRI.training.precision"][0] == "bf16"
    assert "dynamic" not in paper["modalities.MRI.training.precision"][1]
