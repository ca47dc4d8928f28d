"""A second interpreter that runs commands: if it hangs or crashes, only the test at hand fails.

The parent writes one JSON line per command, the child answers with one. The child calls the command's `main(argv)`
and sends back the exit code and what was printed, by Python or by a C library.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
START_S = 600.0
"""Importing torch may take minutes on a busy machine."""
MAX_DATA_BYTES = 3 << 30
"""Memory the child may ask for: a bomb must not unfold."""


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code (`None` if it raised), and what it printed to either stream."""

    code: int | None
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Worker:
    """The parent's side; started on first use, and again after a hang or a crash."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[str] | None = None

    def run(self, command: tuple[str, ...], env: dict[str, str], timeout_s: float) -> Answer:
        """Run `("verify", "-d", "1")`.

        Raises:
            AssertionError: the interpreter died, or did not answer in time.
        """
        if self.child is None:
            self._start()
        assert self.child is not None
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps({"command": command, "env": env}) + "\n")
        self.child.stdin.flush()
        line = self._read(timeout_s)
        if line:
            return Answer(**json.loads(line))
        code = self.child.poll()
        self.stop()
        what = f"no answer within {timeout_s:g} s" if code is None else f"the interpreter died with {code}"
        raise AssertionError(f"her2net_{' '.join(command)}: {what}")

    def stop(self) -> None:
        """End the child, whoever else may have its pipes open."""
        if self.child is not None:
            self.child.kill()
            self.child.wait(60)
            for pipe in (self.child.stdin, self.child.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.child = None

    def _start(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])}
        self.child = subprocess.Popen([sys.executable, "-m", "mutations.worker"], text=True, encoding="utf-8", env=env,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if not self._read(START_S):
            self.stop()
            raise AssertionError("the worker did not start")

    def _read(self, timeout_s: float) -> str:
        assert self.child is not None
        assert self.child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return ""
        line = self.child.stdout.readline()
        if not line:
            self.child.wait(5)
        return line


def serve() -> None:
    """The child's side: answer until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    _obey_permissions()
    _limit_memory()
    _warm_up()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request["env"])
        tempfile.tempdir = None  # of the folder that is damaged now, not of an earlier one
        print(json.dumps(_run(request["command"])), file=answers, flush=True)


def _obey_permissions() -> None:
    """Give up root's right to open any file, so that file modes mean for these tests what they mean for users."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    version_3, every_file = 0x20080522, 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(version_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for i in range(3):  # effective, permitted, inheritable
        sets[i] &= ~every_file
    libc.capset(header, sets)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))


def _warm_up() -> None:
    """Import what the commands need, so that no command's time includes it."""
    from her2net import pipeline  # noqa: F401


def _run(command: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = _call(command)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "backslashreplace"))
    return {"code": code, "out": texts[0], "err": texts[1]}


def _call(command: list[str]) -> int | None:
    name, *arguments = command
    try:
        return importlib.import_module(f"her2net.cli.{name}").main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return None


if __name__ == "__main__":
    serve()
