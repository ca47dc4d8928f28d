"""Which ids and names can be file names on every system, and stay harmless in a spreadsheet."""

from __future__ import annotations

import re
import unicodedata

RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
MAX_LENGTH = 120


def normalise(name: str) -> str:
    """Return the composed Unicode form: some file systems store accents apart from their letters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def word_key(text: str) -> str:
    """Return what all spellings of a word have in common: those that differ in upper and lower case or in Unicode form.

    Example:
        >>> word_key("Yes") == word_key("YES"), word_key("yes") == word_key("no")
        (True, False)
    """
    return normalise(text).casefold()


def explain_bad_name(name: str) -> str:
    """Say why a name cannot be a file name everywhere; empty if it can.

    Example:
        >>> explain_bad_name("P001"), explain_bad_name("a/b")
        ('', "holds '/'")
    """
    if not name:
        return "is empty"
    if len(name.encode("utf-8", "replace")) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} bytes"
    bad = FORBIDDEN.search(name)
    if bad:
        return f"holds {bad.group()!r}"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in name):
        return "holds a control or invisible character"
    return _explain_bad_ends(name)


def _explain_bad_ends(name: str) -> str:
    if name.startswith("."):
        return "begins with a dot"
    if name[-1] in ". ":
        return "ends with a dot or a space"
    if name[0] in "=+-@":
        return f"begins with {name[0]!r}, which spreadsheets take for a formula"
    if name.split(".")[0].strip().casefold() in RESERVED:
        return "is a reserved name on Windows"
    return ""
