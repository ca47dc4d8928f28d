"""The planning rules say what is so, also where nothing fits."""

from __future__ import annotations

import pytest

from her2net.plan.machine import Machine, speed_key
from her2net.plan.rules import Candidate, Choice, choose_candidate, fit_memory


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
