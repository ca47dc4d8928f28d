"""Locks: one holder at a time, named in the message, and cleared when it is dead; with races of real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from her2net import locks
from her2net.errors import LockError, WriteError
from her2net.locks import STALE_S, Holder, find_holder, hold, lock_beside, read_holder, wait_until_free
from her2net.processes import process_start

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def fork(function: Callable[[], None]) -> int:
    """Run a function in a forked process; exit code 1 if it raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
        os._exit(0)
    except BaseException:
        os._exit(1)


def join(pids: list[int], seconds: float) -> list[int]:
    """Return the exit codes; kill what has not ended in time and fail."""
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in set(pids) - set(codes):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail(f"process {pid} waits for ever")
    return [codes[pid] for pid in pids]


def put_lock(target: Path, age_s: float = 0.0, **changes: object) -> Path:
    """Write the lock of a made-up holder, by default one on another machine."""
    path = lock_beside(target)
    values = {"host": "elsewhere", "machine": "another", "pid": 7, "started": "1", "command": "her2net_train US 0",
              "since": "2026-11-02 12:00:00", "token": "abc"}  # fmt: skip
    path.write_text(json.dumps(values | changes))
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def test_the_lock_stands_beside_its_folder_and_goes_when_released(tmp_path: Path) -> None:
    target = tmp_path / "US" / "fold_0"
    with hold(target, "US fold 0") as lock:
        assert lock.path == tmp_path / "US" / ".fold_0.lock"
        holder = read_holder(lock.path)
        assert holder is not None
        assert (holder.pid, find_holder(target)) == (os.getpid(), holder)
        lock.check()
    assert find_holder(target) is None
    assert not list((tmp_path / "US").iterdir())


def test_the_lock_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "x", "x"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@needs_fork
def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    pid = fork(lambda: _hold_for(tmp_path / "fold_0", 30))
    try:
        _wait_for(lambda: find_holder(tmp_path / "fold_0"))
        with pytest.raises(LockError, match=rf"US fold 0 is in use by .*process {pid} on "), hold(
            tmp_path / "fold_0", "US fold 0", wait=False
        ):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@needs_fork
def test_a_second_holder_waits_says_so_once_and_gets_it(tmp_path: Path) -> None:
    pid, said = fork(lambda: _hold_for(tmp_path / "plan", 1.0)), []
    _wait_for(lambda: find_holder(tmp_path / "plan"))
    with hold(tmp_path / "plan", "the plan", say=said.append):
        assert os.waitpid(pid, 0)[1] == 0
    assert len(said) == 1
    assert said[0].startswith("Waiting: the plan is in use by ")


@needs_fork
@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_clears_itself_at_once(tmp_path: Path, reaped: bool) -> None:
    """Also while the dead process is a zombie, whose number the system still knows."""
    pid, said = fork(lambda: _hold_for(tmp_path / "x", 60)), []
    _wait_for(lambda: find_holder(tmp_path / "x"))
    os.kill(pid, signal.SIGKILL)
    if reaped:
        os.waitpid(pid, 0)
    _wait_for(lambda: process_start(pid) is None)
    assert find_holder(tmp_path / "x") is None
    start = time.monotonic()
    with hold(tmp_path / "x", "x", wait=False, say=said.append):
        pass
    assert time.monotonic() - start < 1
    assert "takes over" in said[0]
    if not reaped:
        os.waitpid(pid, 0)


def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    me = locks._describe_self(lock_beside(tmp_path / "x"))
    put_lock(tmp_path / "x", **{**me.model_dump(), "started": "1"})
    assert find_holder(tmp_path / "x") is None
    with hold(tmp_path / "x", "x", wait=False):
        pass


def test_a_holder_on_another_machine_counts_as_dead_once_it_is_silent(tmp_path: Path) -> None:
    put_lock(tmp_path / "x", age_s=STALE_S - 20)
    with pytest.raises(LockError, match="process 7 on elsewhere"), hold(tmp_path / "x", "x", wait=False):
        pass
    put_lock(tmp_path / "x", age_s=STALE_S + 5)
    with hold(tmp_path / "x", "x", wait=False) as lock:
        lock.check()


def test_a_lock_that_says_nothing_gets_the_time_of_one_on_another_machine(tmp_path: Path) -> None:
    path = lock_beside(tmp_path / "x")
    path.touch()
    with pytest.raises(LockError, match="another process"), hold(tmp_path / "x", "x", wait=False):
        pass
    os.utime(path, (time.time() - STALE_S - 5,) * 2)
    with hold(tmp_path / "x", "x", wait=False):
        pass


@needs_fork
def test_a_copy_of_a_lock_is_not_held_although_the_holder_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be copied while somebody is at work in it, and nobody will ever release the copy."""
    pid, said = fork(lambda: _hold_for(tmp_path / "a" / "plan", 60)), []
    try:
        _wait_for(lambda: find_holder(tmp_path / "a" / "plan"))
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert find_holder(tmp_path / "b" / "plan") is not None, "it may be the same folder under another name"
        old = time.time() - STALE_S - 5
        for folder in "ab":
            os.utime(lock_beside(tmp_path / folder / "plan"), (old, old))
        assert find_holder(tmp_path / "b" / "plan") is None
        assert find_holder(tmp_path / "a" / "plan") is not None, "where it stands, the process alone decides"
        with hold(tmp_path / "b" / "plan", "the plan", wait=False, say=said.append):
            pass
        assert "takes over" in said[0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_does_not_wait_for_a_copy_of_its_own_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "plan", "x"):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        wait_until_free(tmp_path / "b" / "plan", "x")
        with hold(tmp_path / "b" / "plan", "x", wait=False):
            assert find_holder(tmp_path / "a" / "plan") is not None


@pytest.mark.parametrize("failures", [1, 2])
def test_a_release_that_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    unlink, left = Path.unlink, [failures]

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.name == ".x.lock" and left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        unlink(self, missing_ok)

    monkeypatch.setattr(locks, "RETRIES_S", (0.0, 0.01, 0.01))
    monkeypatch.setattr(Path, "unlink", fail)
    with hold(tmp_path / "x", "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_could_not_be_released_does_not_hold_up_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(locks, "RETRIES_S", ())
        with hold(tmp_path / "x", "x"):
            pass
    assert lock_beside(tmp_path / "x").exists()
    assert find_holder(tmp_path / "x") is None
    wait_until_free(tmp_path / "x", "x")
    with hold(tmp_path / "x", "x", wait=False):
        pass


def test_a_lock_that_never_came_to_work_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError), hold(tmp_path / "x", "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_to_nothing_is_no_lock_for_ever(tmp_path: Path) -> None:
    lock_beside(tmp_path / "x").symlink_to(tmp_path / "nothing")
    with hold(tmp_path / "x", "x", wait=False):
        pass
    assert not list(tmp_path.iterdir())


def test_the_holder_refreshes_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    with hold(tmp_path / "x", "x") as lock:
        os.utime(lock.path, (0, 0))
        _wait_for(lambda: lock.path.stat().st_mtime > 0)


def test_a_holder_notices_that_its_lock_was_taken_over_or_has_vanished(tmp_path: Path) -> None:
    with hold(tmp_path / "x", "x") as lock:
        lock.path.unlink()
        with pytest.raises(LockError, match="vanished"):
            lock.check()
        put_lock(tmp_path / "x")
        with pytest.raises(LockError, match=r"taken over by .*elsewhere"):
            lock.check()
    assert lock_beside(tmp_path / "x").exists(), "another's lock is not removed"


def test_file_systems_without_hard_links_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with hold(tmp_path / "x", "x") as lock:
        lock.check()
        with pytest.raises(LockError), hold(tmp_path / "x", "x", wait=False):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lost_answer_of_a_network_file_system_is_not_taken_for_another_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    with hold(tmp_path / "x", "x", wait=False) as lock:
        lock.check()


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    for name in (".x.lock.0123.new", ".x.lock.break"):
        (tmp_path / name).touch()
    (tmp_path / ".other.lock.1.new").touch()
    with hold(tmp_path / "x", "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".other.lock.1.new"]


def test_where_nothing_can_be_written_the_message_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"), hold(tmp_path / "file" / "fold_0", "x"):
        pass


def test_a_reader_waits_until_the_writer_has_ended(tmp_path: Path) -> None:
    said: list[str] = []
    wait_until_free(tmp_path / "x", "x", say=said.append)
    code = (
        "import sys, time; from pathlib import Path; from her2net.locks import hold\n"
        "with hold(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(1)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    wait_until_free(tmp_path / "x", "x", say=said.append)
    assert len(said) == 1
    assert other.wait(10) == 0


@needs_fork
@pytest.mark.parametrize("n_rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_no_two_hold_it_at_once_even_if_holders_die(tmp_path: Path, n_rounds: int) -> None:
    """Eight processes add to a counter by reading, pausing and writing; some are killed while they hold the lock."""
    for round_ in range(n_rounds):
        folder = tmp_path / str(round_)
        folder.mkdir()
        (folder / "counter").write_text("0")
        pids = [fork(lambda seed=seed, folder=folder: _count(folder, seed, dies=seed % 4 == 3)) for seed in range(8)]
        codes = join(pids, 60)
        assert sorted(set(codes)) == [-signal.SIGKILL, 0]
        done = sum(int(path.read_text()) for path in folder.glob("done_*"))
        assert int((folder / "counter").read_text()) == done
        assert find_holder(folder / "x") is None


def _count(folder: Path, seed: int, *, dies: bool) -> None:
    rng, mine = random.Random(seed), 0
    for turn in range(12):
        with hold(folder / "x", "x", say=lambda text: None) as lock:
            value = int((folder / "counter").read_text())
            time.sleep(rng.uniform(0, 0.004))
            if dies and turn == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            lock.check()
            (folder / "counter").write_text(str(value + 1))
            mine += 1
            (folder / f"done_{seed}").write_text(str(mine))


def _hold_for(target: Path, seconds: float) -> None:
    with hold(target, "x"):
        time.sleep(seconds)


def _wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_the_holder_is_worded_for_people() -> None:
    holder = Holder(host="gpu7", machine="m", pid=12, started="1", command="her2net_train US 0",
                    since="2026-11-02 12:00:00", token="t")  # fmt: skip
    assert str(holder) == "'her2net_train US 0' (process 12 on gpu7, since 2026-11-02 12:00:00 UTC)"
