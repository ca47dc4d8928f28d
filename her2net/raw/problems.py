"""One finding about a raw dataset, and short ways to word it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from her2net.artefact import Strict
from her2net.errors import describe

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Problem(Strict):
    """Something a user should know about a raw dataset.

    Attributes:
        severity: an `error` stops every later stage; a `warning` changes what is done or how far to trust it.
        check: stable short id of the check, for example `mask-empty`.
        where: file (relative to the dataset's folder), row or key.
        message: what was found, what was expected, and the remedy.
    """

    severity: Severity
    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def problem(
    severity: Severity,
    check: str,
    where: object,
    what: str,
    *,
    found: object = None,
    expected: object = None,
    remedy: str,
) -> Problem:
    """Word one problem in the common shape."""
    message = describe(what, found=found, expected=expected, remedy=remedy)
    return Problem(severity=severity, check=check, where=printable(str(where)), message=printable(message))


def printable(text: str) -> str:
    """Replace what cannot be encoded or would disturb a terminal (lone surrogates, control characters)."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in safe)


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the errors among the problems, in their order."""
    return [item for item in problems if item.severity == "error"]


def enumerate_names(names: Iterable[str], *, limit: int = 8) -> str:
    """Join names for a message, at most `limit` of them.

    Example:
        >>> enumerate_names(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    listed = list(names)
    text = ", ".join(listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"
