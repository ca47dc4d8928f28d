"""Run a mutation and say what is wrong with her2net's answer."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from her2net.paths import DatasetPaths
from mutations.case import Command, Mutation
from mutations.good import copy_good
from mutations.worker import Answer, Worker

TIMEOUT_S = 300.0
"""Far more than any command needs here: a slow machine is no hang."""
WHOLE_BYTES = 1 << 21
"""Of larger files, size and time are compared, not content."""


def try_mutation(mutation: Mutation, good: DatasetPaths, root: Path, worker: Worker) -> list[tuple[Command, Answer]]:
    """Damage a copy of the good dataset and run the commands on it.

    Returns:
        Each command with its answer, the folder's own path taken out of the texts.

    Raises:
        AssertionError: what the answer lacks, or what the command changed on disk.
    """
    answers = []
    with _copy(good, root) as paths:
        undamaged = {p: content_of(p) for p in root.rglob(mutation.restores)} if mutation.restores else {}
        mutation.damage(paths)
        before = picture(root)
        for command in mutation.commands:
            filled = tuple(word.replace("{root}", str(root)) for word in command)
            answer = worker.run(filled, environment(paths, root / "temporary"), TIMEOUT_S)
            problems = judge(mutation, answer, first=not answers)
            after = picture(root)
            if not mutation.accepted and after != before:
                problems.append(f"left or changed: {sorted(set(after.items()) ^ set(before.items()))}")
            problems += [f"left behind: {name}" for name in after if name not in before and _is_leftover(name)]
            assert not problems, "\n".join([f"her2net_{' '.join(command)}", *problems, str(answer.code), answer.text])
            answers.append((command, Answer(answer.code, *(t.replace(f"{root}/", "") for t in (answer.out, answer.err)))))
        assert bool(undamaged) == bool(mutation.restores)
        for path, content in undamaged.items():
            assert content_of(path) == content, f"{path} is not as it was"
    return answers


def content_of(path: Path) -> object:
    """Return what a file holds; of a cache the arrays, as the library puts other bytes between them."""
    if path.suffix != ".h5":
        return path.read_bytes()
    with h5py.File(path, "r", locking=False) as file:
        return {name: (array.shape, str(array.dtype), array[:].tobytes()) for name, array in file.items()}


def judge(mutation: Mutation, answer: Answer, *, first: bool) -> list[str]:
    """Say what is wrong with the answer to one command."""
    problems = []
    if "Traceback (most recent call last)" in answer.text:
        problems.append("a traceback")
    expected = 0 if mutation.accepted else mutation.code
    if answer.code != expected:
        problems.append(f"exit code {answer.code}, expected {expected}")
    if first or not mutation.accepted:
        problems += [f"does not say {text!r}" for text in mutation.says if text not in answer.text]
    if not mutation.accepted and sum(line.startswith("Error: ") for line in answer.err.splitlines()) > 1:
        problems.append("more than one error message")
    return problems


def picture(root: Path) -> dict[str, str]:
    """Describe every file, folder and link below a folder, and every file her2net left in the folder for temporary files."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(root)))] = _describe(path)
    return found


def _describe(path: bytes) -> str:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return "link " + os.fsdecode(os.readlink(path))
    if stat.S_ISREG(status.st_mode) and status.st_size < WHOLE_BYTES and status.st_mode & stat.S_IRUSR:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read()).hexdigest()
    return f"{stat.filemode(status.st_mode)} {status.st_size if stat.S_ISREG(status.st_mode) else ''} "


def _is_leftover(name: str) -> bool:
    return name.endswith((".tmp", ".part", ".lock")) or Path(name).name.startswith(".")


def environment(paths: DatasetPaths, temporary: Path) -> dict[str, str]:
    """Return the variables under which a command finds the folders."""
    roots = {f"her2net_{name}": str(getattr(paths.roots, name)) for name in ("raw", "preprocessed", "results")}
    compiled = {"TORCHINDUCTOR_CACHE_DIR": tempfile.gettempdir()}  # torch makes such a folder when its compiler is imported
    return {**roots, **compiled, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}


@contextmanager
def _copy(good: DatasetPaths, root: Path) -> Iterator[DatasetPaths]:
    paths = copy_good(good, root)
    (root / "temporary").mkdir()
    try:
        yield paths
    finally:
        remove(root)


def remove(root: Path) -> None:
    """Remove a folder whatever its permissions are."""
    for folder, folders, _ in os.walk(root):
        for name in folders:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(root)
