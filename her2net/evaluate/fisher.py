"""Fisher's exact test of tables of any size."""

from __future__ import annotations

import numpy as np

MAX_TABLES = 3_000_000
N_SAMPLED = 200_000
AS_LIKELY = 1e-7
"""Relative slack in "no likelier than the observed table", against rounding."""


def fisher_exact(table: np.ndarray) -> tuple[float, str]:
    """Return the two-sided p-value of a table (r, c) with no empty row or column, and the test's name.

    Every table with the same margins is enumerated; where there are more than three million, 200,000 are drawn
    instead (fixed seed), and the name says so.

    Source:
        Fisher 1935, doi:10.2307/2342435; r × c: Freeman & Halton 1951, doi:10.1093/biomet/38.1-2.141.
    """
    from scipy.special import gammaln

    table = np.asarray(table, dtype=np.int64)
    if table.shape[0] > table.shape[1]:
        table = table.T
    table = table[:, np.argsort(table.sum(axis=0))]
    rows, columns, n = table.sum(axis=1), table.sum(axis=0), table.sum()
    constant = float(gammaln(rows + 1).sum() + gammaln(columns + 1).sum() - gammaln(n + 1))
    observed = constant - float(gammaln(table + 1).sum())
    log_probs = _enumerate(rows, columns)
    if log_probs is None:
        return _sampled(rows, columns, constant, observed), f"Fisher, {N_SAMPLED} sampled tables"
    log_probs += constant
    no_likelier = log_probs <= observed + AS_LIKELY
    return float(min(1.0, np.exp(log_probs[no_likelier]).sum())), "Fisher exact"


def _enumerate(rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """Return minus the summed log factorials of every table with these margins; `None` if there are too many."""
    from scipy.special import gammaln

    left, logs = rows[None], np.zeros(1)
    for total in columns[:-1]:
        parts = _compositions(int(total), rows)
        if parts is None or len(left) * len(parts) > 8 * MAX_TABLES:
            return None
        fits = (parts[None] <= left[:, None]).all(axis=2)
        state, part = np.nonzero(fits)
        if len(state) > MAX_TABLES:
            return None
        left, logs = left[state] - parts[part], logs[state] - gammaln(parts + 1).sum(axis=1)[part]
    return logs - gammaln(left + 1).sum(axis=1)


def _compositions(total: int, limits: np.ndarray) -> np.ndarray | None:
    """Return every way (k, r) to write the total as r counts, none above its limit."""
    found = np.zeros((1, 0), dtype=np.int64)
    spent = np.zeros(1, dtype=np.int64)
    for limit in limits[:-1]:
        counts = np.arange(min(int(limit), total) + 1)
        if len(found) * len(counts) > MAX_TABLES:
            return None
        found = np.hstack([np.repeat(found, len(counts), axis=0), np.tile(counts, len(found))[:, None]])
        spent = np.repeat(spent, len(counts)) + found[:, -1]
        found, spent = found[spent <= total], spent[spent <= total]
    last = total - spent
    return np.hstack([found, last[:, None]])[last <= limits[-1]]


def _sampled(rows: np.ndarray, columns: np.ndarray, constant: float, observed: float) -> float:
    from scipy.special import gammaln
    from scipy.stats import random_table

    as_likely = 0
    rng = np.random.default_rng(0)
    for _ in range(10):
        drawn = random_table(rows, columns).rvs(N_SAMPLED // 10, random_state=rng)
        log_probs = constant - gammaln(drawn + 1).sum(axis=(1, 2))
        as_likely += int((log_probs <= observed + AS_LIKELY).sum())
    return (as_likely + 1) / (N_SAMPLED + 1)
