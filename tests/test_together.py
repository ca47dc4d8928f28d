"""Folds side by side: how many, and that none of them notices."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from conftest import copy_run
from hypothesis import given
from hypothesis import strategies as st
from small_run import TRAIN

from her2net import pipeline
from her2net.errors import StaleArtefactError
from her2net.paths import DatasetPaths
from her2net.project import load_project
from her2net.train import together
from her2net.train.together import count_that_fit

FOLDS = [("US", 0, TRAIN), ("US", 1, TRAIN)]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(0, 300), st.integers(1, 8))
def test_whichever_run_at_once_they_fit(needs: list[int], free: int, n_cores: int) -> None:
    n = count_that_fit(needs, free, n_cores)
    assert 1 <= n <= min(len(needs), n_cores)
    assert n == 1 or all(sum(some) <= free for some in combinations(needs, n))
    more = n + 1
    assert more > min(len(needs), n_cores) or any(sum(some) > free for some in combinations(needs, more))


def tables(paths: DatasetPaths) -> list[str]:
    return [(paths.fold(name, fold) / "oof.csv").read_text() for name, fold, _ in FOLDS]


def test_folds_side_by_side_equal_folds_in_turn(small_run: DatasetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for n in (1, 2):
        paths = copy_run(small_run, tmp_path / str(n), without="her2net_results")
        monkeypatch.setattr(together, "_count_at_once", lambda project, jobs, n=n: n)
        done = {str(job): record.status for job, record in pipeline.train_folds(load_project(paths), FOLDS)}
        assert done == {"US fold 0": "finished", "US fold 1": "finished"}
        found.append(tables(paths))
    assert found[0] == found[1]


def test_what_a_fold_refuses_reaches_the_user(small_run: DatasetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = copy_run(small_run, tmp_path / "copy")
    monkeypatch.setattr(together, "_count_at_once", lambda project, jobs: 2)
    other_seed = [(name, fold, together.TrainOptions(device="cpu", seed=7, quiet=True)) for name, fold, _ in FOLDS]
    with pytest.raises(StaleArtefactError, match=r"US/fold_\d: this fold was trained from other inputs"):
        list(pipeline.train_folds(load_project(paths), other_seed))
