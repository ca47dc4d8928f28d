"""The errors her2net raises on purpose, and one way to word them.

The library raises; only `her2net.cli` catches. `exit_code` says whose fault it
was: 2 the input, the data or the call; 1 something failed while running.
"""

from __future__ import annotations

from collections.abc import Sequence


class Her2netError(Exception):
    """Base of every error that her2net raises on purpose."""

    exit_code = 2


class RawDataError(Her2netError, ValueError):
    """The raw dataset breaks the format; `her2net_verify` lists every problem."""


class PlanError(Her2netError, ValueError):
    """A plan, or another JSON artefact edited by hand, does not fit its schema."""


class CacheError(Her2netError, ValueError):
    """A cache is damaged or incomplete; `her2net_plan` rebuilds it."""


class LeakageError(Her2netError, ValueError):
    """A patient stands on both sides of a split; nothing may be trained on it."""


class StaleArtefactError(Her2netError, ValueError):
    """An artefact was made from inputs that have changed since."""


class MissingArtefactError(Her2netError, FileNotFoundError):
    """A stage was called before the one whose output it needs."""


class PredictionTableError(Her2netError, ValueError):
    """A prediction table breaks its format (columns, sums, duplicates)."""


class ArchiveError(Her2netError, ValueError):
    """A model archive is damaged, unsafe, made by a newer her2net, or computes otherwise here."""


class MissingDependencyError(Her2netError, ImportError):
    """An optional package is absent; the message names the pip command."""


class WriteError(Her2netError, OSError):
    """A file cannot be written: disk full, read-only, folder gone. What was there before is untouched.

    It is for the user to make room or bring the folder back, so the exit code is 2.
    """


class LockError(Her2netError, RuntimeError):
    """Another process works on the same files, or has taken them over."""

    exit_code = 1


class MemoryLimitError(Her2netError, MemoryError):
    """What was asked for does not fit into the memory that is free; the message says how much it needs."""


class TrainingError(Her2netError, RuntimeError):
    """Training cannot go on, for example after a non-finite loss."""

    exit_code = 1


def describe(what: str, *, where: object = "", found: object = None, expected: object = None, remedy: str = "") -> str:
    """Word one problem: what, where, found, expected, next step.

    Example:
        >>> describe("label is unknown", where="cases.csv row 3", found="maybe", expected="0 or 1", remedy="Correct it.")
        "cases.csv row 3: label is unknown; found 'maybe', expected 0 or 1. Correct it."
    """
    text = f"{where}: {what}" if str(where) else what
    if found is not None:
        text += f"; found {found!r}" if isinstance(found, str) else f"; found {found}"
    if expected is not None:
        text += f", expected {expected}"
    text += "."
    return f"{text} {remedy}".strip()


def join_problems(headline: str, problems: Sequence[str], *, limit: int = 50) -> str:
    """Word several problems as one message, the headline first, at most `limit` of them."""
    lines = [headline, *(f"  - {problem}" for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)
