"""How often does each interval hold the true value? Simulated cohorts, every metric, every method.

    python benchmarks/coverage.py [--cohorts 2000] [--workers 2] [--only PART ...] [--out coverage.json]

Cohorts are binormal with random class counts; probabilities are the true posterior, so that they are calibrated; for
ECE, ICI and the parts of the Brier score, which are 0 then, their log-odds are half as much again. The AUC is tried on
scores of three other shapes too. Paired tests are tried on two models of equal AUC whose scores correlate by 0.5, the
interaction test on two halves of a cohort.

"off by" is the mean distance from 95 % over the settings, and the method for which it is least is marked: the defaults
of `her2net.evaluate` follow it. "beaten" counts the settings in which a method is outside 93 to 97 % while another
method of the same metric is inside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from her2net.evaluate.bootstrap import bootstrap_values, interval_from_values
from her2net.evaluate.calibration import (
    N_BINS,
    assign_bins,
    brier,
    calibration_slope_intercept,
    error_interval,
    error_statistics,
    squared_errors,
)
from her2net.evaluate.comparisons import compare_aucs, compare_means, mcnemar_exact, paired_bootstrap
from her2net.evaluate.discrimination import auc_interval, partial_auc_bounds, pr_auc_interval
from her2net.evaluate.estimate import Estimate, two_sided_p
from her2net.evaluate.proportions import mcc_formula, predictive_values_at, threshold_metrics
from her2net.evaluate.reclassification import integrated_discrimination, net_reclassification
from her2net.evaluate.subgroups import subgroup_aucs
from her2net.evaluate.weighted import (
    auc_statistic,
    confusion_statistic,
    mean_statistic,
    partial_auc_statistic,
    pr_auc_statistic,
)

SIZES, AUCS, PREVALENCES = (48, 200), (0.6, 0.7, 0.8, 0.9, 0.95), (0.1, 0.3, 0.5)
THRESHOLD_SHIFT = 0.3
CORRELATION = 0.5
N_RESAMPLES = 500
OVERCONFIDENCE = 1.5
PREVALENCE_MEANT = 0.05
AUC_METHODS = ("delong", "delong-logit", "delong-logit-t", "newcombe", "binomial-exact")
BOOTSTRAPS = ("bca", "percentile", "logit")
PARTS = ("closed", "bootstrap", "errors", "shapes")


@dataclass(frozen=True)
class Setting:
    """A population and a cohort size."""

    n: int
    auc: float
    prevalence: float

    @property
    def separation(self) -> float:
        from scipy.special import ndtri

        return float(np.sqrt(2) * ndtri(self.auc))

    @property
    def threshold(self) -> float:
        return self.separation / 2 + THRESHOLD_SHIFT

    def posterior(self, scores: np.ndarray) -> np.ndarray:
        odds = np.log(self.prevalence / (1 - self.prevalence)) + self.separation * (scores - self.separation / 2)
        return 1 / (1 + np.exp(-odds))

    def overconfident(self, scores: np.ndarray) -> np.ndarray:
        """Return probabilities whose log-odds are too far from 0."""
        post = self.posterior(scores)
        return 1 / (1 + ((1 - post) / post) ** OVERCONFIDENCE)


def true_values(s: Setting) -> dict[str, float]:
    """Return the population value of every metric, by integration over the score where there is no formula."""
    from scipy.special import ndtr

    sens, spec = float(ndtr(s.separation - s.threshold)), float(ndtr(s.threshold))
    p, q = s.prevalence, 1 - s.prevalence
    cells = (p * sens, p * (1 - sens), q * spec, q * (1 - spec))
    t = np.linspace(12, -10, 400_001)
    tpr, fpr = ndtr(s.separation - t), ndtr(-t)
    precision = np.where(tpr > 0, p * tpr / np.maximum(p * tpr + q * fpr, 1e-300), 1.0)
    density = lambda mean: np.exp(-((t - mean) ** 2) / 2) / np.sqrt(2 * np.pi) * abs(t[1] - t[0])
    post = s.posterior(t)
    return {
        "auc": s.auc, "pr_auc": float(np.trapezoid(precision, tpr)),
        "partial_auc_specificity": _partial(fpr, tpr),
        "partial_auc_sensitivity": _partial(1 - tpr[::-1], 1 - fpr[::-1]),
        "accuracy": cells[0] + cells[2], "balanced_accuracy": (sens + spec) / 2, "sensitivity": sens,
        "specificity": spec, "ppv": cells[0] / (cells[0] + cells[3]), "npv": cells[2] / (cells[2] + cells[1]),
        "f1": 2 * cells[0] / (2 * cells[0] + cells[1] + cells[3]),
        "mcc": float(mcc_formula(*(np.array(c) for c in cells))),
        "lr_positive": sens / (1 - spec), "lr_negative": (1 - sens) / spec,
        "brier": float((p * density(s.separation) * (1 - post) ** 2 + q * density(0.0) * post**2).sum()),
        "calibration_slope": 1.0, "calibration_intercept": 0.0,
        "ppv_at_prevalence": PREVALENCE_MEANT * sens / (PREVALENCE_MEANT * sens + (1 - PREVALENCE_MEANT) * (1 - spec)),
        "npv_at_prevalence": 1 / (1 + PREVALENCE_MEANT / (1 - PREVALENCE_MEANT) * (1 - sens) / spec),
    } | _true_errors(s, t, p * density(s.separation) + q * density(0.0))  # fmt: skip


def _true_errors(s: Setting, t: np.ndarray, share: np.ndarray) -> dict[str, float]:
    """Return the errors of the overconfident probabilities in the population, where `share` lies at score `t`."""
    post, said = s.posterior(t), s.overconfident(t)
    bins = assign_bins(said)
    n, gap, events = (np.bincount(bins, part, N_BINS) for part in (share, share * (said - post), share * post))
    squares = lambda sums: float(np.divide(sums**2, n, out=np.zeros(N_BINS), where=n > 0).sum())
    return {
        "ece": float(np.abs(gap).sum()), "ici": float(share @ np.abs(said - post)), "brier_reliability": squares(gap),
        "brier_resolution": squares(events) - s.prevalence**2,
    }  # fmt: skip


def _partial(x: np.ndarray, y: np.ndarray, width: float = 0.1) -> float:
    inside = x <= width
    area = float(np.trapezoid(y[inside], x[inside]))
    return (1 + (area - width**2 / 2) / (width - width**2 / 2)) / 2


def draw(s: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and the scores of two models of the same AUC; cohorts have two cases of each class at least."""
    labels = np.zeros(s.n, dtype=np.int64)
    while not 2 <= labels.sum() <= s.n - 2:
        labels = (rng.random(s.n) < s.prevalence).astype(np.int64)
    common, own_a, own_b = rng.normal(size=(3, s.n))
    mix, signal = np.sqrt(CORRELATION), labels * s.separation
    return labels, mix * common + np.sqrt(1 - CORRELATION) * own_a + signal, (
        mix * common + np.sqrt(1 - CORRELATION) * own_b + signal
    )


def closed_intervals(s: Setting, labels: np.ndarray, scores: np.ndarray) -> Iterator[tuple[str, str, Estimate]]:
    """Yield metric, method, estimate for every method that needs no resampling."""
    called, post = scores >= s.threshold, s.posterior(scores)
    for method in AUC_METHODS:
        yield "auc", method, auc_interval(labels, scores, method=method)  # type: ignore[arg-type]
    for kind in ("wilson", "clopper-pearson"):
        for name, found in threshold_metrics(labels, called, method=kind).items():  # type: ignore[arg-type]
            closed = name in ("mcc", "lr_positive", "lr_negative")
            if not closed or kind == "wilson":
                yield name, "closed form" if closed else kind, found
    rates = threshold_metrics(labels, called)
    for name, found in predictive_values_at(PREVALENCE_MEANT, rates["lr_positive"], rates["lr_negative"]).items():
        yield f"{name}_at_prevalence", "closed form", found
    yield "pr_auc", "logit", pr_auc_interval(labels, scores)
    yield "brier", "normal, log scale", brier(labels, post)
    slope, intercept = calibration_slope_intercept(labels, post)
    yield "calibration_slope", "Wald", slope
    yield "calibration_intercept", "Wald", intercept


def bootstrap_intervals(
    s: Setting, labels: np.ndarray, scores: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, str, Estimate]]:
    """Yield metric, method, estimate for the bootstrap methods, all on the same resamples."""
    called, post = scores >= s.threshold, s.posterior(scores)
    statistics = {
        "auc": auc_statistic(labels, scores), "pr_auc": pr_auc_statistic(labels, scores),
        "partial_auc_sensitivity": partial_auc_statistic(labels, scores, focus="sensitivity", at_least=0.9),
        "partial_auc_specificity": partial_auc_statistic(labels, scores, focus="specificity", at_least=0.9),
        "mcc": confusion_statistic(labels, called, mcc_formula), "brier": mean_statistic(squared_errors(labels, post)),
        "f1": confusion_statistic(labels, called, lambda tp, fn, tn, fp: 2 * tp / (2 * tp + fp + fn)),
    }  # fmt: skip
    draws = bootstrap_values(statistics, labels, n_resamples=N_RESAMPLES, rng=rng)
    for name, statistic in statistics.items():
        value = float(statistic(np.ones((1, s.n)))[0])
        bounds = {"mcc": (-1.0, 1.0)}.get(name, partial_auc_bounds(0.9) if name.startswith("partial") else (0.0, 1.0))
        for method in BOOTSTRAPS:
            found = interval_from_values(value, draws[name], statistic, labels, None, method=method, bounds=bounds)  # type: ignore[arg-type]
            yield name, f"bootstrap {method}", found


def error_intervals(
    s: Setting, labels: np.ndarray, scores: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, str, Estimate]]:
    """Yield metric, method, estimate of the errors of overconfident probabilities."""
    errors = error_statistics(labels, s.overconfident(scores))
    draws = bootstrap_values(errors, labels, n_resamples=N_RESAMPLES, rng=rng)
    for name, statistic in errors.items():
        for kind in ("basic", "wider"):
            found = error_interval(statistic, draws[name], labels, None, method=kind)  # type: ignore[arg-type]
            yield name, f"bootstrap {kind}", found
        value = float(statistic(np.ones((1, s.n)))[0])
        for method in ("bca", "percentile"):
            found = interval_from_values(value, draws[name], statistic, labels, None, method=method)  # type: ignore[arg-type]
            yield name, f"bootstrap {method}", found


def tests_of_nothing(
    s: Setting, labels: np.ndarray, scores: np.ndarray, rival: np.ndarray, rng: np.random.Generator | None
) -> Iterator[tuple[str, float]]:
    """Yield test, p-value where nothing is to be found: two models of equal performance, two subgroups that are alike.

    Those that resample come only with an `rng`.
    """
    groups = np.arange(s.n) % 2  # labels are in random order
    yield "subgroups, Welch", subgroup_aucs(labels, scores, groups.astype(str), np.arange(s.n)).interaction_p
    auc, posts = compare_aucs(labels, scores, rival), [s.posterior(x) for x in (scores, rival)]
    yield "DeLong paired", auc.p_value
    yield "DeLong paired, normal always", two_sided_p(auc.statistic)
    yield "McNemar exact", mcnemar_exact(*((x >= s.threshold) == (labels == 1) for x in (scores, rival))).p_value
    yield "Brier, paired t", compare_means(*(squared_errors(labels, post) for post in posts)).p_value
    nri, idi = net_reclassification(labels, *posts)["nri"], integrated_discrimination(labels, *posts)["idi"]
    yield "NRI", nri.p_value
    yield "NRI, by its interval", float(nri.estimate.ci_low <= 0 <= nri.estimate.ci_high)
    yield "IDI", idi.p_value
    yield "IDI, normal always", two_sided_p(idi.estimate.value / idi.error) if idi.error > 0 else np.nan
    if rng is not None:
        makers = {"AUC": (auc_statistic, scores, rival), "PR-AUC": (pr_auc_statistic, scores, rival),
                  "Brier": (lambda y, p: mean_statistic(squared_errors(y, p)), *posts)}  # fmt: skip
        for name, (make, a, b) in makers.items():
            found = paired_bootstrap(make(labels, a), make(labels, b), labels, n_resamples=N_RESAMPLES, rng=rng)
            yield f"paired bootstrap, {name}", found.p_value


def simulate(task: tuple[Setting, int, int, Collection[str]]) -> dict[str, list[float]]:
    """Return per metric and method: cohorts with an interval, of those holding the truth; and rejections of tests."""
    s, n_cohorts, seed, parts = task
    rng, truth = np.random.default_rng(seed), true_values(s)
    counts: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for _ in range(n_cohorts):
        labels, scores, rival = draw(s, rng)
        made = chain(
            closed_intervals(s, labels, scores) if "closed" in parts else (),
            bootstrap_intervals(s, labels, scores, rng) if "bootstrap" in parts else (),
            error_intervals(s, labels, scores, rng) if "errors" in parts else (),
        )
        for name, method, found in made:
            if np.isfinite(found.ci_low) or np.isfinite(found.ci_high):
                high = np.inf if np.isnan(found.ci_high) else found.ci_high
                counts[f"{name}|{method}"][0] += 1
                counts[f"{name}|{method}"][1] += found.ci_low <= truth[name] <= high
        if "closed" not in parts:
            continue
        for name, p in tests_of_nothing(s, labels, scores, rival, rng if "bootstrap" in parts else None):
            if np.isfinite(p):
                counts[f"size|{name}"][0] += 1
                counts[f"size|{name}"][1] += p < 0.05
    return dict(counts)


@dataclass(frozen=True)
class Shape:
    """A population of scores that is not binormal with equal variances, to see which AUC intervals lean on that.

    Attributes:
        spread: standard deviation of the positives; that of the negatives is 1.
        cuts: where a score is cut into grades; none for a continuous one.
    """

    name: str
    spread: float = 1.0
    cuts: tuple[float, ...] = ()

    def true_auc(self, separation: float) -> float:
        from scipy.special import ndtr

        if not self.cuts:
            return float(ndtr(separation / np.hypot(1, self.spread)))
        edges = np.array([-np.inf, *self.cuts, np.inf])
        pos, neg = np.diff(ndtr((edges - separation) / self.spread)), np.diff(ndtr(edges))
        return float(pos @ (np.cumsum(neg) - neg / 2))

    def draw(self, labels: np.ndarray, separation: float, rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(size=len(labels))
        scores = np.where(labels == 1, separation + self.spread * noise, noise)
        return np.searchsorted(self.cuts, scores).astype(float) if self.cuts else scores


SHAPES = (Shape("positives spread x 2", 2.0), Shape("positives spread x 0.5", 0.5),
          Shape("five grades", cuts=(-0.5, 0.3, 0.9, 1.6)))  # fmt: skip


def simulate_shape(task: tuple[Shape, Setting, int, int]) -> dict[str, list[float]]:
    """Return the counts of the AUC intervals for scores of another shape."""
    from scipy.special import ndtri

    shape, s, n_cohorts, seed = task
    rng, counts = np.random.default_rng(seed), defaultdict(lambda: [0, 0])
    separation = float(ndtri(s.auc) * np.hypot(1, shape.spread))
    truth = shape.true_auc(separation)
    for _ in range(n_cohorts):
        labels, _, _ = draw(s, rng)
        scores = shape.draw(labels, separation, rng)
        for method in AUC_METHODS:
            found = auc_interval(labels, scores, method=method)  # type: ignore[arg-type]
            if np.isfinite(found.ci_low):
                counts[f"auc, {shape.name}|{method}"][0] += 1
                counts[f"auc, {shape.name}|{method}"][1] += found.ci_low <= truth <= found.ci_high
    return dict(counts)


def run_shapes(n_cohorts: int, workers: int, settings: list[Setting]) -> dict[str, dict[str, float]]:
    """Return metric|method -> setting -> share, for every shape."""
    tasks = [(shape, s, n_cohorts, seed) for shape in SHAPES for seed, s in enumerate(settings)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return _collect([task[1] for task in tasks], pool.map(simulate_shape, tasks))


def run(
    n_cohorts: int, workers: int, settings: list[Setting], parts: Collection[str]
) -> dict[str, dict[str, float]]:
    """Return metric|method -> setting -> share, in parallel over settings."""
    tasks = [(s, n_cohorts, seed, parts) for seed, s in enumerate(settings)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return _collect(settings, pool.map(simulate, tasks))


def _collect(settings: list[Setting], found: Iterable[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for s, counts in zip(settings, found, strict=True):
        print(s, file=sys.stderr, flush=True)
        for key, (n, held) in counts.items():
            table[key][f"n={s.n} auc={s.auc} prevalence={s.prevalence}"] = held / n if n else float("nan")
    return dict(table)


def pool_shapes(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the rows of the AUC over all four shapes of scores together."""
    pooled: dict[str, dict[str, float]] = defaultdict(dict)
    for key, shares in table.items():
        name, method = key.split("|")
        if name.split(",")[0] == "auc" and method in AUC_METHODS:
            pooled[f"auc, all shapes|{method}"] |= {f"{name} {setting}": share for setting, share in shares.items()}
    return dict(pooled)


def format_table(table: dict[str, dict[str, float]]) -> str:
    """Return one line per metric and method, the nearest to 95 % of each metric marked."""
    by_metric: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for key, shares in table.items():
        name, method = key.split("|")
        by_metric[name][method] = shares
    header = f"{'metric':<29}{'method':<30}{'min':>8}{'mean':>8}{'max':>8}{'off by':>8}{'93-97':>8}{'beaten':>8}"
    lines = [header]
    for name, methods in sorted(by_metric.items(), key=lambda item: item[0] == "size"):
        target, reach = (0.05, 0.02) if name == "size" else (0.95, 0.02)
        inside = {m: {s for s, share in shares.items() if abs(share - target) <= reach} for m, shares in methods.items()}
        off = {m: float(np.abs(np.array(list(shares.values())) - target).mean()) for m, shares in methods.items()}
        managed = set().union(*inside.values())
        for method, shares in methods.items():
            values, beaten = np.array(list(shares.values())), len(managed & set(shares) - inside[method])
            mark = "  nearest" if name != "size" and off[method] == min(off.values()) else ""
            lines.append(
                f"{name:<29}{method:<30}{values.min():8.3f}{values.mean():8.3f}{values.max():8.3f}{off[method]:8.4f}"
                f"{f'{len(inside[method])}/{len(values)}':>8}{beaten:8d}{mark}"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="the bootstrap and errors take most time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = [Setting(*values) for values in product(SIZES, AUCS, PREVALENCES)]
    start = time.perf_counter()
    table = run(args.cohorts, args.workers, settings, args.only)
    if "shapes" in args.only:
        table |= run_shapes(args.cohorts, args.workers, settings)
        table |= pool_shapes(table)
    print(format_table(table))
    print(f"{args.cohorts} cohorts in each of {len(settings)} settings, {N_RESAMPLES} resamples, "
          f"{time.perf_counter() - start:.0f} s, {args.workers} workers")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
