"""Compare the ratios of the last runs with what is expected, and print all rows as one table.

    python benchmarks/guard.py [--update]

`benchmarks/expected.json` holds, per row, the worst ratio that passes: times differ between machines, ratios little.
`--update` sets it to the present ratios with a margin of a quarter; do so on purpose only. A row that is not in the
results, or not expected yet, is named and does not fail.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from harness import RESULTS, Row, format_table

EXPECTED, MARGIN = Path(__file__).parent / "expected.json", 1.25


def read_results() -> tuple[list[Row], dict[str, dict[str, str]]]:
    """Return the rows of every script's last run, and the machine of each."""
    rows, machines = [], {}
    names = {field.name for field in fields(Row)}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        machines[path.stem] = found["machine"]
        rows += [Row(**{key: value for key, value in row.items() if key in names}) for row in found["rows"]]
    return rows, machines


def main(update: bool) -> int:
    """Print the table; return 1 if a ratio is worse than expected."""
    rows, machines = read_results()
    table = format_table(rows)
    (RESULTS / "table.md").write_text(table + "\n")
    print(table)
    for name, machine in machines.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if update:
        limits = {row.row: round(row.ratio / MARGIN if row.at_least else row.ratio * MARGIN, 2) for row in rows}
        EXPECTED.write_text(json.dumps(limits, indent=2) + "\n")
        return 0
    expected = json.loads(EXPECTED.read_text())
    worse = [row for row in rows if row.row in expected
             and (row.ratio < expected[row.row] if row.at_least else row.ratio > expected[row.row])]  # fmt: skip
    for name in sorted(set(expected) - {row.row for row in rows}):
        print(f"not run: {name}")
    for name in sorted({row.row for row in rows} - set(expected)):
        print(f"not expected yet: {name}")
    for row in worse:
        print(f"WORSE: {row.row}: ratio {row.ratio:.2f}, expected {'at least' if row.at_least else 'at most'} {expected[row.row]}")
    return 1 if worse else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    raise SystemExit(main(parser.parse_args().update))
