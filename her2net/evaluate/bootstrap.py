"""The stratified patient bootstrap: whole patients are drawn again, within their class.

Resamples are matrices of weights, worked through in blocks of bounded memory. In large cohorts cases of neighbouring
scores are one group, whose count is drawn: the cost no longer grows with the number of cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from her2net.evaluate.estimate import NAN, Estimate, is_clustered, z_quantile
from her2net.evaluate.weighted import Statistic

BootstrapMethod = Literal["bca", "percentile", "logit"]
METHOD_NAMES = {"bca": "BCa", "percentile": "percentile", "logit": "logit"}
N_RESAMPLES = 2000
MAX_BOOTSTRAP_CELLS = 200_000_000
"""Resamples × cases; beyond that there are fewer resamples, never fewer than 200."""
BLOCK_BYTES = 64 << 20
MAX_JACKKNIFE = 500
"""Beyond that many patients, they leave the jackknife in groups: the acceleration is of the same order."""
MIN_DEFINED = 0.9
"""Share of resamples in which a metric has to be defined."""
SAME, NO_VARIANCE, NO_WIDTH = 1e-12, "no variance: alike in every resample", "no width: alike in nearly every resample"
"""Such as an area of 1: that no resample has another says nothing of other patients."""
GROUPED_FROM = 100_000
N_GROUPS = 2_000
"""Cases beyond `GROUPED_FROM`, each its own patient, are resampled in that many groups of neighbouring scores."""


def n_resamples_for(n: int, wanted: int = 2000) -> int:
    """Return how many resamples n cases get that are not in groups: 2,000 up to 100,000, then fewer, at least 200."""
    return int(np.clip(MAX_BOOTSTRAP_CELLS // max(n, 1), 200, wanted))


def _owners(labels: np.ndarray, patients: np.ndarray | None) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Return the owner index of each case (`None`: each its own) and, per stratum, the owners in it.

    A stratum is the set of classes that a patient has, so that each class keeps its patients in every resample.
    """
    labels = np.asarray(labels)
    if patients is None or len(np.unique(patients)) == len(patients):
        return None, [np.flatnonzero(labels == c) for c in np.unique(labels)]
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    kinds = np.zeros(int(owner.max()) + 1, dtype=np.int64)
    np.bitwise_or.at(kinds, owner, np.left_shift(1, labels.astype(np.int64)))
    return owner, [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def group_cases(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the cases as they are; or, of many cases that are each their own patient, groups and their counts.

    Groups part the scores at 2,000 quantiles and at 0.1, 0.2, ..., so that bins of probabilities stay what they are.

    Returns:
        labels (m,), mean scores (m,) and counts (m,) of the groups; `None` for the counts of cases as they are.
    """
    if len(labels) <= GROUPED_FROM or is_clustered(patients):
        return labels, scores, None
    edges = np.unique([*np.quantile(scores, np.linspace(0, 1, N_GROUPS + 1)), *np.linspace(0, 1, 11)])
    group, n_groups = np.searchsorted(edges, scores, side="right"), len(edges) + 1
    mean = np.bincount(group, scores, n_groups) / np.maximum(np.bincount(group, minlength=n_groups), 1)
    classes = np.unique(labels)
    counts = np.stack([np.bincount(group[labels == c], minlength=n_groups) for c in classes])
    row, column = np.nonzero(counts)
    return classes[row], mean[column], counts[row, column]


def resample_weights(
    labels: np.ndarray, patients: np.ndarray | None, n_resamples: int, rng: np.random.Generator,
    counts: np.ndarray | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield blocks of weights (block, n): how often each case is drawn.

    Args:
        labels: (n,) class of each case.
        patients: (n,) owner of each case; `None` if each case is its own patient.
        n_resamples: rows of all blocks together.
        rng: source of randomness.
        counts: (n,) if the rows are groups of cases, how many; the owners do not matter then.
    """
    if counts is not None:
        yield from _group_weights(labels, counts, n_resamples, rng)
        return
    owner, strata = _owners(labels, patients)
    n_owners = sum(len(stratum) for stratum in strata)
    block = max(1, min(n_resamples, BLOCK_BYTES // (8 * max(len(labels), 1))))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        weights = np.empty((size, n_owners))
        for stratum in strata:
            count = len(stratum)
            drawn = rng.integers(0, count, (size, count), dtype=np.int32)
            drawn += np.arange(size, dtype=np.int32)[:, None] * count
            weights[:, stratum] = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield weights if owner is None else weights[:, owner]


def _group_weights(
    labels: np.ndarray, counts: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    block = max(1, min(n_resamples, BLOCK_BYTES // (8 * len(labels))))
    for start in range(0, n_resamples, block):
        weights = np.empty((min(block, n_resamples - start), len(labels)))
        for c in np.unique(labels):
            own, total = labels == c, int(counts[labels == c].sum())
            weights[:, own] = rng.multinomial(total, counts[own] / total, len(weights))
        yield weights


def bootstrap_values(
    statistics: Mapping[str, Statistic], labels: np.ndarray, patients: np.ndarray | None = None, *,
    n_resamples: int = N_RESAMPLES, rng: np.random.Generator | None = None, counts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Evaluate several statistics on the same resamples.

    Args:
        counts: as `group_cases` returns them, if the statistics are of groups.

    Returns:
        name -> (n_resamples,) values.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in resample_weights(labels, patients, n_resamples, rng, counts):
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def bootstrap_interval(
    statistic: Statistic, labels: np.ndarray, patients: np.ndarray | None = None, *, method: BootstrapMethod = "bca",
    n_resamples: int = N_RESAMPLES, alpha: float = 0.05, rng: np.random.Generator | None = None,
    bounds: tuple[float, float] = (0.0, 1.0), counts: np.ndarray | None = None, value: float | None = None,
) -> Estimate:  # fmt: skip
    """Return a statistic with its bootstrap interval.

    Args:
        statistic: weights (b, n) -> values (b,).
        labels: (n,) class of each case, by which patients are stratified.
        patients: (n,) owner of each case.
        method: `bca` (bias-corrected and accelerated), `percentile`, or `logit` (normal on the logit scale, with the
            standard error of the resamples).
        bounds: least and largest possible value, for `logit`.
        counts: as `group_cases` returns them, if the statistic is of groups.
        value: of the statistic in all cases, where it is known more exactly than from groups.

    Source:
        Efron 1987, doi:10.1080/01621459.1987.10478410; stratified: Davison & Hinkley 1997, ISBN 9780521574716, 3.2.
    """
    value = float(statistic(np.ones((1, len(labels))))[0]) if value is None else value
    values = bootstrap_values({"": statistic}, labels, patients, n_resamples=n_resamples, rng=rng, counts=counts)[""]
    left_out = None if counts is None else np.zeros(1)  # the acceleration of so many cases is nil
    return interval_from_values(value, values, statistic, labels, patients, method=method, alpha=alpha, bounds=bounds,
                                left_out=left_out)


def interval_from_values(
    value: float, values: np.ndarray, statistic: Statistic, labels: np.ndarray, patients: np.ndarray | None, *,
    method: BootstrapMethod, alpha: float = 0.05, bounds: tuple[float, float] = (0.0, 1.0),
    left_out: np.ndarray | None = None,
) -> Estimate:  # fmt: skip
    """Turn the values (n_resamples,) of a statistic into an interval.

    Args:
        left_out: (n_patients,) values without each patient, if they are known; else BCa computes them.
    """
    clustered = "patients" if patients is not None else "cases"
    name = f"bootstrap {METHOD_NAMES[method]}, {clustered}, {len(values)}"
    if not np.isfinite(value):
        return Estimate(NAN, NAN, NAN, name, "undefined in these cases")
    kept = values[np.isfinite(values)]
    if len(kept) < MIN_DEFINED * len(values):
        return Estimate(value, NAN, NAN, name, f"undefined in {len(values) - len(kept)} of {len(values)} resamples")
    if np.ptp(kept) < SAME:
        return Estimate(value, NAN, NAN, name, NO_VARIANCE)
    if method == "logit":
        return Estimate(value, *_logit_limits(value, kept, len(labels), bounds, alpha), name)
    tails = np.array([alpha / 2, 1 - alpha / 2])
    if method == "bca":
        left_out = _jackknife(statistic, labels, patients) if left_out is None else left_out
        tails = _bca_tails(value, kept, left_out, tails)
    low, high = (float(limit) for limit in np.quantile(kept, tails))
    if max(high, value) - min(low, value) < SAME:
        return Estimate(value, NAN, NAN, name, NO_WIDTH)
    return Estimate(value, min(low, value), max(high, value), name)


def _logit_limits(
    value: float, values: np.ndarray, n: int, bounds: tuple[float, float], alpha: float
) -> tuple[float, float]:
    """Values at a bound are moved in by a quarter of a case."""
    least, span = bounds[0], bounds[1] - bounds[0]
    inside = np.clip((np.append(values, value) - least) / span, 0.25 / n, 1 - 0.25 / n)
    odds = np.log(inside) - np.log1p(-inside)
    ends = odds[-1] + np.array([-1, 1]) * z_quantile(alpha) * odds[:-1].std(ddof=1)
    low, high = least + span / (1 + np.exp(-ends))
    return float(min(low, value)), float(max(high, value))


def _bca_tails(value: float, values: np.ndarray, left_out: np.ndarray, tails: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr, ndtri

    share = ((values < value).mean() + (values <= value).mean()) / 2
    bias = ndtri(np.clip(share, 1 / (len(values) + 1), 1 - 1 / (len(values) + 1)))
    deviation = left_out.mean() - left_out
    squares = float((deviation**2).sum())
    acceleration = float((deviation**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = bias + ndtri(tails)
    return np.clip(ndtr(bias + shifted / (1 - acceleration * shifted)), 0.0, 1.0)


def _jackknife(statistic: Statistic, labels: np.ndarray, patients: np.ndarray | None) -> np.ndarray:
    owner, strata = _owners(labels, patients)
    n_owners = sum(len(stratum) for stratum in strata)
    group = np.empty(n_owners, dtype=np.int64)
    group[np.concatenate(strata)] = np.arange(n_owners) % min(n_owners, MAX_JACKKNIFE)
    group = group if owner is None else group[owner]
    n_groups, parts = int(group.max()) + 1, []
    block = max(1, BLOCK_BYTES // (8 * len(labels)))
    for start in range(0, n_groups, block):
        members = np.arange(start, min(start + block, n_groups))
        parts.append(statistic((group[None] != members[:, None]).astype(float)))
    left_out = np.concatenate(parts)
    return left_out[np.isfinite(left_out)] if np.isfinite(left_out).any() else np.zeros(1)
