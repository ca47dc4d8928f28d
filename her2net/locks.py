"""Locks between processes and between machines, also on network file systems.

A lock is a small file beside the folder it guards, `.fold_0.lock` beside `fold_0`. It appears whole
or not at all, by a hard link (or by exclusive creation where there are none), and so depends
neither on flock nor on HDF5's locking, which network file systems lack or only pretend to have.

It says who holds it, and its time is refreshed every 15 s. A holder on this machine that has ended is
recognised at once by its process number and start time; one on another machine once the
file has not been refreshed for 3 minutes. Then the next process takes over. A copy of a lock, in a copy of
the folder it guarded, is refreshed by nobody and so goes the same way.
"""

from __future__ import annotations

import errno
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from her2net.artefact import Strict, explain_write_failure
from her2net.errors import LockError, WriteError
from her2net.processes import HIDDEN, machine_name, process_start

HEARTBEAT_S = 15.0
STALE_S = 180.0  # more than the minute for which network file systems may show an old time
BREAKER_STALE_S = 30.0
POLL_S = 0.2
RETRIES_S = (0.0, 0.1, 1.0)  # to release a lock on a network file system that is away for a moment

Say = Callable[[str], None]
_held: set[str] = set()
"""Tokens of the locks that this process holds now; any other that names it was left behind."""


class Holder(Strict):
    """Who holds a lock.

    Attributes:
        host: name of the machine, for people.
        machine: boot and process namespace within which `pid` means something.
        started: of the process, so that a later process of the same number is told apart.
        since: UTC.
        token: unique to this holding of the lock.
        path: of the lock; another one tells of a copy.
    """

    host: str
    machine: str
    pid: Annotated[int, Field(ge=1, lt=1 << 31)]
    started: str
    command: str
    since: str
    token: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.command!r} (process {self.pid} on {self.host}, since {self.since} UTC)"


class Lock:
    """A lock that this process holds; `check` it before anything is written that another holder could clash with."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder = path, holder

    def check(self) -> None:
        """Make sure that the lock is still this process's own.

        Raises:
            LockError: the folder has vanished, or another process has taken the lock over.
        """
        found = read_holder(self.path)
        if found is None or found.token != self.holder.token:
            what = "has vanished, and perhaps its folder with it" if found is None else f"was taken over by {found}"
            raise LockError(f"{self.path}: the lock of this process {what}. Nothing more is written; run the command again.")

    def _refresh(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_S):
            if self._is_mine():
                with suppress(OSError):  # the network may be away for a moment; `check` decides
                    os.utime(self.path)

    def _release(self) -> None:
        for pause in RETRIES_S:
            time.sleep(pause)
            with suppress(OSError):
                found = read_holder(self.path)
                if found is not None and found.token == self.holder.token:
                    self.path.unlink()
                if found is not None or not os.path.lexists(self.path):
                    return

    def _is_mine(self) -> bool:
        found = read_holder(self.path)
        return found is not None and found.token == self.holder.token


def lock_beside(target: Path) -> Path:
    """Return where the lock of a folder stands."""
    return target.with_name(f".{target.name}.lock")


@contextmanager
def hold(target: Path, what: str, *, wait: bool = True, say: Say | None = None) -> Iterator[Lock]:
    """Hold the lock of a folder; only one process of all machines does at a time.

    Args:
        target: the folder, which need not exist yet.
        what: it is called in messages.
        wait: for another holder to end; else refuse.
        say: gets one line while this process waits; default: standard error.

    Raises:
        LockError: somebody else holds it, and `wait` is false.
        WriteError: the lock cannot be written.
    """
    path, told = lock_beside(target), False
    me = _describe_self(path)
    lock, ended = Lock(path, me), threading.Event()
    _held.add(me.token)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while not _create(path, me):
                told = _wait_for_other(path, what, wait, say or _say, told)
        except OSError as error:
            raise WriteError(explain_write_failure(path, error)) from error
        try:
            _sweep(path)
            threading.Thread(target=lock._refresh, args=(ended,), daemon=True, name="her2net lock").start()
            yield lock
        finally:
            ended.set()
            lock._release()
    finally:
        _held.discard(me.token)


def wait_until_free(target: Path, what: str, *, say: Say | None = None) -> None:
    """Wait while another process holds the lock of a folder; for readers, who take none themselves."""
    told = False
    while (holder := find_holder(target)) is not None:
        if not told:
            (say or _say)(f"Waiting: {what} is in use by {holder}.")
        told = True
        time.sleep(POLL_S)


def find_holder(target: Path) -> Holder | None:
    """Return who holds the lock of a folder now; `None` if nobody does, or a process that has ended."""
    path = lock_beside(target)
    holder = read_holder(path)
    return holder if holder is not None and is_alive(path, holder) else None


def read_holder(path: Path) -> Holder | None:
    """Return what the lock file says; `None` if there is none, or it says nothing that can be understood."""
    try:
        if not path.is_file():  # a pipe would never end
            return None
        return Holder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def is_alive(path: Path, holder: Holder | None) -> bool:
    """Whether the holder still works; an unreadable lock is given the time of one on another machine."""
    if holder is not None and holder.machine == machine_name():
        mine = holder.pid == os.getpid()
        if process_start(holder.pid) not in (holder.started, HIDDEN) or (mine and holder.token not in _held):
            return False
        here = holder.path in ("", os.path.realpath(path))
        if mine or here:
            return here
    try:
        return _file_server_time(path) - path.stat().st_mtime < STALE_S
    except OSError:
        return False


def _wait_for_other(path: Path, what: str, wait: bool, say: Say, told: bool) -> bool:
    """Clear the lock of a dead holder, or wait a moment for a living one; return whether a message was given."""
    holder = read_holder(path)
    if not os.path.lexists(path):
        return told
    if not is_alive(path, holder):
        if _clear(path, holder):
            say(f"Note: {what} was left by {holder or 'a process'}, which has ended; this process takes over.")
        return told
    name = str(holder) if holder is not None else "another process"
    if not wait:
        raise LockError(
            f"{what} is in use by {name}. Wait for it or end it; the lock clears itself when that process has ended, "
            f"on another machine {STALE_S / 60:.0f} minutes later ({path})."
        )
    if not told:
        say(f"Waiting: {what} is in use by {name}.")
    time.sleep(POLL_S)
    return True


def _create(path: Path, me: Holder) -> bool:
    """Create the lock file, whole, unless it is there; return whether this process has it."""
    mine = path.with_name(f"{path.name}.{me.token}.new")
    try:
        mine.write_bytes(me.model_dump_json().encode())
        try:
            os.link(mine, path)
        except FileExistsError:
            found = read_holder(path)
            return found is not None and found.token == me.token  # a network file system may have lost its first answer
        except FileNotFoundError:  # swept away by who has just got the lock
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
                raise
            return _create_without_links(path, me)
        return True
    finally:
        with suppress(OSError):
            mine.unlink()


def _create_without_links(path: Path, me: Holder) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(me.model_dump_json().encode())
    return True


def _clear(path: Path, dead: Holder | None) -> bool:
    """Remove the lock of a dead holder, unless another process is doing so or has done so."""
    breaker = path.with_name(f"{path.name}.break")
    try:
        os.close(os.open(breaker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:  # somebody is at it; if that process died at it, too, its mark is removed
        with suppress(OSError):
            if _file_server_time(path) - breaker.stat().st_mtime > BREAKER_STALE_S:
                breaker.unlink()
        time.sleep(POLL_S)
        return False
    try:
        found = read_holder(path)
        still = os.path.lexists(path) and found == dead and not is_alive(path, found)
        if still:
            path.unlink(missing_ok=True)
        return still
    finally:
        with suppress(OSError):
            breaker.unlink()


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside the lock that this process now has."""
    for pattern in (f"{path.name}.*.new", f"{path.name}.break"):
        for leftover in path.parent.glob(pattern):
            with suppress(OSError):
                leftover.unlink()


def _file_server_time(path: Path) -> float:
    """Time by the clock that also dates the lock files; this machine's own where nothing may be written."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def _describe_self(path: Path) -> Holder:
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return Holder(
        host=platform.node() or "unknown", machine=machine_name(), pid=os.getpid(), started=process_start(os.getpid()) or "",
        command=" ".join([name, *sys.argv[1:]])[:200], token=secrets.token_hex(8),
        since=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"), path=os.path.realpath(path),
    )  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
