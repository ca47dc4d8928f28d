"""The licence of a model: chosen by who made it, or plainly not chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from her2net.archive.manifest import LICENCE, MAX_LICENCE, MAX_TEXT_BYTES
from her2net.artefact import read_text
from her2net.errors import ArchiveError, describe

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*( (AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*")
NONE_CHOSEN = "No licence was chosen: nobody but its makers may use, change or pass on this model. Ask them."


@dataclass(frozen=True)
class Licence:
    """Identifier (`None` where none was chosen) and the text that goes into the archive."""

    identifier: str | None
    text: str


def read_licence(chosen: str | None) -> Licence:
    """Read what the user gave: an SPDX identifier such as `CC-BY-4.0`, or a text file with the licence.

    Raises:
        ArchiveError: neither.
        PlanError: the file is not UTF-8 text.
    """
    if chosen is None:
        return Licence(None, NONE_CHOSEN + "\n")
    path = Path(chosen)
    if path.is_file():
        text = read_text(path)
        if not text.strip() or len(text.encode()) > MAX_TEXT_BYTES:
            raise ArchiveError(describe("an empty or overlong licence", where=path, found=f"{len(text)} characters"))
        return Licence(f"see {LICENCE}", text)
    if path.suffix.lower() in (".txt", ".md") or not IDENTIFIER.fullmatch(chosen) or len(chosen) > MAX_LICENCE:
        raise ArchiveError(describe("neither a licence identifier nor a file", where="--licence", found=chosen,
                                    expected="an SPDX identifier such as CC-BY-4.0, or a text file"))
    return Licence(chosen, f"SPDX-License-Identifier: {chosen}\n")
