"""Try the whole corpus and count the outcomes.

    python benchmarks/mutations.py
    python benchmarks/mutations.py --half trained --kind plan.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mutations import Mutation, raw_mutations, trained_mutations
from mutations.good import make_good, make_trained
from mutations.judge import try_mutation
from mutations.worker import Worker

HALVES = {"raw": (raw_mutations, make_good), "trained": (trained_mutations, make_trained)}
OUTCOMES = ("refused", "repaired", "accepted")


def main() -> int:
    """Print what fails, then one row per kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, nargs="+", default=list(HALVES), help="raw data, or all that is made from them")
    parser.add_argument("--kind", help="only this one")
    args = parser.parse_args()
    tried: list[tuple[Mutation, str]] = []
    for half in args.half:
        listed, make = HALVES[half]
        with tempfile.TemporaryDirectory() as folder:
            tried += try_all([m for m in listed() if args.kind in (None, m.kind)], make, Path(folder))
    print_table(tried)
    return int(any(problem for _, problem in tried))


def try_all(mutations: list[Mutation], make, folder: Path) -> list[tuple[Mutation, str]]:  # type: ignore[no-untyped-def]
    """Try each mutation; return it with what is wrong, empty if nothing is."""
    (folder / "good").mkdir()
    good, worker, tried = make(folder / "good"), Worker(), []
    for mutation in mutations:
        problem, start = "", time.monotonic()
        try:
            try_mutation(mutation, good, folder / "x", worker)
        except AssertionError as error:
            problem = str(error)
            print(f"--- {mutation.id} ({time.monotonic() - start:.1f} s)\n{problem}", flush=True)
        tried.append((mutation, problem))
    worker.stop()
    return tried


def print_table(tried: list[tuple[Mutation, str]]) -> None:
    """Print one row per kind and the sum."""
    print(f"| kind | mutations | {' | '.join(OUTCOMES)} | tracebacks | other failures |")
    print("|---" * (len(OUTCOMES) + 4) + "|")
    for kind in [*dict.fromkeys(mutation.kind for mutation, _ in tried), ""]:
        rows = [(m, problem) for m, problem in tried if kind in ("", m.kind)]
        good = Counter(m.outcome for m, problem in rows if not problem)
        traced = sum("Traceback (most recent call last)" in problem for _, problem in rows)
        counts = [len(rows), *(good[outcome] for outcome in OUTCOMES), traced, sum(bool(p) for _, p in rows) - traced]
        print(f"| {kind or 'all'} | " + " | ".join(map(str, counts)) + " |")


if __name__ == "__main__":
    sys.exit(main())
