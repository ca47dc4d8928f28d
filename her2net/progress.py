"""Progress bars and worker processes, shared by the stages that walk over cases.

Workers speak through pipes rather than a pool of the standard library: the parent knows which case each of them
has, so that an error and a sudden death are told with it; all of them end at once when the parent is
interrupted or dies; and neither semaphores nor shared memory (`/dev/shm`) are needed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tqdm import tqdm

from her2net.errors import Her2netError
from her2net.memory import GIB, available_cores, available_memory

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
WORTH_PROCESSES = 8  # below, starting processes takes longer than the work
END_S = 1.0
SHARE_FOR_WORKERS = 0.8  # of the free memory; the rest is for this process and for estimates that are a little off
WORKER_BYTES = 250 * 2**20  # Python, numpy and SimpleITK, measured


class WorkerError(Her2netError, RuntimeError):
    """A worker process died or failed; the message names the item it worked on."""

    exit_code = 1


@dataclass(frozen=True)
class _Failure:
    """An exception as text, because not every exception survives the way between processes."""

    text: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    item: int | None = None  # index of what it works on
    ready: bool = False


def progress(items: Iterable[ItemT], *, description: str, total: int | None = None, quiet: bool = False) -> Any:
    """Wrap an iterable in a progress bar on standard error."""
    return tqdm(items, desc=description, total=total, disable=quiet, dynamic_ncols=True, leave=False)


def choose_workers(wanted: int | None, case_bytes: int = 0) -> int:
    """One worker process per processor, fewer where their memory would not suffice.

    Args:
        wanted: the user's number, which is taken as it is.
        case_bytes: peak that one case takes, see `her2net.memory.largest_case`.
    """
    if wanted is not None:
        return wanted
    fitting = int(SHARE_FOR_WORKERS * available_memory() / (WORKER_BYTES + case_bytes))
    return max(1, min(available_cores(), fitting))


def map_in_processes(
    function: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    *,
    n_workers: int,
    description: str,
    quiet: bool = False,
    name_of: Callable[[ItemT], str] = str,
    worth: int = WORTH_PROCESSES,
) -> Iterator[tuple[int, ResultT]]:
    """Yield `(index, function(item))` as results come, in any order, from spawned worker processes.

    At most one item per worker is under way, so memory does not grow with the number of items. Each worker computes
    on one thread. With one worker, for few items, or where no process can be started, all runs in this process.

    Args:
        worth: from how many items on processes are started.

    Raises:
        WorkerError: a worker died, or the function raised; names the item.
        Her2netError: raised by the function, as it is.
    """
    workers = _start(function, min(n_workers, len(items))) if n_workers > 1 and len(items) >= worth else []
    if not workers:
        for index, item in enumerate(progress(items, description=description, quiet=quiet)):
            yield index, _unwrap(_attempt(function, item), name_of(item))
        return
    bar = progress((), description=description, total=len(items), quiet=quiet)
    try:
        for index, outcome in _exchange(workers, items, name_of):
            bar.update()
            yield index, _unwrap(outcome, name_of(items[index]))
        for worker in workers:
            worker.pipe.close()  # the end of its input
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        bar.close()
        _end(workers)


def _start(function: Callable[[Any], Any], n_workers: int) -> list[_Worker]:
    """Start the workers; fewer, or none, where the system allows no more processes."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    with _child_environment():
        for _ in range(n_workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, function), daemon=True)
            try:
                process.start()
            except OSError as error:
                here.close()
                n = len(workers)
                print(f"Note: only {n} worker processes can be started ({error.strerror}).", file=sys.stderr)
                return workers
            finally:
                there.close()
            workers.append(_Worker(process, here))
    return workers


def _exchange(workers: list[_Worker], items: Sequence[Any], name_of: Callable[[Any], str]) -> Iterator[tuple[int, Any]]:
    """Hand the items out one by one and yield what comes back."""
    by_pipe = {worker.pipe: worker for worker in workers}
    n_given = n_done = 0
    while n_done < len(items):
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                outcome, finished = worker.pipe.recv(), worker.item
            except (EOFError, ConnectionError):
                if worker.ready and worker.item is None and len(by_pipe) > 1:  # it had nothing to do, others go on
                    del by_pipe[worker.pipe]
                    continue
                raise WorkerError(_word_death(worker, items, name_of, len(workers))) from None
            worker.item, worker.ready = None, True
            if n_given < len(items):
                with suppress(ConnectionError):  # its end is noticed by the next `recv`
                    worker.item = n_given
                    n_given += 1
                    worker.pipe.send(items[worker.item])
            if finished is not None:  # else its first message, which says that it is there
                n_done += 1
                yield finished, outcome


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Work until there is no more input; the whole of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        pipe.send(None)
        while True:
            outcome = _attempt(function, pipe.recv())
            try:
                pipe.send(outcome)
            except (TypeError, ValueError, AttributeError) as error:  # a result that cannot be sent
                pipe.send(_Failure(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Her2netError as error:
        return error
    except MemoryError:
        return _Failure("ran out of memory. Use fewer workers (--num-workers 1).")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return _Failure(f"{type(error).__name__}: {error} (in {os.path.basename(place.filename)}, line {place.lineno})")


def _unwrap(outcome: Any, name: str) -> Any:
    if isinstance(outcome, Her2netError):
        raise outcome
    if isinstance(outcome, _Failure):
        raise WorkerError(f"{name}: {outcome.text}")
    return outcome


def _word_death(worker: _Worker, items: Sequence[Any], name_of: Callable[[Any], str], n_workers: int) -> str:
    worker.process.join(END_S)
    code = worker.process.exitcode
    if not worker.ready:
        return (
            f"a worker process could not start (exit code {code}). A script of your own that calls her2net must do so below "
            '`if __name__ == "__main__":`, because workers import it. Or use one worker (--num-workers 1).'
        )
    what = "a worker process" if worker.item is None else f"{name_of(items[worker.item])}: the worker process"
    if code == -getattr(signal, "SIGKILL", 9):
        return (
            f"{what} was killed from outside (SIGKILL), as the system does when memory runs out; {available_memory() / GIB:.1f} "
            f"GiB are free now, {n_workers} workers were running. Use fewer (--num-workers {max(1, n_workers // 2)})."
        )
    how = f"ended with exit code {code}" if code is None or code >= 0 else f"crashed ({signal.Signals(-code).name})"
    return f"{what} {how}. Look at its files; --num-workers 1 shows what happens in one process."


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.join(END_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(END_S)  # one that waits for a vanished network drive cannot even be killed
        worker.pipe.close()


@contextmanager
def _child_environment() -> Iterator[None]:
    """What children inherit: one thread each, and no Ctrl-C, not even while they start."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
