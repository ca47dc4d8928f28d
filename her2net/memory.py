"""How much memory and how many processors this process may use, inside a container or a batch job too.

Control groups (cgroups, versions 1 and 2) are read from the files of the kernel; where there are none, the machine counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from her2net.errors import MemoryLimitError

GIB = 2**30
DECODED_PER_FILE_BYTE = {".gz": 9.0, ".png": 30.0, ".jpg": 60.0, ".jpeg": 60.0}  # peak while one case is prepared
DECODED_OTHERWISE = 4.0
SHARE_FOR_IMAGES = 0.5  # of the free memory; images that would take more stay on the disk
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores(mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Number of processors this process may use: its affinity, and the quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _folders(mount, own, "cpu"):
        split = (*_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us"))
        found = _numbers(folder / "cpu.max") or split
        if len(found) == 2 and min(found) > 0:
            cores = min(cores, max(1, round(found[0] / found[1])))
    return cores


def available_memory(mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes this process may still take: what the machine has free, and what its control groups leave."""
    import psutil

    return min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in _limits(mount, own))])


def total_memory(mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes of the machine, or of the control group if that is less."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits(mount, own))])


def fits_in_memory(n_bytes: int) -> bool:
    """Whether the images of a cohort are held in memory; else they are read from the disk as they are needed."""
    return n_bytes <= SHARE_FOR_IMAGES * available_memory()


def largest_case(cases: Iterable[Iterable[Path]]) -> int:
    """Estimate the bytes that preparing the largest case takes, from the size of each case's files."""
    return max((int(sum(map(_decoded, files))) for files in cases), default=0)


def refuse_if_too_large(what: str, need: int, free: int, remedy: str) -> None:
    """Refuse work that does not fit, before it starts.

    Raises:
        MemoryLimitError: `need` exceeds `free`; both are told.
    """
    if need > free:
        raise MemoryLimitError(f"{what} needs about {need / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free. {remedy}")


def _decoded(path: Path) -> float:
    try:
        return path.stat().st_size * DECODED_PER_FILE_BYTE.get(path.suffix.lower(), DECODED_OTHERWISE)
    except OSError:
        return 0.0  # whoever reads it says what is wrong with it


def _limits(mount: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used) of each control group above this process; page cache that can be dropped is not used."""
    for folder in _folders(mount, own, "memory"):
        limit = _numbers(folder / "memory.max") or _numbers(folder / "memory.limit_in_bytes")
        used = _numbers(folder / "memory.current") or _numbers(folder / "memory.usage_in_bytes")
        if limit and used:
            yield limit[0], used[0] - _inactive(folder / "memory.stat")


def _folders(mount: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, its own first, in both versions of the interface."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mount / controllers if (mount / controllers).is_dir() else mount / controller
        root = root if controllers else mount
        parts = Path(group).relative_to("/").parts if group.startswith("/") else ()
        for n in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:n])


def _numbers(path: Path) -> tuple[int, ...]:
    """Return the integers of a file; none where it is absent or says `max`."""
    try:
        words = path.read_text().split()
        return tuple(int(word) for word in words)
    except (OSError, ValueError):
        return ()


def _inactive(path: Path) -> int:
    try:
        found = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
