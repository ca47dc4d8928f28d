"""How often do paired tests reject in small cohorts, where nothing is to be found? How often do intervals of mean AUCs hold?

    python benchmarks/small_cohorts.py [--cohorts 1000] [--resamples 1000]

Two models of the same quality, whose scores share what they know of a case; weak ones have a mean AUC of 0.6. A test that
holds its size rejects in 5 % at 0.05 and in 1 % at 0.01, or in fewer. An interval should hold the AUC of a large cohort in 95 %.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_interval
from her2net.evaluate.calibration import squared_errors
from her2net.evaluate.comparisons import compare_aucs, compare_means, paired_bootstrap
from her2net.evaluate.estimate import Estimate
from her2net.evaluate.multiclass import macro_auc
from her2net.evaluate.reclassification import integrated_discrimination
from her2net.evaluate.weighted import auc_statistic, mean_statistic, pr_auc_statistic

TWO_CLASSES = tuple((n, n) for n in (3, 4, 5, 10, 20))
THREE_CLASSES = tuple(sizes for n in (2, 3, 4, 5, 8, 20) for sizes in dict.fromkeys([(n, n, n), (n, 20, 20)]))
UNEQUAL = ((8, 8, 7, 1), (8, 8, 7, 2), (8, 8, 7, 3), (20, 20, 6), (20, 20, 16, 6), (30, 30, 30), (100, 80, 20))
SIGNALS = (0.0, 1.2, 2.5)
"""At a noise of 1 a mean AUC of 0.5, about 0.85 and about 0.99."""
MODELS = {"fair": (1.0, 0.7), "weak": (0.4, 1.0)}
"""What the scores say of the class, and the spread of either of the two parts of their noise."""


def draw(sizes: Sequence[int], signal: float, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return labels (n,) and the probabilities (n, n_classes) of two models."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    common = signal * np.eye(len(sizes))[labels] + rng.normal(0, noise, (len(labels), len(sizes)))
    powers = [np.exp(common + rng.normal(0, noise, common.shape)) for _ in "ab"]
    return labels, [power / power.sum(axis=1, keepdims=True) for power in powers]


def p_values(labels: np.ndarray, a: np.ndarray, b: np.ndarray, n_resamples: int, rng: np.random.Generator) -> dict[str, float]:
    """Return test -> p in one cohort."""
    errors = [squared_errors(labels, probs) for probs in (a, b)]
    resampled = lambda one, two: paired_bootstrap(one, two, labels, n_resamples=n_resamples, rng=rng).p_value
    found = {
        "Brier, paired t": compare_means(*errors).p_value,
        "Brier, paired bootstrap": resampled(*(mean_statistic(e) for e in errors)),
    }
    if a.shape[1] == 2:
        found["PR-AUC, paired bootstrap"] = resampled(*(pr_auc_statistic(labels, probs[:, 1]) for probs in (a, b)))
        return found | {"IDI, t": integrated_discrimination(labels, b[:, 1], a[:, 1])["idi"].p_value}
    return found | {"mean AUC, DeLong": compare_aucs(labels, a, b).p_value}


def mean_aucs(labels: np.ndarray, probs: np.ndarray, n_resamples: int, rng: np.random.Generator) -> dict[str, Estimate]:
    """Return method -> one-vs-rest mean AUC with its interval."""
    one = [auc_statistic((labels == c).astype(int), probs[:, c]) for c in range(probs.shape[1])]
    mean = lambda weights: np.mean([statistic(weights) for statistic in one], axis=0)
    resampled = bootstrap_interval(mean, labels, method="percentile", n_resamples=n_resamples, rng=rng)
    return {"DeLong, logit, t": macro_auc(labels, probs), "bootstrap percentile": resampled}


def print_coverage(n_cohorts: int, n_resamples: int) -> None:
    """Print how often each interval of the mean AUC holds that of a cohort of the same shares, 200 times as large."""
    for sizes in UNEQUAL:
        held = defaultdict(list)
        for signal in SIGNALS:
            rng = np.random.default_rng(sizes)
            labels, (probs, _) = draw([200 * n for n in sizes], signal, 0.5**0.5, rng)
            truth = macro_auc(labels, probs).value
            for _ in range(n_cohorts):
                labels, (probs, _) = draw(sizes, signal, 0.5**0.5, rng)
                for name, found in mean_aucs(labels, probs, n_resamples, rng).items():
                    held[name, signal].append(found.ci_low <= truth <= found.ci_high)
        for name in dict.fromkeys(name for name, _ in held):
            shares = " ".join(f"{np.mean(held[name, signal]):8.3f}" for signal in SIGNALS)
            print(f"{', '.join(map(str, sizes)):<14} {name:<35} {shares}", flush=True)


def main() -> int:
    """Print one line per test, models and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    print(f"{'of each class':<14} {'models':<7} {'test':<27} {'at 0.05':>8} {'at 0.01':>8}")
    for sizes in (*TWO_CLASSES, *THREE_CLASSES):
        for models, (signal, noise) in MODELS.items():
            found = defaultdict(list)
            for seed in range(args.cohorts):
                rng = np.random.default_rng([seed, *sizes])
                labels, (a, b) = draw(sizes, signal, noise, rng)
                for name, p in p_values(labels, a, b, args.resamples, rng).items():
                    found[name].append(p)
            for name, values in found.items():
                shares = " ".join(f"{np.mean(np.array(values) < level):8.3f}" for level in (0.05, 0.01))
                print(f"{', '.join(map(str, sizes)):<14} {models:<7} {name:<27} {shares}", flush=True)
    print(f"\n{'of each class':<14} {'interval of the mean AUC':<35} {'0.5':>8} {'0.85':>8} {'0.99':>8}")
    print_coverage(args.cohorts, args.resamples)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
