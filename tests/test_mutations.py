"""Every mutation of what is good is refused with one message that names the place, or repaired or accepted for a stated reason.

`python benchmarks/mutations.py` counts them by kind.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import Mutation, raw_mutations, trained_mutations
from mutations.case import CACHE, ENSEMBLE, EVALUATE, FUSE, PREDICT, STATUS, TRAIN, TRAIN_ALL, VERIFY, Command
from mutations.good import copy_good, make_good, make_trained
from mutations.judge import environment, picture, try_mutation
from mutations.worker import Worker

from her2net.paths import DatasetPaths

RAW, TRAINED = raw_mutations(), trained_mutations()
WRITERS = {"plan": CACHE, "train": TRAIN_ALL, "ensemble": ENSEMBLE, "fuse": FUSE, "evaluate": EVALUATE, "predict": PREDICT}
CAN_MOUNT = hasattr(os, "geteuid") and os.geteuid() == 0 and bool(shutil.which("mount"))
FIRST, EVERY = 4, 6
LATER = {m.id for m in TRAINED if m.kind.startswith("evaluate") and m.accepted}  # whole evaluations
LATER |= {
    m.id
    for half in (RAW, TRAINED)
    for kind in {m.kind for m in half}
    for i, m in enumerate(m for m in half if m.kind == kind)
    if i >= FIRST and (i - FIRST) % EVERY != EVERY - 1
}
"""Of each kind the first few, and of the rest every sixth, are always tried; the others are left to the slow tests."""


def listed(mutations: list[Mutation]) -> list[object]:
    """Return the mutations as parameters of a test."""
    return [pytest.param(m, id=m.id, marks=[pytest.mark.slow] * (m.id in LATER)) for m in mutations]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    return make_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.stop()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if not CAN_MOUNT or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("mutations", [RAW, TRAINED])
def test_names_are_unique_and_there_are_enough(mutations: list[Mutation]) -> None:
    assert len({mutation.id for mutation in mutations}) == len(mutations) >= 150


@pytest.mark.parametrize("mutation", listed(RAW))
def test_damage_to_raw_data_is_refused_by_name_or_accepted(
    mutation: Mutation, good: DatasetPaths, worker: Worker, tmp_path: Path
) -> None:
    assert try_mutation(mutation, good, tmp_path / "x", worker)


@pytest.mark.parametrize("mutation", listed(TRAINED))
def test_damage_to_what_was_made_or_given_is_refused_by_name_repaired_or_accepted(
    mutation: Mutation, trained: DatasetPaths, worker: Worker, tmp_path: Path
) -> None:
    assert try_mutation(mutation, trained, tmp_path / "x", worker)


@pytest.mark.parametrize("state", ["read-only", "full"])
def test_a_disk_that_takes_nothing_is_named_and_left_as_it_was(
    state: str, trained: DatasetPaths, worker: Worker, disk: Path, tmp_path: Path
) -> None:
    paths = copy_good(trained, disk / "x")
    if state == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        fill(disk / "full")
    before = picture(disk)
    for name, command in WRITERS.items():
        answer = run(worker, command, paths, tmp_path)
        assert answer.code == 2, (name, answer.text)
        assert "cannot be written (" in answer.err
        assert str(disk) in answer.err
        assert "Traceback" not in answer.text
        assert picture(disk) == before
    for command in (VERIFY, STATUS):
        assert run(worker, command, paths, tmp_path).code == 0, "who only reads can go on"


@pytest.mark.parametrize("gone", ["preprocessed", "results", "raw"])
def test_a_vanished_folder_is_named(gone: str, trained: DatasetPaths, worker: Worker, tmp_path: Path) -> None:
    paths = copy_good(trained, tmp_path / "x")
    folder = getattr(paths.roots, gone)
    shutil.rmtree(folder)
    for name, command in {"ensemble": ENSEMBLE, "fuse": FUSE, "predict": PREDICT, "train": TRAIN}.items():
        if (name, gone) == ("train", "results"):
            continue  # that is a project before its first fold
        answer = run(worker, command, paths, tmp_path)
        assert answer.code == 2, (name, answer.text)
        assert str(folder) in answer.err
        assert "Traceback" not in answer.text
        assert not list(folder.rglob("*.*"))


def run(worker: Worker, command: Command, paths: DatasetPaths, tmp_path: Path):  # type: ignore[no-untyped-def]
    filled = tuple(word.replace("{root}", str(paths.roots.raw.parent)) for word in command)
    return worker.run(filled, environment(paths, tmp_path), 300)


def fill(path: Path) -> None:
    """Take all the space there is."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.writelines(itertools.repeat(bytes(1 << 16)))
