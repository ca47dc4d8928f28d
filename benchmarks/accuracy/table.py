"""The table of all cohorts and methods from `benchmarks/results/accuracy.jsonl`.

    python benchmarks/accuracy/table.py
    python benchmarks/accuracy/table.py --against auto      # what a changed rule brings, and the mean over cohorts

AUC is the mean over the seeds that a method has. Its interval comes from a bootstrap over patients within class, with the
same patients drawn for every method and seed of a real cohort; a synthetic cohort has other patients for each seed, so there
patients are drawn within each seed and seeds are drawn as well. The difference is that of a method to the best rival of
her2net, or to the method named by `--against`, on the seeds that both have, in the same resamples. An ideal reader sees
the planted numbers of the same cases without error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cohorts import ideal_auc
from run import RESULTS, read_results

from her2net.evaluate.delong import auc

OWN = "auto"
"""How the names of her2net's own methods begin."""
N_RESAMPLES = 500
Table = tuple[np.ndarray, np.ndarray]


def tables_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, Table]]:
    """Return method (with its code, if it has one) -> seed -> labels and scores, both sorted by case."""
    found: dict[str, dict[int, Table]] = {}
    for row in rows:
        order = np.argsort(row["case_ids"])
        name = row["method"] + (f" ({row['code']})" if row["code"] else "")
        found.setdefault(name, {})[row["seed"]] = (np.array(row["labels"])[order], np.array(row["scores"])[order])
    return found


def draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many cases of each class as there are, with replacement; each case is a patient of its own."""
    return np.concatenate([rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in (0, 1)])


def resample(tables: dict[str, dict[int, Table]], *, redraw_seeds: bool) -> dict[str, np.ndarray]:
    """Return method -> (N_RESAMPLES, n_seeds) AUCs, NaN where the method lacks the seed; resamples are common to all."""
    rng, seeds = np.random.default_rng(0), sorted({seed for of_seed in tables.values() for seed in of_seed})
    found = {name: np.full((N_RESAMPLES, len(seeds)), np.nan) for name in tables}
    for k in range(N_RESAMPLES):
        common: np.ndarray | None = None
        for j, seed in enumerate(rng.choice(seeds, len(seeds)) if redraw_seeds else seeds):
            labels = next(of_seed[seed][0] for of_seed in tables.values() if seed in of_seed)
            if common is None or redraw_seeds:
                common = draw(labels, rng)
            for name, of_seed in tables.items():
                if seed in of_seed:
                    found[name][k, j] = auc(of_seed[seed][0][common], of_seed[seed][1][common])
    return found


def _over_seeds(drawn: np.ndarray) -> np.ndarray:
    """Return the means over seeds of those resamples in which at least one of the method's seeds was drawn."""
    return np.nanmean(drawn[~np.isnan(drawn).all(axis=1)], axis=1)


def summarise(tables: dict[str, dict[int, Table]], *, redraw_seeds: bool, against: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each method: mean AUC, its interval, and the difference to the best rival, or to another method."""
    drawn = resample(tables, redraw_seeds=redraw_seeds)
    aucs = {name: {seed: auc(*table) for seed, table in of_seed.items()} for name, of_seed in tables.items()}
    mean = {name: float(np.mean(list(of_seed.values()))) for name, of_seed in aucs.items()}
    rivals = [name for name in tables if not name.startswith(OWN)]
    best = against if against in tables else max(rivals, key=lambda name: mean[name], default=None)
    rows = []
    for name in sorted(tables, key=lambda name: -mean[name]):
        low, high = np.percentile(_over_seeds(drawn[name]), (2.5, 97.5))
        row = {"method": name, "seeds": len(aucs[name]), "auc": mean[name], "low": low, "high": high, "reference": best}
        shared = [seed for seed in aucs[name] if best is not None and seed in aucs[best]]
        if name != best and best is not None and shared:
            limits = np.percentile(_over_seeds(drawn[name] - drawn[best]), (2.5, 97.5))
            row |= {"difference": float(np.mean([aucs[name][s] - aucs[best][s] for s in shared])), "limits": limits}
        rows.append(row)
    return rows


def over_cohorts(differences: dict[str, list[float]]) -> list[str]:
    """Return a line for each method: its mean difference over the cohorts it shares with the reference, and the SE of that."""
    lines = ["| method | cohorts | mean difference (SE over cohorts) | better on | worst, best |", "|---|---|---|---|---|"]
    for name, values in sorted(differences.items(), key=lambda item: -np.mean(item[1])):
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        better, limits = sum(value > 0 for value in values), f"{min(values):+.3f}, {max(values):+.3f}"
        lines.append(f"| {name} | {len(values)} | {np.mean(values):+.3f} ({error:.3f}) | {better} | {limits} |")
    return lines


def _ideal(rows: Sequence[dict[str, Any]]) -> str:
    """Return the mean over seeds of what a reader of the planted numbers reaches; nothing for a real cohort."""
    found = [ideal for row in rows if (ideal := ideal_auc(row["cohort"], row["seed"])) is not None]
    return f"{np.mean(found):.3f}" if found else ""


def main() -> None:
    """Print the table of cohorts and that of means over cohorts in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--against", help="method to compare with, instead of the best rival")
    args = parser.parse_args()
    rows, differences = read_results(args.results), dict[str, list[float]]()
    head = f"minus {args.against or 'the best rival'}"
    print(f"| cohort (n, Bayes AUC) | method | seeds | AUC | {head} | ideal reader, same cases | minutes a seed |",
          "|---|---|---|---|---|---|---|", sep="\n")  # fmt: skip
    for cohort in dict.fromkeys(row["cohort"] for row in rows):
        of_cohort = [row for row in rows if row["cohort"] == cohort]
        bayes, n = of_cohort[0]["bayes_auc"], len(of_cohort[0]["labels"])
        head = f"{cohort} ({n}{'' if bayes is None else f', {bayes:.3f}'})"
        for row in summarise(tables_of(of_cohort), redraw_seeds=bayes is not None, against=args.against):
            own = [r for r in of_cohort if row["method"] == r["method"] + (f" ({r['code']})" if r["code"] else "")]
            difference = "the reference" if row["method"] == row["reference"] else ""
            if "difference" in row:
                differences.setdefault(row["method"], []).append(row["difference"])
                difference = f"{row['difference']:+.3f} [{row['limits'][0]:+.3f}, {row['limits'][1]:+.3f}]"
            print(f"| {head} | {row['method']} | {row['seeds']} | {row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
                  f"| {difference} | {_ideal(own)} | {np.mean([r['seconds'] for r in own]) / 60:.1f} |")  # fmt: skip
            head = ""
    print("", *over_cohorts(differences), sep="\n")


if __name__ == "__main__":
    main()
