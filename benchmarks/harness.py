"""What the benchmarks share: taking turns, counting time, and one table per script.

The variants of a row run in turns in one process, so that whatever else the machine does hits all of them. A round
gives one ratio; the table shows the median of the rounds' ratios and the lowest and highest of them. Ratios are of
processor time (user and system, threads and child processes included), because a shared machine stretches the wall
clock by what others do; the wall-clock ratio stands beside it. Where a limit in seconds is the target, it is of processor time too.

All variants compute in one thread each, NumPy's products too: threads that wait for work count as processor time.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np  # noqa: F401 - loads the library whose threads are limited below
import torch
from threadpoolctl import threadpool_limits

threadpool_limits(1)
torch.set_num_threads(1)

RESULTS = Path(__file__).parent / "results"
HEADER = ("row", "command", "her2net", "rival", "ratio", "lowest to highest", "wall ratio", "target", "reached")


@dataclass(frozen=True)
class Cost:
    """Seconds of one call."""

    processor: float
    wall: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ours, rival: median processor seconds (or what `unit` says).
        ratio: rival / ours where `at_least`, else ours / rival; low and high of the rounds likewise.
        target: of the ratio.
        note: what was compared, or why it falls short.
    """

    row: str
    command: str
    ours: float
    rival: float
    unit: str
    ratio: float
    low: float
    high: float
    wall_ratio: float | None
    target: float
    at_least: bool
    n_rounds: int
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is met by the median ratio."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def measure(call: Callable[[], object]) -> Cost:
    """Run once and count."""
    wall, processor = time.perf_counter(), _processor_s()
    call()
    return Cost(_processor_s() - processor, time.perf_counter() - wall)


def _processor_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def take_turns(variants: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> dict[str, list[Cost]]:
    """Run every variant once a round; the order turns round, so that none always follows the same other."""
    if warm_up:
        for call in variants.values():
            call()
    costs: dict[str, list[Cost]] = {name: [] for name in variants}
    for k in range(rounds):
        names = list(variants) if k % 2 == 0 else list(variants)[::-1]
        for name in names:
            costs[name].append(measure(variants[name]))
    return costs


def compare(
    row: str, ours: list[Cost], rival: list[Cost], *, target: float, at_least: bool = True, per: int = 1, note: str = ""
) -> Row:
    """Make a line out of the rounds of two variants; `per` divides both times (samples, cases)."""
    top, bottom = (rival, ours) if at_least else (ours, rival)
    ratios = [a.processor / b.processor for a, b in zip(top, bottom, strict=True)]
    wall = statistics.median(a.wall / b.wall for a, b in zip(top, bottom, strict=True))
    return Row(
        row, _command(), statistics.median(c.processor for c in ours) / per,
        statistics.median(c.processor for c in rival) / per, "s", statistics.median(ratios), min(ratios), max(ratios),
        wall, target, at_least, len(ratios), note,
    )  # fmt: skip


def compare_numbers(
    row: str, ours: float, rival: float, *, target: float, at_least: bool = False, unit: str, n_rounds: int = 1, note: str = ""
) -> Row:
    """Make a line out of two numbers that are no times of rounds."""
    ratio = rival / ours if at_least else ours / rival
    return Row(row, _command(), ours, rival, unit, ratio, ratio, ratio, None, target, at_least, n_rounds, note)


def _command() -> str:
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def describe_machine() -> dict[str, str]:
    """Return processor, cores, memory, versions and how busy the machine is."""
    from her2net.memory import GIB, available_cores, total_memory
    from her2net.plan.machine import cpu_has_bf16

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]

    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(available_cores()),
        "memory_gib": f"{total_memory() / GIB:.0f}",
        "bfloat16": "native" if cpu_has_bf16() else "not native",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def finish(rows: list[Row]) -> int:
    """Print the rows and keep them in `benchmarks/results`, one file per script."""
    machine = describe_machine()
    RESULTS.mkdir(exist_ok=True)
    name = Path(sys.argv[0]).stem
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(format_table(rows))
    for row in rows:
        if row.note:
            print(f"- {row.row}: {row.note}")
    return 0


def format_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for r in rows:
        wall = "" if r.wall_ratio is None else f"{r.wall_ratio:.2f}"
        cells = (r.row, f"`{r.command}`", _amount(r.ours, r.unit), _amount(r.rival, r.unit), f"**{r.ratio:.2f}**",
                 f"{r.low:.2f} to {r.high:.2f} ({r.n_rounds})", wall, f"{'≥' if r.at_least else '≤'} {r.target:g}",
                 "yes" if r.reached else "no")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3g} {unit}"


def refuse(what: str) -> None:
    """End the script: unequal work is not timed."""
    raise SystemExit(f"Unequal work, nothing was timed: {what}")
