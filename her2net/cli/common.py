"""What every command shares: options, roots, and turning errors into exit codes.

Exit codes: 0 done; 1 it failed while running; 2 the input, the data or the call
is at fault; 130 interrupted. Nothing heavy is imported here, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from her2net.errors import Her2netError, PlanError
from her2net.paths import DEFAULT_PLAN, DatasetPaths, find_dataset, find_roots, find_trained
from her2net.raw.names import explain_bad_name

USERS_TO_MEND = {
    errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT, errno.ESTALE,
}  # fmt: skip
"""What is wrong with a disk or a folder in a way that the user can do something about: exit code 2."""
OBJECTS_BETWEEN_COLLECTIONS = 50_000


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something: not that a switch is off or that nothing is chosen, nor one that the help names itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, (), []) or action.default is False  # 0 is a value
        named = "default:" in (action.help or "")
        return action.help if nothing or named else super()._get_help_string(action)


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser named after the command, whose help shows defaults."""
    return argparse.ArgumentParser(prog=f"her2net_{command}", description=description, formatter_class=_HelpFormatter)


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add `-d/--dataset`, `-p/--plan` and `--quiet`."""
    parser.add_argument("-d", "--dataset", help="id, name or folder name; may be left out while there is one dataset")
    parser.add_argument("-p", "--plan", help=f"name of the plan (default: {DEFAULT_PLAN})")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")


def add_worker_option(parser: argparse.ArgumentParser) -> None:
    """Add `--num-workers`."""
    parser.add_argument("--num-workers", type=positive_int, default=None,
                        help="worker processes (default: one a core, fewer if memory is short)")


def positive_int(text: str) -> int:
    """Parse an integer of at least 1; argparse turns the error into one line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def parse_fraction(text: str) -> float:
    """Parse a share between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def parse_hours(text: str) -> float:
    """Parse a duration such as `2h`, `30m`, `90s` or `1.5` (hours) into hours."""
    unit = {"h": 1.0, "m": 1 / 60, "s": 1 / 3600}.get(text[-1:].lower())
    try:
        hours = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 2h, 30m or 90s") from None
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive duration")
    return hours


def resolve_paths(args: argparse.Namespace, *, trained: bool = False) -> DatasetPaths:
    """Find the dataset that the options name, and say which roots were taken by default.

    Args:
        trained: whether an imported model, which has no raw folder, will do.
    """
    roots = find_roots()
    if roots.defaulted and not args.quiet:
        print(
            f"Note: {', '.join(roots.defaulted)} not set in the environment; using folders of that name in {os.getcwd()}.",
            file=sys.stderr,
        )
    if roots.relative and not args.quiet:
        print(f"Note: {', '.join(roots.relative)} set to a relative path, which is taken from {os.getcwd()}.", file=sys.stderr)
    plan = DEFAULT_PLAN if args.plan is None else args.plan
    reason = explain_bad_name(plan)
    if reason:
        raise PlanError(f"--plan {plan!r}: {reason}. A plan is named like a file, without its ending.")
    if trained:
        return find_trained(roots, args.dataset, plan)
    return DatasetPaths(roots, find_dataset(roots, args.dataset), plan)


def printable(text: str) -> str:
    """Escape what could steer a terminal: messages quote names and values out of files from elsewhere."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def execute(
    run: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Parse, run, and map the outcome to an exit code; the one place that catches errors."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # else Python looks for cycles in all of torch as it ends, which takes most of the time to end
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # imports make hundreds of thousands that stay, and are looked through in vain
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a letter shows its number; a name may be any bytes
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _ended_like_ctrl_c():
            return run(args) or 0
    except Her2netError as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a disk or a network drive that goes away can do so at any line
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"Error: {what}. Files are whole or as they were; bring the file or disk back and try again.", file=sys.stderr)
        return 2 if error.errno in USERS_TO_MEND else 1
    except MemoryError:
        print("Error: out of memory. Use fewer workers (--num-workers 1), or end other programs.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
        return 130


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM (batch systems) and SIGHUP (a closed terminal) clean up as Ctrl-C does, unless they are ignored."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    ours = [n for n in numbers if threading.current_thread() is threading.main_thread() and signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
