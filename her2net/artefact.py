"""What every artefact on disk has in common: strict models, digests and atomic writes.

A JSON artefact is a frozen pydantic model. Unknown keys, wrong types, NaN and
duplicate keys are errors that name the JSON path. Nothing is ever half-written:
a file appears whole, under its final name, or not at all.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from her2net.errors import Her2netError, MissingArtefactError, PlanError, WriteError, join_problems
from her2net.version import __version__

ArtefactT = TypeVar("ArtefactT", bound="Artefact")
MAX_TEXT_BYTES = 1 << 30


class Strict(BaseModel):
    """A frozen part of an artefact: unknown key, wrong type, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class Artefact(Strict):
    """A JSON file on disk that says its schema, its maker and what it was made from.

    Attributes:
        schema_version: version of the file format; a newer one is refused.
        her2net_version: the release that wrote the file.
        made_from: name of each input -> its digest.
    """

    SCHEMA_VERSION: ClassVar[int] = 1
    MADE_BY: ClassVar[str] = ""
    REMEDY: ClassVar[str] = ""
    """What to do about a damaged file, where deleting it and running `MADE_BY` is not the answer."""

    schema_version: int = 1
    her2net_version: str = __version__
    made_from: dict[str, str] = {}

    def save(self, path: Path) -> None:
        """Write the artefact as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls: type[ArtefactT], path: Path) -> ArtefactT:
        """Read and check the artefact.

        Raises:
            MissingArtefactError: no such file; names the command that makes it.
            PlanError: not JSON, or not of this schema; names every JSON path at fault.
        """
        made_anew = f"Correct the file, or delete it and run {cls.MADE_BY} to make it anew." if cls.MADE_BY else "Correct the file."
        return cls.parse(read_text(path, made_by=cls.MADE_BY), where=path, remedy=cls.REMEDY or made_anew)

    @classmethod
    def parse(cls: type[ArtefactT], text: str, *, where: object, remedy: str = "") -> ArtefactT:
        """Check the text of an artefact; `where` is what messages call it.

        Raises:
            PlanError: as `load`.
        """
        found = _parse_json(where, text, remedy)
        version = found.get("schema_version", 1) if isinstance(found, dict) else 1
        if isinstance(version, int) and version > cls.SCHEMA_VERSION:
            raise PlanError(
                f"{where}: schema_version is {version}, this her2net {__version__} reads up to {cls.SCHEMA_VERSION}. "
                "Upgrade her2net (pip install --upgrade her2net)."
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            headline = f"{where}: not a valid {cls.__name__}. {remedy}".strip()
            raise PlanError(join_problems(headline, _explain(error))) from None


def _explain(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":  # the words name the parts that contradict each other; all of it would bury them
            problems.append(f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"]))
            continue
        found = "" if item["type"] == "missing" else f"; found {str(item['input'])[:80]!r}"
        problems.append(f"{place or '(top level)'}: {item['msg'][0].lower()}{item['msg'][1:]}{found}")
    return problems


def _parse_json(where: object, text: str, remedy: str = "") -> Any:
    def refuse(what: str) -> PlanError:
        return PlanError(f"{where}: {what} {remedy}".rstrip())

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted(key for key, n in Counter(keys).items() if n > 1)
        if repeated:
            raise refuse(f"the key {', '.join(map(repr, repeated))} occurs twice. Keep one of them.")
        return dict(pairs)

    def reject_constant(name: str) -> Any:
        raise refuse(f"{name} is not allowed in JSON; write a finite number or null.")

    try:
        value = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=reject_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        escape = f"\\u{ord(error.object[error.start]):04x}"
        raise refuse(f"{escape} is half a character and cannot stand alone.") from None
    except json.JSONDecodeError as error:
        raise refuse(f"line {error.lineno}, column {error.colno}: not JSON ({error.msg}).") from None
    except ValueError as error:  # an integer of thousands of digits
        raise refuse(f"cannot be read as JSON ({error}).") from None
    except RecursionError:
        raise refuse("nested too deeply to be one of her2net's files.") from None


def changed_inputs(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of those inputs in `now` whose digest is not the recorded one, in their order."""
    return [name for name in now if recorded.get(name) != now[name]]


def load_json(path: Path, *, made_by: str = "") -> Any:
    """Read a JSON file strictly: no duplicate keys, no NaN.

    Raises:
        MissingArtefactError: no such file.
        PlanError: not such JSON; names the line or the key.
    """
    return _parse_json(path, read_text(path, made_by=made_by))


def read_text(path: Path, *, made_by: str = "") -> str:
    """Read a UTF-8 text file, with or without a byte-order mark.

    Raises:
        MissingArtefactError: no such file; names the command that makes it.
        PlanError: no regular file, unreadable, too large, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise PlanError(f"{path}: is not a file. Move it away.")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise PlanError(f"{path}: larger than {MAX_TEXT_BYTES >> 20} MiB, so not one of her2net's files. Move it away.")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        remedy = f" Run {made_by} first." if made_by else ""
        raise MissingArtefactError(f"{path}: no such file.{remedy}") from None
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}).") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`, which takes the place of `path` when the block ends well.

    Whatever happens, `path` holds the former content or the new one, also after a power cut: the temporary file is
    on the disk before it is renamed, and the folder after it.

    Raises:
        WriteError: the disk is full, the folder read-only or gone; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            for folder in new_folders:
                folder.rmdir()
        if isinstance(error, Her2netError):
            raise
        raise WriteError(explain_write_failure(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems lack it for folders
            raise
    finally:
        os.close(handle)


def explain_write_failure(path: Path, error: OSError) -> str:
    """Word why a file cannot be written, what became of it, and what to do."""
    remedies = {
        errno.ENOSPC: "Free some space",
        errno.EDQUOT: "Your quota is used up: free some space",
        errno.EROFS: "The file system is read-only: write elsewhere (her2net_preprocessed, her2net_results)",
        errno.EACCES: "You may not write there: change the permissions or write elsewhere",
        errno.EPERM: "You may not write there: change the permissions or write elsewhere",
        errno.ENOENT: "The folder has vanished: bring it back (is a network drive gone?)",
        errno.ESTALE: "The network drive is gone: bring it back",
        errno.ENOTDIR: "A file stands where a folder should be: move it away",
        errno.EEXIST: "A file stands where a folder should be: move it away",
        errno.EISDIR: "A folder stands where the file should be: move it away",
    }
    remedy = remedies.get(error.errno or 0, "Check the disk")
    reason = error.strerror or str(error)
    state = "its former content is untouched" if os.path.exists(path) else "nothing was left behind"
    return f"{path}: cannot be written ({reason}); {state}. {remedy}, and run the same command again."


def sweep_temporaries(*folders: Path) -> None:
    """Remove what a killed process left half-written in these folders; only for who holds their lock."""
    for folder in folders:
        for leftover in folder.glob(".*.tmp"):
            with suppress(OSError):
                leftover.unlink()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path`, whole, when the block ends, and not at all if it fails.

    Raises:
        WriteError: see `replacing`.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename.

    Raises:
        WriteError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with Unix line ends."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically; `None` and NaN become empty cells, floats keep every digit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_text(path, buffer.getvalue())


def _cell(value: Any) -> Any:
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    return repr(float(value)) if isinstance(value, float) else value


def digest_bytes(content: bytes) -> str:
    """Return a 16-hex-digit BLAKE2b digest."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of a plain value or model, independent of key order."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return digest_bytes(json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def digest_file(path: Path) -> str:
    """Return the digest of a file's content, read in blocks of 1 MiB."""
    hasher = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
