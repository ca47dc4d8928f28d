"""Which process is which: told apart by when it started, and by the machine whose numbers they are."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

HIDDEN = "hidden"  # there is such a process, but another user's, and the system does not say more


def process_start(pid: int) -> str | None:
    """Return a text that tells a process from any other of the same number; `None` once it has ended."""
    if sys.platform == "linux":  # in ticks since boot, which no change of the clock moves
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # another user's
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return HIDDEN
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return HIDDEN


def machine_name() -> str:
    """Name of the space in which process numbers are unique: containers may share a host's name, and reboots keep it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()
