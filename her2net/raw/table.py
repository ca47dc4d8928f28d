"""Read `cases.csv` as spreadsheets write it: any usual encoding, separator, quoting and padding.

Tolerant of form, never of content: what is ambiguous (a row with another number of cells, a
column twice, text that is not text) is a problem with its row number, not a guess.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from her2net.raw.problems import Problem, enumerate_names, problem

SEPARATORS = (",", ";", "\t")
MAX_COLUMNS = 4096
MAX_BYTES = 256 << 20
INVISIBLE = "\ufeff\u200b\u200e\u200f\u2060"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
TEXT_FORMULA = re.compile(r'^="([^"]*)"$')
"""How spreadsheets protect leading zeros: ="0012"."""
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Row:
    """One row: its number as a spreadsheet shows it (the header is 1) and its cells by column."""

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: names as written, without padding; those without a name are left out.
        rows: rows that hold anything.
        decimal_comma: whether a comma may be a decimal point, as it does not separate cells.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimal_comma: bool

    def find_column(self, name: str) -> str | None:
        """Return the column of this name, whatever its case; `None` if there is none."""
        wanted = name.strip().casefold()
        return next((column for column in self.columns if column.casefold() == wanted), None)


def read_table(path: Path, *, where: str, required: tuple[str, ...]) -> tuple[Table | None, list[Problem]]:
    """Read a table tolerantly.

    Args:
        path: the file.
        where: its name in messages.
        required: columns by which the separator is recognised.

    Returns:
        The table, `None` where nothing can be made of the file, and every problem found.
    """
    content, problems = _read_bytes(path, where)
    if content is None:
        return None, problems
    text, found = _decode(content, where)
    problems += found
    if text is None:
        return None, problems
    table, found = _parse(text, where, required)
    return table, problems + found


def point_decimal(cell: str) -> str:
    """Write a number with a decimal comma, as spreadsheets do where cells are separated otherwise, with a point."""
    return cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell


def clean_cell(text: str) -> str:
    """Remove padding, invisible marks and the ="..." wrapping of a cell."""
    stripped = text.strip().strip(INVISIBLE).strip()
    wrapped = TEXT_FORMULA.match(stripped)
    return wrapped.group(1).strip() if wrapped else stripped


def _read_bytes(path: Path, where: str) -> tuple[bytes | None, list[Problem]]:
    def refuse(check: str, what: str, remedy: str) -> tuple[None, list[Problem]]:
        return None, [problem("error", check, where, what, remedy=remedy)]

    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "no such file"
            return refuse("table-missing", what, "Write a table with the columns case_id, label and patient_id.")
        if path.stat().st_size > MAX_BYTES:
            return refuse("table-too-large", f"more than {MAX_BYTES >> 20} MiB", "Keep one row per case.")
        return path.read_bytes(), []
    except OSError as error:
        return refuse("table-unreadable", f"cannot be read ({error.strerror})", "Check the file and its permissions.")


def _decode(content: bytes, where: str) -> tuple[str | None, list[Problem]]:
    if content[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        remedy = "In the spreadsheet program choose 'Save as' and the format CSV (UTF-8)."
        return None, [problem("error", "table-not-text", where, "is a spreadsheet workbook, not a CSV", remedy=remedy)]
    encodings = ["utf-8-sig", "cp1252", "latin-1"]
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encodings = ["utf-16"]
    elif b"\x00" in content[:2]:
        encodings = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return _accept_text(text, where, guessed=encoding in ("cp1252", "latin-1"))
    remedy = "Save it again as CSV (UTF-8)."
    return None, [problem("error", "table-not-text", where, "is not text in a known encoding", remedy=remedy)]


def _accept_text(text: str, where: str, *, guessed: bool) -> tuple[str | None, list[Problem]]:
    control = CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        what = f"line {line} holds the control character {control.group()!r}: the file is damaged or is not text"
        return None, [problem("error", "table-not-text", where, what, remedy="Save it again as CSV (UTF-8).")]
    if not guessed:
        return text, []
    remedy = "Save it as CSV (UTF-8) if names look wrong."
    return text, [problem("note", "table-encoding", where, "is not UTF-8; read as Windows-1252", remedy=remedy)]


def _parse(text: str, where: str, required: tuple[str, ...]) -> tuple[Table | None, list[Problem]]:
    text = text.lstrip(INVISIBLE)
    hint = re.match(r'"?sep=(.)"?[ \t]*(\r\n|\r|\n)', text)
    if hint:
        text = text[hint.end() :]
    separator = hint.group(1) if hint and hint.group(1) in SEPARATORS else _guess_separator(text, required)
    records, problems = _split(text, separator, where)
    first = next((i for i, record in enumerate(records) if any(record)), None)
    if first is None:
        if not problems:
            remedy = "Write a header and one row per case."
            problems.append(problem("error", "table-empty", where, "holds no row", remedy=remedy))
        return None, problems
    header = records[first]
    found = _check_header(header, where)
    if found:
        return None, problems + found
    rows, found = _make_rows(header, records[first + 1 :], first + 2, where)
    columns = tuple(name for name in header if name)
    return Table(columns, tuple(rows), decimal_comma=separator != ","), problems + found


def _guess_separator(text: str, required: tuple[str, ...]) -> str:
    """Choose the separator under which the header holds most required columns, then most columns."""
    lines = (line for line in io.StringIO(text, newline=None) if line.strip(f" \t\n,;{INVISIBLE}"))
    header = next(lines, "")[:1_000_000]

    def score(separator: str) -> tuple[int, int]:
        names = [clean_cell(name.strip().strip('"')).casefold() for name in header.split(separator)]
        return sum(name in names for name in required), len(names)

    return max(SEPARATORS, key=score)


def _split(text: str, separator: str, where: str) -> tuple[list[list[str]], list[Problem]]:
    records: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for record in reader:
            records.append([clean_cell(cell) for cell in record])
    except csv.Error as error:
        place = f"{where} row {len(records) + 1}"
        remedy = 'A quote (") is opened and not closed, or stands inside a cell; correct it in a text editor.'
        return records, [
            problem("error", "table-quoting", place, f"cannot be split into cells ({error})", remedy=remedy)
        ]
    return records, []


def _check_header(header: list[str], where: str) -> list[Problem]:
    if len(header) > MAX_COLUMNS:
        remedy = "Keep case_id, label, patient_id and the covariates."
        return [
            problem(
                "error",
                "table-too-wide",
                where,
                "too many columns",
                found=len(header),
                expected=f"at most {MAX_COLUMNS}",
                remedy=remedy,
            )
        ]
    names = [name.casefold() for name in header if name]
    seen: set[str] = set()
    repeated = sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if repeated:
        what = f"the column {enumerate_names(map(repr, repeated))} occurs twice"
        return [problem("error", "column-twice", where, what, remedy="Keep or rename one of them.")]
    return []


def _make_rows(
    header: list[str], records: list[list[str]], first_number: int, where: str
) -> tuple[list[Row], list[Problem]]:
    rows: list[Row] = []
    problems: list[Problem] = []
    nameless = False
    for number, record in enumerate(records, start=first_number):
        if not any(record):
            continue
        while len(record) > len(header) and not record[-1]:
            record.pop()
        if len(record) != len(header):
            what = f"{len(record)} cells under {len(header)} columns"
            remedy = "Give the row as many cells as the header; quote a cell that holds the separator."
            problems.append(problem("error", "row-length", f"{where} row {number}", what, remedy=remedy))
            continue
        cells = dict(zip(header, record, strict=True))
        nameless = bool(cells.pop("", "")) or nameless
        rows.append(Row(number, cells))
    if nameless:
        remedy = "Name the column, or delete it."
        problems.append(problem("note", "column-nameless", where, "a column without a name is not read", remedy=remedy))
    return rows, problems
