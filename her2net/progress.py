"""Progress bars and worker processes, shared by the stages that walk over cases."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from her2net.errors import Her2netError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class WorkerError(Her2netError, RuntimeError):
    """A worker process died or failed; the message names the item it worked on."""

    exit_code = 1


def progress(items: Iterable[ItemT], *, description: str, total: int | None = None, quiet: bool = False) -> Any:
    """Wrap an iterable in a progress bar on standard error."""
    return tqdm(items, desc=description, total=total, disable=quiet, dynamic_ncols=True, leave=False)


def available_cores() -> int:
    """Number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    *,
    n_workers: int,
    description: str,
    quiet: bool = False,
    name_of: Callable[[ItemT], str] = str,
) -> Iterator[tuple[int, ResultT]]:
    """Yield `(index, function(item))` as results come, in any order, from spawned worker processes.

    At most two items per worker are in flight, so memory does not grow with the
    number of items. Each worker computes on one thread. With one worker, or for
    few items, everything runs in this process.

    Raises:
        WorkerError: a worker died, or the function raised; names the item.
    """
    if n_workers <= 1 or len(items) < 8:
        for index, item in enumerate(progress(items, description=description, quiet=quiet)):
            yield index, _call(function, item, name_of)
        return
    with _single_threaded(), ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        bar = progress((), description=description, total=len(items), quiet=quiet)
        pending: dict[Future[ResultT], int] = {}
        queue = iter(enumerate(items))
        try:
            for index, item in queue:
                pending[pool.submit(function, item)] = index
                if len(pending) < 2 * n_workers:
                    continue
                yield from _collect(pending, items, bar, name_of)
            while pending:
                yield from _collect(pending, items, bar, name_of)
        finally:
            bar.close()
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(pending: dict[Future[Any], int], items: Sequence[Any], bar: Any, name_of: Callable[[Any], str]) -> Iterator:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        index = pending.pop(future)
        bar.update()
        yield index, _call(lambda _, f=future: f.result(), items[index], name_of)


def _call(function: Callable[[ItemT], ResultT], item: ItemT, name_of: Callable[[ItemT], str]) -> ResultT:
    try:
        return function(item)
    except Her2netError:
        raise
    except BrokenProcessPool:
        raise WorkerError(
            f"{name_of(item)}: a worker process was killed, most likely for lack of memory. "
            "Use fewer workers (--num-workers 1)."
        ) from None
    except Exception as error:
        raise WorkerError(f"{name_of(item)}: {type(error).__name__}: {error}") from error


@contextmanager
def _single_threaded() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
