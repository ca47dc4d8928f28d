"""Worker processes: errors and deaths are told with the case, nothing outlives an interruption, memory is respected."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from her2net import memory, progress
from her2net.errors import MemoryLimitError, RawDataError
from her2net.memory import GIB, available_cores, available_memory, largest_case, refuse_if_too_large, total_memory
from her2net.progress import WorkerError, choose_workers, map_in_processes

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
CASES = [f"case{i:02d}" for i in range(12)]


class StubbornError(Exception):
    """An exception that cannot be sent between processes."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def work(case: str, bad: str = "", how: str = "") -> np.ndarray:
    """Return something, or go wrong in one of many ways."""
    if case == bad:
        if how == "raise":
            raise ValueError("what a surprise")
        if how == "stubborn":
            raise StubbornError(1, 2)
        if how == "raw":
            raise RawDataError(f"imagesTr/US/{case}.png: cannot be read.")
        if how == "memory":
            raise MemoryError
        if how == "unsendable":
            return (x for x in ())  # type: ignore[return-value]
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), getattr(signal, how))
    return np.full(3, int(case[4:]))


class Broken:
    """Bound arguments of `work`, at module level so that workers find it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, case: str) -> np.ndarray:
        return work(case, "case05", self.how)


def run(function, cases: list[str] = CASES, n_workers: int = 2) -> dict[int, np.ndarray]:  # type: ignore[no-untyped-def]
    return dict(map_in_processes(function, cases, n_workers=n_workers, description="x", quiet=True))


def test_results_come_with_their_index() -> None:
    found = run(work)
    assert {index: int(value[0]) for index, value in found.items()} == {i: i for i in range(12)}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", r"case05: ValueError: what a surprise \(in test_workers.py, line \d+\)"),
        ("stubborn", "case05: StubbornError: 1 and 2"),
        ("raw", r"imagesTr/US/case05.png: cannot be read"),
        ("memory", "case05: ran out of memory"),
        ("unsendable", "case05: .*generator"),
        ("exit", "case05: the worker process ended with exit code 7"),
        pytest.param("SIGKILL", r"case05: .*killed from outside \(SIGKILL\).*memory.*--num-workers 1", marks=needs_posix),
        pytest.param("SIGSEGV", r"case05: the worker process crashed \(SIGSEGV\)", marks=needs_posix),
    ],
)
def test_an_error_or_death_names_the_case(how: str, told: str) -> None:
    with pytest.raises(RawDataError if how == "raw" else WorkerError, match=told):
        run(Broken(how))
    assert not psutil.Process().children() or all("tracker" in " ".join(p.cmdline()) for p in psutil.Process().children())


def test_one_process_words_errors_alike() -> None:
    with pytest.raises(WorkerError, match=r"case05: ValueError: what a surprise \(in test_workers.py"):
        run(Broken("raise"), n_workers=1)


def test_stopping_early_ends_the_workers() -> None:
    results = map_in_processes(work, CASES, n_workers=2, description="x", quiet=True)
    next(results)
    results.close()
    assert all("tracker" in " ".join(p.cmdline()) for p in psutil.Process().children())


def test_a_worker_that_cannot_be_killed_is_not_waited_for_for_ever() -> None:
    class Stuck:
        """As a process that waits for a network drive that is gone."""

        killed = False

        def join(self, timeout: float | None = None) -> None:
            assert timeout is not None

        def is_alive(self) -> bool:
            return True

        def kill(self) -> None:
            self.killed = True

    here, there = multiprocessing.Pipe()
    worker = progress._Worker(Stuck(), here)  # type: ignore[arg-type]
    progress._end([worker])
    assert worker.process.killed  # type: ignore[attr-defined]
    assert here.closed
    there.close()


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from her2net.progress import map_in_processes\n"
        "print(dict(map_in_processes(abs, list(range(9)), n_workers=2, description='x', quiet=True)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr


SCRIPT = """
import os, sys, time
from pathlib import Path
from her2net.progress import map_in_processes

def dawdle(folder):
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        sum(range(10000))

if __name__ == "__main__":
    from her2net.cli.common import execute, make_parser
    run = lambda args: print(dict(map_in_processes(dawdle, [sys.argv[1]] * 8, n_workers=3, description="x", quiet=True)))
    sys.exit(execute(run, make_parser("test", ""), []))
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A command whose three workers are at work, and all its children."""
    script, started = tmp_path / "busy.py", tmp_path / "started"
    script.write_text(SCRIPT)
    started.mkdir()
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background is deaf to Ctrl-C
    command = subprocess.Popen([sys.executable, str(script), str(started)], start_new_session=True,
                               stderr=subprocess.PIPE, text=True, preexec_fn=hear)  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(started.iterdir())) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(command.pid).children(recursive=True)
    assert len(children) >= 3
    yield command, children
    for process in [*children, psutil.Process(command.pid)] if psutil.pid_exists(command.pid) else children:
        if process.is_running():
            process.kill()
    command.wait()


@needs_posix
@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("whom", ["group", "parent"])
def test_an_interruption_ends_every_process(
    busy: tuple[subprocess.Popen, list[psutil.Process]], whom: str, signal_name: str
) -> None:
    command, children = busy
    number = getattr(signal, signal_name)
    if whom == "group":
        os.killpg(command.pid, number)
    else:
        os.kill(command.pid, number)
    assert command.wait(10) == 130
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert command.stderr is not None
    assert command.stderr.read().strip() == "Interrupted. Run the same command again to continue."


@needs_posix
def test_workers_do_not_outlive_a_killed_parent(busy: tuple[subprocess.Popen, list[psutil.Process]]) -> None:
    command, children = busy
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


def test_where_no_process_can_be_started_the_work_is_done_in_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multiprocessing.context import SpawnProcess

    def refuse(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    assert len(run(work)) == len(CASES)
    assert "only 0 worker processes" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_workers_need_no_shared_memory(tmp_path: Path) -> None:
    """With a /dev/shm that is full, as containers have it: pipes carry everything."""
    code = (
        "from her2net.progress import map_in_processes\n"
        "if __name__ == '__main__':\n"
        "    print(len(dict(map_in_processes(bytes, [3_000_000] * 9, n_workers=2, description='x', quiet=True))))\n"
    )
    (tmp_path / "script.py").write_text(code)
    mount = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && df /dev/shm | grep -q 100%"
    shell = f"{mount} || exit 99; exec {sys.executable} {tmp_path / 'script.py'}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 99:
        pytest.skip("nothing may be mounted here")
    assert done.stdout.strip() == "9", done.stderr


def write_cgroup(root: Path, version: int, *, limit: str, used: int, inactive: int, cpu: str) -> tuple[Path, Path]:
    """Make the files that the kernel shows of a control group; return (mount, /proc/self/cgroup)."""
    own, mount = root / "cgroup", root / "sys"
    if version == 2:
        group = mount / "job"
        group.mkdir(parents=True)
        own.write_text("0::/job\n")
        files = {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 5\ninactive_file {inactive}\n", "cpu.max": cpu}
    else:
        group = mount / "memory" / "job"
        group.mkdir(parents=True)
        (mount / "cpu,cpuacct").mkdir()
        own.write_text("9:memory:/job\n4:cpu,cpuacct:/not-visible-in-here\n")
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": f"total_inactive_file {inactive}\n"}
        quota, period = cpu.split()
        (mount / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text(quota)
        (mount / "cpu,cpuacct" / "cpu.cfs_period_us").write_text(period)
    for name, content in files.items():
        (group / name).write_text(str(content))
    return mount, own


@pytest.mark.parametrize("version", [1, 2])
def test_memory_and_processors_are_those_of_the_control_group(tmp_path: Path, version: int) -> None:
    mount, own = write_cgroup(tmp_path, version, limit="3000000", used=1_500_000, inactive=500_000, cpu="100000 100000")
    assert available_memory(mount, own) == 2_000_000
    assert total_memory(mount, own) == 3_000_000
    assert available_cores(mount, own) == 1


@pytest.mark.parametrize(("version", "limit", "cpu"), [(2, "max", "max 100000"), (1, "9223372036854771712", "-1 100000")])
def test_a_control_group_without_limits_leaves_what_the_machine_has(
    tmp_path: Path, version: int, limit: str, cpu: str
) -> None:
    mount, own = write_cgroup(tmp_path, version, limit=limit, used=1, inactive=0, cpu=cpu)
    nothing = tmp_path / "nothing"
    assert total_memory(mount, own) == total_memory(nothing, nothing) == psutil.virtual_memory().total
    assert available_cores(mount, own) == available_cores(nothing, nothing)


def test_workers_are_chosen_by_processors_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "available_cores", lambda: 8)
    monkeypatch.setattr(progress, "available_memory", lambda: 4 * GIB)
    assert choose_workers(None) == 8
    assert choose_workers(None, case_bytes=GIB) == 2
    assert choose_workers(None, case_bytes=100 * GIB) == 1
    assert choose_workers(6, case_bytes=100 * GIB) == 6, "the user's number stands"


def test_the_largest_case_counts_all_its_files_unpacked(tmp_path: Path) -> None:
    for name, size in (("a.nii.gz", 1000), ("b.nii.gz", 3000), ("c.png", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    assert largest_case([[tmp_path / "c.png"], files]) == 4000 * memory.DECODED_PER_FILE_BYTE[".gz"]
    assert largest_case([]) == 0


def test_what_cannot_fit_is_refused_with_the_estimate() -> None:
    refuse_if_too_large("this", 1, 2, "")
    with pytest.raises(MemoryLimitError, match=r"training needs about 3.0 GiB of memory, and 1.5 GiB are free. Do less."):
        refuse_if_too_large("training", 3 * GIB, int(1.5 * GIB), "Do less.")
