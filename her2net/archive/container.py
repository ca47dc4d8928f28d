"""The container: a zip file without compression, extra fields, links or gaps, in which every byte is accounted for.

Members are read into memory one at a time and nothing is ever unpacked to disk, so a path has nowhere to lead.
Paths, links and the like are refused all the same: an honest archive has none.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from her2net.archive.manifest import (
    MANIFEST,
    MAX_ARCHIVE_BYTES,
    MAX_DIRECTORY_BYTES,
    MAX_MEMBER_BYTES,
    Manifest,
    Member,
)
from her2net.artefact import writing
from her2net.errors import ArchiveError, MissingArtefactError, describe, join_problems

DAMAGED = "Copy or download it again, and compare its SHA-256 with the sender's."
TOO_LARGE = "A model archive is at most {limit:,} bytes."
LOCAL_HEADER_BYTES = 30
END_BYTES, LOCATOR_BYTES, END64_BYTES = 22, 20, 56
UTF8_NAME = 0x800
MALFORMED = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError, struct.error, OSError)


def write_container(
    path: Path, members: Iterable[tuple[str, bytes]], make_manifest: Callable[[dict[str, Member]], Manifest]
) -> None:
    """Write an archive atomically; the same members give the same bytes.

    Args:
        members: (name, content), taken one at a time.
        make_manifest: called with the hashes of all members; its result is written last.

    Raises:
        ArchiveError: the file cannot be written, or would be too large to be read.
    """
    known: dict[str, Member] = {}
    try:
        with writing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members:
                if len(content) > MAX_MEMBER_BYTES or file.tell() + len(content) > MAX_ARCHIVE_BYTES:
                    raise ArchiveError(describe(f"{name} makes the archive too large to be imported", where=path,
                                                found=f"{len(content):,} bytes"))
                known[name] = Member(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
                _add(archive, name, content)
            _add(archive, MANIFEST, (make_manifest(known).model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the earliest that zip knows: no clock in the file
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)


@contextmanager
def open_container(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose structure is sound; its contents are not looked at yet.

    Raises:
        MissingArtefactError: no such file.
        ArchiveError: not a zip file, cut short, too large, or with members that no archive of her2net has.
    """
    if not path.exists():
        raise MissingArtefactError(f"{path}: no such file. Name a model archive, as her2net_export writes it.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror}).") from None
    with file:
        _check_end(path, file)
        try:
            archive = zipfile.ZipFile(file)
        except MALFORMED as error:
            raise ArchiveError(describe("not a model archive, or damaged", where=path, found=str(error), remedy=DAMAGED)) from None
        problems = check_entries(archive.infolist(), archive.start_dir)
        if problems:
            raise ArchiveError(join_problems(f"{path}: not a sound model archive; nothing of it was used.", problems))
        yield archive


def _check_end(path: Path, file: BinaryIO) -> None:
    """Read the last record before any library does: it says how much a reader would load into memory."""
    size = file.seek(0, 2)
    if size > MAX_ARCHIVE_BYTES:
        found, remedy = f"{size:,} bytes", TOO_LARGE.format(limit=MAX_ARCHIVE_BYTES)
        raise ArchiveError(describe("too large", where=path, found=found, remedy=remedy))
    file.seek(max(0, size - END_BYTES - LOCATOR_BYTES - END64_BYTES))
    tail = file.read()
    end, locator, end64 = tail[-22:], tail[-42:-22], tail[-98:-42]
    if end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise ArchiveError(describe("not a model archive, or cut short", where=path, remedy=DAMAGED))
    directory_bytes = struct.unpack("<I", end[12:16])[0]
    if locator[:4] == b"PK\x06\x07":  # an archive of more than 2 GiB
        if end64[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != size - 98:
            raise ArchiveError(describe("its last record is damaged", where=path, remedy=DAMAGED))
        directory_bytes = struct.unpack("<Q", end64[40:48])[0]
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ArchiveError(describe("its list of members is too long", where=path, found=f"{directory_bytes:,} bytes",
                                    expected=f"at most {MAX_DIRECTORY_BYTES:,}"))


def check_entries(entries: Sequence[zipfile.ZipInfo], directory_start: int) -> list[str]:
    """List what is wrong with the members' names, kinds, sizes and places in the file."""
    problems = [f"{entry.orig_filename!r} {bad}." for entry in entries if (bad := explain_bad_entry(entry))]
    names = Counter(entry.orig_filename for entry in entries)
    folded = Counter(name.casefold() for name in names)
    problems += [f"{name!r} is there {n} times." for name, n in names.items() if n > 1]
    problems += [f"{name!r} differs from another member in upper and lower case alone."
                 for name in names if folded[name.casefold()] > 1]  # fmt: skip
    if MANIFEST not in names:
        problems.append(f"{MANIFEST} is missing.")
    if not problems and not _is_contiguous(entries, directory_start):
        problems.append("there are bytes before, between or behind the members that belong to none, or members overlap.")
    return problems


def explain_bad_entry(entry: zipfile.ZipInfo) -> str:
    """Say why a member cannot be one of an honest archive; empty if it can."""
    name, mode = entry.orig_filename, entry.external_attr >> 16
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "is an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "is a path that leads out of the archive"
    if not name.isprintable() or "\\" in name or name.endswith("/") or stat.S_ISDIR(mode):
        return "is a folder, or no plain file name"
    if stat.S_ISLNK(mode):
        return "is a symbolic link"
    if mode and not stat.S_ISREG(mode):
        return "is a device or another special file"
    if (entry.extra and not (len(entry.extra) == 12 and entry.extra[:4] == b"\x01\x00\x08\x00")) or entry.comment:
        return "carries extra fields (a link's target, for one) or a comment"
    if entry.flag_bits & ~UTF8_NAME:
        return "is encrypted, or written without its size"
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        ratio = entry.file_size / max(entry.compress_size, 1)
        return f"is compressed ({ratio:,.0f} times smaller than its {entry.file_size:,} bytes); members are stored as they are"
    return f"has {entry.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}" if entry.file_size > MAX_MEMBER_BYTES else ""


def _is_contiguous(entries: Sequence[zipfile.ZipInfo], directory_start: int) -> bool:
    """Whether the members fill the file from its first byte to the list of members."""
    place = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if entry.header_offset != place:
            return False
        name_bytes = entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8_NAME else "cp437")
        place += LOCAL_HEADER_BYTES + len(name_bytes) + entry.compress_size
    return place == directory_start


def read_member(archive: zipfile.ZipFile, name: str, *, where: object, member: Member | None, limit: int) -> bytes:
    """Read one member into memory and compare it with the manifest.

    Args:
        member: size and hash it has to have; `None` for the manifest itself.
        limit: bytes above which it is not read.

    Raises:
        ArchiveError: too large, damaged, or not what the manifest says.
    """
    size = archive.getinfo(name).file_size
    if size > limit or (member is not None and size != member.bytes):
        expected = f"{member.bytes:,}" if member is not None and size <= limit else f"at most {limit:,}"
        raise ArchiveError(describe(f"{name} has the wrong size", where=where, found=f"{size:,} bytes", expected=expected,
                                    remedy=DAMAGED))
    try:
        content = archive.read(name)
    except MALFORMED as error:
        raise ArchiveError(describe(f"{name} is damaged", where=where, found=str(error), remedy=DAMAGED)) from None
    if member is not None and hashlib.sha256(content).hexdigest() != member.sha256:
        raise ArchiveError(describe(f"{name} is not what the manifest says: its SHA-256 differs", where=where, remedy=DAMAGED))
    return content
