"""Case and patient ids → pseudonyms, by a keyed hash whose key stays where the ids are.

Whoever has the key can compute a pseudonym again from its id; whoever has not can neither go back nor try ids out.
The key is made once per dataset and lies in its results folder. Delete it, and the pseudonyms can no longer be traced.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from her2net.artefact import replacing
from her2net.errors import PlanError, describe
from her2net.locks import hold
from her2net.predictions import Predictions, make_predictions

Kind = Literal["case", "patient"]
KEY_BYTES = 32
DIGEST_BYTES = 10
"""80 bits: 16 characters; among 100,000 ids two collide with a chance of 1 in 10^14."""


def load_key(path: Path) -> bytes:
    """Read the key, or make one that only its owner may read; of several processes at once, one makes it.

    Raises:
        PlanError: the file is no key, or cannot be read.
        WriteError: it cannot be written.
    """
    if path.exists():
        return _read_key(path)
    with hold(path, "the key of the pseudonyms"):
        if not path.exists():
            content = f"{secrets.token_bytes(KEY_BYTES).hex()}\n"
            with replacing(path) as temporary:
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(content)
        return _read_key(path)


def _read_key(path: Path) -> bytes:
    remedy = "Restore it, or delete it: new pseudonyms will then differ from the earlier ones."
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise PlanError(describe("the key of the pseudonyms cannot be read", where=path, found=str(error), remedy=remedy)) from None
    if len(key) != KEY_BYTES:
        raise PlanError(describe("not a key of pseudonyms", where=path, found=f"{len(key)} bytes", expected=KEY_BYTES, remedy=remedy))
    return key


def pseudonym(identifier: str, key: bytes, kind: Kind = "case") -> str:
    """Return the pseudonym of one id; a case and a patient of the same id get different ones.

    Source:
        HMAC-SHA256 (RFC 2104), cut to 80 bits, in base 32.
    """
    digest = hmac.new(key, f"{kind}\0{identifier}".encode(), hashlib.sha256).digest()[:DIGEST_BYTES]
    return f"{kind[0].upper()}-{base64.b32encode(digest).decode()}"


def pseudonymise(identifiers: Iterable[str], key: bytes, kind: Kind = "case") -> dict[str, str]:
    """Return id -> pseudonym.

    Raises:
        PlanError: two ids have the same pseudonym.
    """
    found = {identifier: pseudonym(identifier, key, kind) for identifier in identifiers}
    if len(set(found.values())) < len(found):
        raise PlanError("two ids have the same pseudonym. Delete the key (pseudonym.key in the results) to draw another one.")
    return found


def pseudonymise_table(table: Predictions, key: bytes) -> Predictions:
    """Return the table with pseudonyms for cases and patients, sorted by them: the order tells nothing either."""
    cases, patients = pseudonymise(table.case_ids, key), pseudonymise(table.patient_ids, key, "patient")
    return make_predictions(
        [cases[c] for c in table.case_ids], [patients[p] for p in table.patient_ids], table.probs,
        labels=[None if label < 0 else int(label) for label in table.labels], folds=list(table.folds),
    )  # fmt: skip
