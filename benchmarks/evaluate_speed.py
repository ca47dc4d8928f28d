"""Speed of the statistics: DeLong of a million cases, against quadratic DeLong and a bootstrap loop over scikit-learn.

    python benchmarks/evaluate_speed.py [--cases 1000000] [--repeats 5]

The rivals do the same work: their figures are compared with ours first. Quadratic DeLong cannot hold a million cases
(10^12 pairs), so it is timed where it can, and its time is scaled by the square of n, as its pairs are.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from her2net.evaluate.comparisons import compare_aucs
from her2net.evaluate.delong import auc_covariance
from her2net.evaluate.discrimination import bootstrap_aucs

QUADRATIC_CASES, LOOP_CASES = 10_000, (200, 1_000_000)


def simulate(n: int, n_models: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and scores (n_models, n) with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    scores = rng.normal(size=(n_models, n)) + labels
    scores[-1] = np.round(scores[-1], 2)
    return labels, scores


def quadratic_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong by all pairs, a block of positives at a time."""
    v10, v01 = [], []
    for row in scores:
        pos, neg = row[labels == 1], row[labels == 0]
        wins_neg, own = np.zeros(len(neg)), []
        for start in range(0, len(pos), 256):
            block = pos[start : start + 256, None]
            wins = (block > neg) + 0.5 * (block == neg)
            own.append(wins.mean(axis=1))
            wins_neg += wins.sum(axis=0)
        v10.append(np.concatenate(own))
        v01.append(wins_neg / len(pos))
    one, two = np.stack(v10), np.stack(v01)
    return one.mean(axis=1), np.cov(one) / one.shape[1] + np.cov(two) / two.shape[1]


def sklearn_bootstrap(labels: np.ndarray, scores: np.ndarray, n_resamples: int) -> np.ndarray:
    """The loop that papers run: stratified draws, roc_auc_score of each."""
    from sklearn.metrics import roc_auc_score

    rng, pos, neg = np.random.default_rng(0), np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    values = []
    for _ in range(n_resamples):
        rows = np.concatenate([rng.choice(pos, len(pos)), rng.choice(neg, len(neg))])
        values.append(roc_auc_score(labels[rows], scores[rows]))
    return np.array(values)


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    labels, scores = simulate(args.cases)
    whole = median_s(lambda: auc_covariance(labels, scores), args.repeats)
    pairs = median_s(lambda: [compare_aucs(labels, scores[a], scores[b]) for a, b in ((0, 1), (0, 2), (1, 2))], 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"DeLong, {args.cases} cases x 3 models: {whole:.2f} s (three paired tests one by one: {pairs:.2f} s); "
          f"peak memory of the process {peak:.2f} GiB")  # fmt: skip

    small_labels, small = simulate(QUADRATIC_CASES)
    np.testing.assert_allclose(auc_covariance(small_labels, small)[1], quadratic_covariance(small_labels, small)[1],
                               rtol=1e-9)  # fmt: skip
    ours = median_s(lambda: auc_covariance(small_labels, small), args.repeats)
    theirs = median_s(lambda: quadratic_covariance(small_labels, small), args.repeats)
    scaled = theirs * (args.cases / QUADRATIC_CASES) ** 2
    print(f"quadratic DeLong, {QUADRATIC_CASES} cases: {theirs:.2f} s against {ours:.4f} s, ratio {theirs / ours:.0f}; "
          f"scaled to {args.cases} cases: {scaled:.0f} s, ratio {scaled / whole:.0f}")  # fmt: skip

    for n, n_resamples in zip(LOOP_CASES, (2000, 20), strict=True):
        labels, scores = simulate(n, 1)
        run_ours = lambda labels=labels, row=scores[0], n=n_resamples: bootstrap_aucs(labels, row, n_resamples=n)
        run_theirs = lambda labels=labels, row=scores[0], n=n_resamples: sklearn_bootstrap(labels, row, n)
        a, b = run_ours(), run_theirs()
        if abs(a.mean() - b.mean()) > 5 * b.std() / np.sqrt(n_resamples) + 1e-3 or not 0.4 < a.std() / b.std() < 2.5:
            print(f"unequal work at n = {n}: {a.mean()} ± {a.std()} against {b.mean()} ± {b.std()}")
            return 1
        ours, theirs = median_s(run_ours, args.repeats), median_s(run_theirs, max(1, args.repeats // 2))
        print(f"bootstrap of the AUC, {n} cases, {n_resamples} resamples: scikit-learn loop {theirs:.2f} s against "
              f"{ours:.3f} s, ratio {theirs / ours:.0f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
