"""Cross-validated AUC of her2net and its rivals, the same folds for all.

    python benchmarks/accuracy/run.py --cohorts busi real_us --methods auto forest --seeds 5 --seconds 120 --raw her2net_raw
    python benchmarks/accuracy/table.py

Appends a line to `benchmarks/results/accuracy.jsonl` for each cohort, method and seed; what is there is not repeated. A
seed names the folds (and draws a synthetic cohort); lines of one cohort and seed whose folds differ are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ablations import ABLATIONS, LEARNED
from automl import autogluon
from cohorts import COHORTS, FOLDER, make_cohort
from folds import find_linked, in_order, lay_out, make_folds, make_paths
from methods import Method, auto, auto_folds, auto_radiomics, paper
from rivals import contrastive, elastic_net, forest, plain

from her2net.artefact import digest_json
from her2net.evaluate.delong import auc
from her2net.raw.dataset import read_dataset

METHODS: dict[str, Method] = {
    "auto": auto, "auto_folds": auto_folds, "auto_radiomics": auto_radiomics, "paper": paper, "plain": plain,
    "contrastive": contrastive, "forest": forest, "elastic_net": elastic_net, "autogluon": autogluon,
    **ABLATIONS, **LEARNED,
}  # fmt: skip
RESULTS = Path("benchmarks/results/accuracy.jsonl")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the results file.

    Raises:
        ValueError: lines of one cohort and seed were made with different folds.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for row in rows:
        check_folds(rows, row["cohort"], row["seed"], row["folds"], path)
    return rows


def check_folds(rows: list[dict[str, Any]], cohort: str, seed: int, folds: str, path: Path) -> None:
    """Refuse folds other than those of the lines there are.

    Raises:
        ValueError: they differ; a comparison would mean nothing.
    """
    others = {row["folds"] for row in rows if (row["cohort"], row["seed"]) == (cohort, seed)} - {folds}
    if others:
        raise ValueError(f"{path}: {cohort}, seed {seed}: lines with other folds ({', '.join(others)}, now {folds}). Move it away.")


def run_method(
    name: str, cohort: Path, held_out: list[list[str]], work: Path, seconds: float, seed: int, left_out: Sequence[list[str]] = ()
) -> dict[str, Any]:
    """Score every case of a cohort out of fold with one method; `left_out` of each fold are not trained on either."""
    label_of = {case.case_id: int(case.label or 0) for case in read_dataset(cohort).train}
    ids, scores, fold_of = [], [], []
    start = time.monotonic()
    for k, held in enumerate(held_out):
        paths = make_paths(work, FOLDER)
        lay_out(cohort, held, paths.raw, left_out[k] if left_out else ())
        scores.append(in_order(METHODS[name](paths, seconds, seed), held, name))
        ids, fold_of = ids + held, fold_of + [k] * len(held)
    spent, pooled = time.monotonic() - start, np.concatenate(scores)
    labels = np.array([label_of[case_id] for case_id in ids])
    return {
        "auc": round(auc(labels, pooled), 5), "seconds": round(spent, 1), "case_ids": ids, "labels": labels.tolist(),
        "fold_of": fold_of, "scores": [round(float(s), 6) for s in pooled],
    }  # fmt: skip


def run_seed(name: str, seed: int, args: argparse.Namespace) -> None:
    """Make or copy one cohort, part it, and run the methods that have no line yet."""
    rows = read_results(args.results)
    done = {row["method"] for row in rows if (row["cohort"], row["seed"], row["code"]) == (name, seed, args.code)}
    todo = [method for method in args.methods if method not in done]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = make_paths(Path(folder) / "whole", FOLDER)
        bayes = make_cohort(name, whole.raw, raw=args.raw, seed=seed)
        folds = make_folds(read_dataset(whole.raw).train, find_linked(whole), seed)
        digest = digest_json(folds)
        check_folds(rows, name, seed, digest, args.results)
        for method in todo:
            found = run_method(method, whole.raw, folds, Path(folder) / method, args.seconds, seed)
            head = {"cohort": name, "method": method, "seed": seed, "code": args.code, "folds": digest, "bayes_auc": bayes,
                    "budget_s": args.seconds, "load": os.getloadavg()[0]}  # fmt: skip
            args.results.parent.mkdir(parents=True, exist_ok=True)
            with args.results.open("a") as file:
                file.write(json.dumps(head | found) + "\n")
            print(f"{name} seed {seed} {method}: AUC {found['auc']:.3f}, {found['seconds']:.0f} s", flush=True)


def main() -> None:
    """Run what is asked for, the cheapest cohort first as given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", nargs="+", choices=list(COHORTS), default=["busi"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["auto", "forest", "elastic_net"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of a fold, for methods that can use it")
    parser.add_argument("--raw", type=Path, default=os.environ.get("her2net_raw"), help="root of the real datasets")  # noqa: SIM112
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--code", default="", help="names a state of the code, so that two can be compared")
    args = parser.parse_args()
    args.raw = Path(args.raw) if args.raw else None
    for name in args.cohorts:
        for seed in range(args.seeds):
            run_seed(name, seed, args)


if __name__ == "__main__":
    main()
