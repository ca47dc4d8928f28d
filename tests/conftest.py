"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes side by side would wait for each other

import pytest

from her2net.paths import DatasetPaths, Roots


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files change on purpose only."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files from what the code does now")


LONGEST = ("test_mutations", "test_resume", "test_pipeline", "test_report", "test_multiclass", "test_explain", "test_fuse",
           "test_status", "test_privacy", "test_contours", "test_selftest", "test_tabular", "test_input_check")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that of two processes neither waits for the other at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a hub for weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _no_radiomics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are the same whether mirp is installed or not; the tests of radiomics ask for it themselves."""
    monkeypatch.setattr("her2net.plan.stage.radiomics_at_hand", lambda: False)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """One finished run for all test files and all test processes; who changes it copies it first (`copy_run`)."""
    from filelock import FileLock
    from small_run import make_small_run

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the folder that the processes have in common
    root = shared / "small_run"
    with FileLock(shared / "small_run.lock"):
        if (root / "done").exists():
            return make_paths(root)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        paths = make_small_run(root)
        (root / "done").touch()
        return paths


def copy_run(run: DatasetPaths, root: Path, *, without: str = "") -> DatasetPaths:
    """Copy a finished run, to be damaged; files that match `without` stay behind."""
    shutil.copytree(run.roots.raw.parent, root, ignore=shutil.ignore_patterns(without, ".*.lock"))
    return make_paths(root)


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    """Empty roots, also set in the environment so that commands find them."""
    found = Roots(*(tmp_path / name for name in ("her2net_raw", "her2net_preprocessed", "her2net_results")))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(found, name)))
    return found


def make_paths(root: Path, folder: str = "Dataset001_Small") -> DatasetPaths:
    """Return the paths of a dataset whose roots lie below one folder."""
    names = ("her2net_raw", "her2net_preprocessed", "her2net_results")
    return DatasetPaths(Roots(*(root / name for name in names)), folder)


@pytest.fixture
def done(small_run: DatasetPaths) -> DatasetPaths:
    """A finished run; tests that change it copy it first."""
    return small_run


@pytest.fixture
def copied(done: DatasetPaths, tmp_path: Path) -> DatasetPaths:
    """A copy of the finished run, to be damaged; checkpoints are linked, as nothing writes into one that is there."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".pt") else shutil.copy2)(source, target)

    shutil.copytree(done.roots.raw.parent, tmp_path / "copy", copy_function=copy, ignore=shutil.ignore_patterns(".*.lock"))
    return make_paths(tmp_path / "copy")
