"""Runs that end early, go on, are extended or run out of memory: exact where promised, told where not."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import BENCHMARKS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from her2net import memory, pipeline
from her2net.errors import (
    LockError,
    MemoryLimitError,
    MissingArtefactError,
    PlanError,
    StaleArtefactError,
    TrainingError,
    WriteError,
)
from her2net.locks import hold
from her2net.networks.build import NETWORKS, build_network
from her2net.paths import DatasetPaths
from her2net.plan.augmentation import mirrors_only
from her2net.plan.schema import Plan
from her2net.project import load_project
from her2net.raw import synthetic
from her2net.states import fold_state
from her2net.train import footprint
from her2net.train import run as train_run
from her2net.train.checkpoint import FINAL, LATEST, PREVIOUS, read_checkpoint
from her2net.train.data import FoldData, load_part, select_fold
from her2net.train.fold import TrainOptions, train_fold
from her2net.train.footprint import estimate_footprint
from her2net.train.loop import balanced_batches, make_optimizer, predict_probs, training_step
from her2net.train.record import RunRecord

OPTIONS = TrainOptions(epochs=2, quiet=True)
Stop = KeyboardInterrupt  # as Ctrl-C, or a kill, which leaves no chance to tidy up either


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """A planned cohort with the smallest networks and two folds."""
    sys.path.insert(0, str(BENCHMARKS))
    import kill_test

    root = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(NETWORKS):  # the kill test makes networks thin
        for name in ("MISSING", "TWO_LESIONS", "SEPARATION"):  # the cohort of the kill test has its own, other tests have not
            value = getattr(synthetic, name)
            patch.setattr(synthetic, name, dict(value) if isinstance(value, dict) else value)
        patch.setattr("her2net.plan.rules.SCATTERING_UP_TO", 0)  # a network whose checkpoint holds every kind of state
        paths = kill_test.make_paths(root)
        pipeline.plan(paths, kill_test.make_cohort(root, modalities=("US",)))
    estimate_footprint.cache_clear()  # of the thin networks
    plan = json.loads(paths.plan.read_text())
    plan["modalities"]["US"]["training"]["warmup_epochs"] = 0.0  # while warming up, the total does not matter
    paths.plan.write_text(json.dumps(plan))
    return kill_test.make_paths(root)


@pytest.fixture
def paths(planned: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DatasetPaths:
    """The planned cohort with results of its own, and a checkpoint after every epoch."""
    monkeypatch.setattr(train_run, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    return replace(planned, roots=replace(planned.roots, results=tmp_path / "results"))


def train(paths: DatasetPaths, **changes: object) -> RunRecord:
    return pipeline.train(load_project(paths), "US", 0, replace(OPTIONS, **changes))  # type: ignore[arg-type]


def contents(paths: DatasetPaths) -> dict[str, object]:
    """Return what a finished fold holds, for comparison."""
    folder = paths.fold("US", 0)
    weights = torch.load(folder / FINAL, weights_only=True)["weights"]
    return {"history": (folder / "history.csv").read_bytes(), "oof": (folder / "oof.csv").read_bytes(),
            **{name: tensor.numpy().tobytes() for name, tensor in weights.items()}}  # fmt: skip


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, nth: int) -> Callable[[], None]:
    """Let the n-th call of a function of the training run fail; return what undoes it."""
    original, calls = getattr(train_run, name), []

    def stops(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == nth:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(train_run, name, stops)
    return lambda: monkeypatch.setattr(train_run, name, original)


@pytest.mark.parametrize(
    ("n_kills", "arguments"),
    [(4, ["--quick"]), pytest.param(50, [], marks=pytest.mark.slow)],
)
def test_killed_anywhere_and_resumed_ends_with_the_same_bits(tmp_path: Path, n_kills: int, arguments: list[str]) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "kill_test.py"), "--kills", str(n_kills), "--json", str(figures)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["losses"] == []
    assert found["kills"] >= n_kills


def test_a_finished_fold_is_not_trained_again_and_what_is_lost_of_it_is_written_anew(paths: DatasetPaths) -> None:
    train(paths)
    folder, before = paths.fold("US", 0), contents(paths)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    train(paths)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "oof.csv").unlink()
    project = load_project(paths)
    assert fold_state(project, "US", 0).state == "interrupted"
    content = bytearray((folder / FINAL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / FINAL).write_bytes(bytes(content))
    train(paths)
    assert contents(paths) == before


def test_a_restart_that_cannot_start_leaves_the_finished_fold_as_it_was(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(paths)
    before = {path: path.read_bytes() for path in paths.fold("US", 0).iterdir()}
    misfit = tmp_path / "misfit.pt"
    torch.save({"a": torch.zeros(1)}, misfit)
    with pytest.raises(MissingArtefactError, match=r"typo\.pth: no such weight file"):
        train(paths, restart=True, pretrained=str(tmp_path / "typo.pth"))
    with pytest.raises(PlanError, match=r"misfit\.pt: these weights do not fit"):
        train(paths, restart=True, pretrained=str(misfit))
    with monkeypatch.context() as patch:
        patch.setattr(footprint, "available_memory", lambda: 2**26)
        with pytest.raises(MemoryLimitError):
            train(paths, restart=True)
    with monkeypatch.context() as patch:
        patch.setattr(type(paths), "cache", lambda *_: tmp_path / "gone.h5")
        with pytest.raises(MissingArtefactError, match=r"gone\.h5"):
            train(paths, restart=True)
    assert {path: path.read_bytes() for path in paths.fold("US", 0).iterdir()} == before
    train(paths, restart=True, seed=5)
    assert contents(paths)["oof"] != before[paths.fold("US", 0) / "oof.csv"]


def test_a_weight_file_counts_by_its_content_wherever_it_lies(paths: DatasetPaths, tmp_path: Path) -> None:
    section = load_project(paths).plan.modalities["US"]
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    for seed, path in enumerate((first, second)):
        torch.manual_seed(seed)
        model = build_network(section.training.network, n_channels=section.n_inputs, n_classes=2)
        torch.save(model.state_dict(), path)
    train(paths, pretrained=str(first))
    before = contents(paths)
    moved = first.rename(tmp_path / "elsewhere.pt")
    train(paths, pretrained=str(moved))
    assert contents(paths) == before
    with pytest.raises(StaleArtefactError, match="weights"):
        train(paths, pretrained=str(second.replace(moved)))
    with pytest.raises(MissingArtefactError, match=r"a\.pt: no such weight file"):
        train(paths, pretrained=str(first))
    assert contents(paths) == before


def test_an_extension_equals_itself_however_often_it_is_interrupted(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It follows the schedule of the new total from where it goes on, so it is not a longer run from the start."""
    train(paths, epochs=1)
    other = replace(paths, roots=replace(paths.roots, results=tmp_path / "other"))
    shutil.copytree(paths.roots.results, other.roots.results)
    record = train(paths, epochs=3)
    assert (record.epochs_done, record.status) == (3, "finished")

    go_on = stop_at(monkeypatch, "train_epoch", 2)
    with pytest.raises(Stop):
        train(other, epochs=3)
    go_on()
    assert fold_state(load_project(other), "US", 0).why == "2 of 3 epochs"
    train(other, epochs=None)  # goes on to the number it was given
    assert contents(other) == contents(paths)


@pytest.mark.parametrize(("name", "nth"), [("save_latest", 2), ("write_history", 2), ("save_checkpoint", 1), ("write_predictions", 1)])
def test_wherever_the_end_of_a_run_is_cut_off_nothing_is_missing(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, name: str, nth: int, expected: dict[str, object]
) -> None:
    go_on = stop_at(monkeypatch, name, nth)
    with pytest.raises(Stop):
        train(paths)
    go_on()
    assert train(paths).status == "finished"
    assert contents(paths) == expected


def test_a_damaged_newest_checkpoint_costs_an_epoch_and_not_a_bit(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    go_on = stop_at(monkeypatch, "write_predictions", 1)
    with pytest.raises(Stop):
        train(paths)
    go_on()
    latest = paths.fold("US", 0) / LATEST
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(bytes(content))
    assert train(paths).status == "finished"
    assert "damaged checkpoint (checksum of" in (said := capsys.readouterr().err)
    assert "Falling back to the previous checkpoint." in said
    assert contents(paths) == expected


def test_a_kill_between_the_renames_of_the_last_checkpoint_leaves_a_run_that_can_be_extended(
    paths: DatasetPaths, expected: dict[str, object]
) -> None:
    train(paths)
    folder = paths.fold("US", 0)
    (folder / LATEST).rename(folder / PREVIOUS)
    record = RunRecord.load(folder / "run.json")
    record.model_copy(update={"status": "running"}).save(folder / "run.json")
    train(paths)
    assert contents(paths) == expected
    assert read_checkpoint(folder / LATEST)["epochs_done"] == 2
    assert not (folder / PREVIOUS).exists()


@pytest.fixture(scope="module")
def expected(planned: DatasetPaths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What an uninterrupted run holds."""
    paths = replace(planned, roots=replace(planned.roots, results=tmp_path_factory.mktemp("expected")))
    train(paths)
    return contents(paths)


def test_the_loss_scale_is_restored(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With dynamic loss scaling as on a graphics card, growing at every other step."""
    monkeypatch.setattr(train_run, "make_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2))
    train(paths)
    other = replace(paths, roots=replace(paths.roots, results=tmp_path / "other"))
    go_on = stop_at(monkeypatch, "train_epoch", 2)
    with pytest.raises(Stop):
        train(other)
    scale = read_checkpoint(other.fold("US", 0) / LATEST)["scaler"]
    assert scale["_growth_tracker"] or scale["scale"] != 64.0
    go_on()
    train(other)
    assert contents(other) == contents(paths)
    states = [read_checkpoint(p.fold("US", 0) / LATEST)["scaler"] for p in (paths, other)]
    assert states[0] == states[1]
    assert states[0]["scale"] > 64.0


def test_a_fold_that_is_trained_elsewhere_is_refused_by_name_and_shown_as_running(paths: DatasetPaths) -> None:
    with hold(paths.fold("US", 0), "US fold 0"):
        with pytest.raises(LockError, match=r"^US fold 0 is in use by '.*' \(process \d+ on .*, since .* UTC\)\. Wait"):
            train(paths)
        state = fold_state(load_project(paths), "US", 0)
    assert (state.state, state.why[:3]) == ("running", "by ")
    assert not paths.fold("US", 0).exists()


def test_a_run_whose_lock_is_gone_writes_nothing_more(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the network drive vanishes, or a machine that slept for minutes wakes up."""
    original = train_run.train_epoch

    def vanish(*args: object, **kwargs: object) -> object:
        shutil.rmtree(paths.roots.results)
        return original(*args, **kwargs)

    monkeypatch.setattr(train_run, "train_epoch", vanish)
    with pytest.raises(LockError, match=r"\.fold_0\.lock: the lock of this process has vanished"):
        train(paths)
    assert not paths.roots.results.exists()


# Memory


class Hungry(nn.Module):
    """A network whose device has memory for a few cases at a time only."""

    def __init__(self, at_most: int) -> None:
        super().__init__()
        self.linear, self.at_most, self.seen = nn.Linear(16, 2), at_most, []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.at_most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
        return self.linear(x.flatten(1))


def one_step(at_most: int) -> tuple[Hungry, tuple[torch.Tensor, int]]:
    torch.manual_seed(0)
    model = Hungry(at_most)
    x, targets = torch.randn(8, 1, 4, 4), nn.functional.one_hot(torch.arange(8) % 2, 2).float()
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.0)
    weights = torch.tensor([0.5, 1.5])
    return model, training_step(model, optimizer, x, targets, precision="fp32", gradient_clip=1.0, scaler=None,
                                loss_weights=weights, label_smoothing=0.1)  # fmt: skip


def test_with_decay_by_layer_the_first_update_is_smaller_the_nearer_to_the_image() -> None:
    torch.manual_seed(0)
    network = build_network("resnet10t", n_channels=1, n_classes=2)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(network, learning_rate=1e-3, weight_decay=0.0, layer_decay=0.5)
    x, targets = torch.randn(4, 1, 32, 32), torch.eye(2)[[0, 1, 0, 1]]
    training_step(network, optimizer, x, targets, precision="fp32", gradient_clip=1.0, scaler=None)
    moved = {name: float((parameter.detach() - before[name]).abs().max()) for name, parameter in network.named_parameters()}
    for name, blocks_behind in {"fc.weight": 0, "layer4.0.bn2.weight": 1, "layer1.0.bn2.weight": 4, "conv1.0.weight": 5}.items():
        assert moved[name] == pytest.approx(1e-3 * 0.5**blocks_behind, rel=0.05), "AdamW's first step is as long as the learning rate"


def test_a_run_with_decay_by_layer_goes_on_to_the_same_bits(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(paths.roots.preprocessed, tmp_path / "preprocessed")
    paths = replace(paths, roots=replace(paths.roots, preprocessed=tmp_path / "preprocessed"))
    plan = json.loads(paths.plan.read_text())
    plan["modalities"]["US"]["training"]["layer_decay"] = 0.7
    paths.plan.write_text(json.dumps(plan))
    train(paths)
    whole = contents(paths)
    shutil.rmtree(paths.fold("US", 0))
    undo = stop_at(monkeypatch, "train_epoch", 2)
    with pytest.raises(Stop):
        train(paths)
    undo()
    train(paths)
    assert contents(paths) == whole
    rows = csv.DictReader((paths.fold("US", 0) / "history.csv").open())
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) > 0.5 * plan["modalities"]["US"]["training"]["learning_rate"], "the rate of the classifier is what is recorded"


def test_a_run_that_stopped_before_there_was_a_decay_by_layer_goes_on(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    train(paths)
    whole = contents(paths)
    shutil.rmtree(paths.fold("US", 0))

    def of_before(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args, **kwargs)
        for group in optimizer.param_groups:
            del group["lr_scale"]
        return optimizer

    undo = stop_at(monkeypatch, "train_epoch", 2)
    monkeypatch.setattr(train_run, "make_optimizer", of_before)
    with pytest.raises(Stop):
        train(paths)
    undo()
    monkeypatch.setattr(train_run, "make_optimizer", make_optimizer)
    train(paths)
    assert contents(paths) == whole


def test_out_of_graphics_memory_halves_the_batch_and_adds_up_the_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    whole, (loss, n_parts) = one_step(at_most=8)
    assert n_parts == 1
    parted, (parted_loss, n_parts) = one_step(at_most=2)
    assert n_parts == 4
    assert parted.seen == [8, 4, 2, 2, 2, 2]
    assert float(parted_loss) == pytest.approx(float(loss), rel=1e-6)
    assert torch.allclose(parted.linear.weight, whole.linear.weight, atol=1e-6)
    assert "each training batch of 8 goes in 4 parts from now on" in capsys.readouterr().err


def test_a_case_that_does_not_fit_ends_training_with_a_message() -> None:
    with pytest.raises(TrainingError, match="out of graphics memory with one case at a time"):
        one_step(at_most=0)


def test_a_loss_that_is_not_finite_ends_training_and_names_the_cases(paths: DatasetPaths) -> None:
    project = load_project(paths)
    cases = select_fold(project.dataset.train, "US", 0, project.plan, project.splits)

    def load_damaged(*arguments: Any) -> FoldData:
        part = load_part(*arguments)
        part.cache.image[0] = np.nan
        return part

    with pytest.raises(TrainingError, match=rf"epoch 0, step \d+: the loss is nan\..*{cases.training[0].case_id}"):
        train_fold(project.paths, project.plan, "US", 0, cases, OPTIONS, load_damaged)
    assert not (paths.fold("US", 0) / FINAL).exists()


@given(st.integers(1, 200), st.integers(1, 32))
def test_no_case_is_alone_in_a_batch(n_cases: int, batch_size: int) -> None:
    """Its spread, by which batch normalisation divides, would be nothing."""
    batches = list(balanced_batches(n_cases, batch_size, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(n_cases))
    sizes = sorted(map(len, batches))
    assert sizes[0] >= min(2, batch_size, n_cases)
    assert sizes[-1] - sizes[0] <= 1
    assert sizes[-1] <= max(batch_size, 3 if batch_size > 1 else 1)


def test_prediction_halves_its_batches_too() -> None:
    images = torch.randn(7, 1, 4, 4)
    torch.manual_seed(0)
    whole = predict_probs(Hungry(8), images, (4, 4), batch_size=8)
    torch.manual_seed(0)
    parted = predict_probs(Hungry(3), images, (4, 4), batch_size=8)
    assert whole == pytest.approx(parted, abs=1e-6)


def test_the_parts_are_recorded_and_kept_when_a_run_goes_on(
    paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = train_run.build_network

    def build_hungry(*args: object, **kwargs: object) -> nn.Module:
        model = build(*args, **kwargs)

        def refuse(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if module.training and len(inputs[0]) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

        model.register_forward_pre_hook(refuse)
        return model

    monkeypatch.setattr(train_run, "build_network", build_hungry)
    assert train(paths, epochs=1).batch_parts == 2
    assert "goes in 2 parts" in capsys.readouterr().err
    assert train(paths, epochs=2).batch_parts == 2
    assert "goes in 2 parts" not in capsys.readouterr().err, "it is known by now"


def test_images_that_do_not_fit_into_memory_stay_on_the_disk(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    train(paths)
    whole = contents(paths)
    shutil.rmtree(paths.results)
    monkeypatch.setattr(memory, "SHARE_FOR_IMAGES", 0.0)
    project = load_project(paths)
    part = load_part(paths, "US", project.plan.modalities["US"], project.training("US"))
    assert isinstance(part.cache.image, np.memmap)
    assert isinstance(part.cache.mask, np.memmap)
    train(paths)
    assert contents(paths) == whole
    assert [path.suffix for path in paths.caches.iterdir()] == [".h5"], "files without a name leave nothing"


def test_a_copy_that_the_disk_has_no_room_for_is_refused(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARE_FOR_IMAGES", 0.0)

    def full(handle: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("her2net.preprocess.cache.reserve", full)
    with pytest.raises(WriteError, match="Free some space"):
        train(paths)


def test_training_that_cannot_fit_is_refused_before_it_starts(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available_memory", lambda: 2**26)
    with pytest.raises(MemoryLimitError, match=r"US fold 0: resnet10t with batches of 7 needs about 0\.\d GiB of memory, and 0\.1 GiB"):
        train(paths)
    assert not paths.fold("US", 0).exists()
    need = estimate_footprint("resnet10t", (64, 64), 1)
    monkeypatch.setattr(footprint, "available_memory", lambda: need.total(5))
    with pytest.raises(MemoryLimitError, match=r"Set training.batch_size to 4 in the plan"):
        train(paths)


def test_a_classifier_that_cannot_be_solved_in_memory_is_refused(paths: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.load(paths.plan).modalities["US"]
    training = plan.training.model_copy(update={"network": "scattering_2d", "augmentation": mirrors_only(2)})
    need = footprint.footprint_of(plan, training)
    few = need.total(training.batch_size) + need.solving(2 * 300)
    monkeypatch.setattr(footprint, "fits_in_memory", lambda n_bytes: False)  # images on the disk: only solving grows with the cases
    monkeypatch.setattr(footprint, "available_memory", lambda: few)
    footprint.refuse_what_cannot_fit("US fold 0", plan, training, (300, 100), "cpu")
    with pytest.raises(MemoryLimitError, match="US fold 0: scattering_2d"):
        footprint.refuse_what_cannot_fit("US fold 0", plan, training, (3000, 1000), "cpu")
    monkeypatch.setattr(footprint, "available_memory", lambda: need.total(4) + need.solving(2 * 300))
    with pytest.raises(MemoryLimitError, match="Choose a smaller network"):  # no batch of the plan is that of the solver
        footprint.refuse_what_cannot_fit("US fold 0", plan, training, (300, 100), "cpu")
    assert estimate_footprint("resnet10t", (64, 64), 1).solving(6000) == 0


GROWING = [n for n in NETWORKS if not n.startswith("scattering")]  # those keep a fixed number of coefficients


@pytest.mark.parametrize("name", [n if "50" not in n and "34" not in n else pytest.param(n, marks=pytest.mark.slow) for n in GROWING])
def test_the_footprint_of_every_network_can_be_estimated(name: str) -> None:
    small = tuple(2 * n for n in NETWORKS[name].min_size)
    one, eight = (estimate_footprint(name, tuple(scale * n for n in small), 1) for scale in (1, 2))
    assert one.fixed == eight.fixed > 0
    factor = 2 ** len(small)
    assert 0.6 * factor * one.per_case < eight.per_case < 1.4 * factor * one.per_case
