"""Speed of the statistics: DeLong of a million cases, against quadratic DeLong and a bootstrap loop over scikit-learn.

    python benchmarks/evaluate_speed.py [--cases 1000000] [--rounds 3]

The rivals do the same work: their figures are compared with ours first. Quadratic DeLong cannot hold a million cases
(2 * 10^11 pairs), so it is timed where it can; a second row scales its time by the square of n, as its pairs are.
"""

from __future__ import annotations

import argparse
import resource
import sys

import numpy as np
from harness import Cost, compare, finish, measure, refuse, take_turns

from her2net.evaluate.comparisons import compare_aucs
from her2net.evaluate.delong import auc_covariance
from her2net.evaluate.discrimination import bootstrap_aucs

QUADRATIC_CASES, LOOP_CASES = 20_000, 200


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


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []

    labels, scores = simulate(args.cases)
    run_whole = lambda: auc_covariance(labels, scores)
    run_pairs = lambda: [compare_aucs(labels, scores[a], scores[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    whole = [measure(run_whole) for _ in range(args.rounds)]
    pairs = measure(run_pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    small_labels, small = simulate(QUADRATIC_CASES)
    np.testing.assert_allclose(auc_covariance(small_labels, small)[1], quadratic_covariance(small_labels, small)[1],
                               rtol=1e-9)  # fmt: skip
    cost = take_turns({"ours": lambda: [auc_covariance(small_labels, small) for _ in range(20)],
                       "theirs": lambda: quadratic_covariance(small_labels, small)}, args.rounds)  # fmt: skip
    ours = [Cost(c.processor / 20, c.wall / 20) for c in cost["ours"]]
    what = f"three models; a million cases have 2 * 10^11 pairs, so {QUADRATIC_CASES} are compared as they are"
    rows.append(compare(f"DeLong, {QUADRATIC_CASES} cases: quadratic DeLong", ours, cost["theirs"], target=100, note=what))
    growth = (args.cases / QUADRATIC_CASES) ** 2
    scaled = [Cost(c.processor * growth, c.wall * growth) for c in cost["theirs"]]
    rows.append(compare(f"DeLong, {args.cases} cases: quadratic DeLong, scaled by n²", whole, scaled, target=100,
                        note=f"extrapolated, not run; three paired tests one by one {pairs.processor:.1f} s; "
                             f"peak of the process {peak:.2f} GiB"))  # fmt: skip
    for n, n_resamples in zip((LOOP_CASES, args.cases), (2000, 20), strict=True):
        labels, scores = simulate(n, 1)
        run_ours = lambda labels=labels, row=scores[0], n=n_resamples: bootstrap_aucs(labels, row, n_resamples=n)
        run_theirs = lambda labels=labels, row=scores[0], n=n_resamples: sklearn_bootstrap(labels, row, n)
        a, b = run_ours(), run_theirs()
        if abs(a.mean() - b.mean()) > 5 * b.std() / np.sqrt(n_resamples) + 1e-3 or not 0.4 < a.std() / b.std() < 2.5:
            refuse(f"bootstrap at n = {n}: {a.mean()} ± {a.std()} against {b.mean()} ± {b.std()}")
        cost = take_turns({"ours": run_ours, "theirs": run_theirs}, args.rounds, warm_up=False)
        rows.append(compare(f"bootstrap of the AUC, {n} cases, {n_resamples} resamples: scikit-learn in a loop",
                            cost["ours"], cost["theirs"], target=20))  # fmt: skip
    return finish(rows)


if __name__ == "__main__":
    sys.exit(main())
