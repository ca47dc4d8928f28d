"""Every mutation of a good dataset is refused with one message that names the place, or accepted for a stated reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import Mutation, raw_mutations
from mutations.good import make_good
from mutations.judge import try_mutation
from mutations.worker import Worker

from her2net.paths import DatasetPaths

MUTATIONS = raw_mutations()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    return make_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.stop()


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({mutation.id for mutation in MUTATIONS}) == len(MUTATIONS) >= 150


@pytest.mark.parametrize("mutation", [pytest.param(m, id=m.id) for m in MUTATIONS])
def test_damage_is_refused_by_name_or_accepted(mutation: Mutation, good: DatasetPaths, worker: Worker, tmp_path: Path) -> None:
    assert try_mutation(mutation, good, tmp_path / "x", worker)
