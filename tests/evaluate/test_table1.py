"""Table 1: Fisher by enumeration, the choice of test, differences and adjustment."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2net.evaluate import fisher
from her2net.evaluate.fisher import fisher_exact
from her2net.evaluate.table1 import compare_counts, make_table, smd_continuous, smd_counts


@given(st.lists(st.integers(0, 25), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_fisher_equals_scipy_in_two_by_two(cells: list[int]) -> None:
    from scipy.stats import fisher_exact as reference

    table = np.array(cells).reshape(2, 2)
    if (table.sum(axis=0) == 0).any() or (table.sum(axis=1) == 0).any():
        return
    assert fisher_exact(table)[0] == pytest.approx(reference(table).pvalue, abs=1e-9)


def test_fisher_of_three_by_three_counts_every_table() -> None:
    p, name = fisher_exact(np.array([[3, 0, 1], [0, 4, 1], [1, 0, 3]]))
    sampled = fisher._sampled(np.array([4, 5, 4]), np.array([4, 4, 5]), 0.0, math.inf)
    assert name == "Fisher exact"
    assert 0 < p < 0.05
    assert sampled == 1
    assert fisher_exact(np.array([[3, 0, 1], [0, 4, 1], [1, 0, 3]]).T)[0] == pytest.approx(p)
    assert np.exp(fisher._enumerate(np.array([2, 1]), np.array([1, 2]))).sum() > 0


def test_fisher_of_too_many_tables_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.array([[8, 3, 5], [2, 6, 4]])
    exact, _ = fisher_exact(table)
    monkeypatch.setattr(fisher, "MAX_TABLES", 3)
    p, name = fisher_exact(table)
    assert "sampled" in name
    assert p == pytest.approx(exact, abs=0.01)


def test_empty_levels_are_left_out() -> None:
    assert compare_counts(np.array([[10, 0, 12], [14, 0, 9]])) == compare_counts(np.array([[10, 12], [14, 9]]))
    assert math.isnan(compare_counts(np.array([[10, 0], [14, 0]]))[0])


def test_the_data_choose_the_test() -> None:
    rng = np.random.default_rng(0)
    text = lambda values: [f"{v:.3f}" for v in values]
    first = {"age": text(rng.normal(54, 9, 60)), "size": text(rng.exponential(3, 60)), "grade": ["1", "2", "10"] * 20}
    second = {"age": text(rng.normal(58, 9, 40)), "size": [*text(rng.exponential(3, 39)), ""]}
    second["grade"] = ["2", "10"] * 20
    rows = make_table(first, second, {"age": "continuous", "size": "continuous", "grade": "ordinal", "er": "binary"})
    by_name = {row.variable: row for row in reversed(rows)}
    assert by_name["age"].test == "Welch t"
    assert "±" in by_name["age"].first
    assert by_name["size"].test == "Mann-Whitney"
    assert by_name["size"].missing == (0, 1)
    assert [row.level for row in rows if row.variable == "grade"] == ["1", "2", "10"]
    assert by_name["er"].test == "nothing to compare"
    tested = [row.p_value for row in rows if math.isfinite(row.p_value)]
    assert by_name["age"].p_adjusted == pytest.approx(min(1, 3 * by_name["age"].p_value))
    assert len(tested) == 3


def test_standardised_differences() -> None:
    first, second = np.array([1.0, 2, 3]), np.array([2.0, 3, 4])
    assert smd_continuous(first, second) == pytest.approx(-1)
    p, q = 0.4, 0.6
    expected = abs(p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / 2)
    assert smd_counts(np.array([[40, 60], [60, 40]])) == pytest.approx(expected)
    assert math.isnan(smd_counts(np.array([[0, 0], [1, 2]])))


def test_small_numbers_are_written_with_as_many_decimals_as_their_spread_needs() -> None:
    rng = np.random.default_rng(0)
    cells = {"adc": [str(v) for v in rng.normal(0.0012, 0.0002, 40)], "age": [str(v) for v in rng.normal(52, 12, 40)]}
    rows = {row.variable: row for row in make_table(cells, cells, dict.fromkeys(cells, "continuous"))}
    assert rows["adc"].first.startswith("0.0012") or rows["adc"].first.startswith("0.0011")
    assert " ± 0.0002" in rows["adc"].first or " ± 0.0001" in rows["adc"].first
    assert len(rows["age"].first.split(" ± ")[0].split(".")[1]) == 1
