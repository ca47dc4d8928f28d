"""Damaged tables: cases.csv as spreadsheets, editors and scripts leave it."""

from __future__ import annotations

import codecs
import gzip
import io
import zipfile
from collections.abc import Callable

from raw_factory import change_cell, read_rows, write_table

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import become, link, raw, rows, set_spec

TABLE = Kind("cases.csv", (VERIFY, PLAN))
refused, accepted = TABLE.refused, TABLE.accepted
CASES = "cases.csv"


def cell(column: str, value: str, row: int = 5):  # type: ignore[no-untyped-def]
    return lambda d: change_cell(d.raw, row, column, value)


def text(change: Callable[[str], str], encoding: str = "utf-8"):  # type: ignore[no-untyped-def]
    """Change the text of the file, and save it in an encoding."""
    return raw(CASES, lambda content: change(content.decode()).encode(encoding))


def separated(separator: str, **values: str):  # type: ignore[no-untyped-def]
    """Write the table with another separator, with other values in row 5."""

    def damage(d: DatasetPaths) -> None:
        for column, value in values.items():
            change_cell(d.raw, 5, column, value)
        write_table(d.raw / CASES, read_rows(d.raw), separator=separator)

    return damage


def labels(*spellings: str):  # type: ignore[no-untyped-def]
    """Write the label of the cases of class 1 in these spellings."""

    def damage(d: DatasetPaths) -> None:
        for row, spelling in zip((3, 5, 7, 9), spellings, strict=True):
            change_cell(d.raw, row, "label", spelling)

    return damage


def column(name: str, value: str = "x", *, at: int | None = None):  # type: ignore[no-untyped-def]
    """Add a column."""

    def change(table: list[list[str]]) -> None:
        for i, row in enumerate(table):
            row.insert(len(row) if at is None else at, name if i == 0 else value)

    return rows(change)


def workbook() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return buffer.getvalue()


def wide(n: int):  # type: ignore[no-untyped-def]
    def change(table: list[list[str]]) -> None:
        for i, row in enumerate(table):
            row.extend([f"c{k}" if i == 0 else "" for k in range(n)])

    return rows(change)


def bad(name: str, column_name: str, value: str, *why: str) -> Mutation:
    return refused(name, cell(column_name, value), "cases.csv row 5", *why)


MUTATIONS: list[Mutation] = [
    refused("missing", lambda d: (d.raw / CASES).unlink(), CASES, "no such file"),
    refused("0 bytes", become(CASES, b""), CASES, "holds no row"),
    refused("header alone", rows(lambda t: t[:1]), "class negative", "0 training patient(s)"),
    refused("empty rows alone", become(CASES, b"\n\n,,,,\n"), CASES, "holds no row"),
    refused("workbook under the name of a CSV", become(CASES, workbook()), CASES, "is a spreadsheet workbook"),
    refused("old workbook under the name of a CSV", become(CASES, b"\xd0\xcf\x11\xe0" + bytes(600)), CASES, "spreadsheet workbook"),
    refused("compressed", become(CASES, gzip.compress(b"case_id,label,patient_id\n")), CASES, "control character"),
    refused("HTML instead", become(CASES, b"<html><table><tr><td>case_id</td></tr></table></html>"), "cases.csv header",
            "'case_id' (required) is absent"),
    refused("JSON instead", become(CASES, b'[{"case_id": "C000", "label": 1}]'), CASES),
    refused("NUL at the end", text(lambda t: t + "\0"), CASES, "control character '\\x00'"),
    refused("NULs between the letters", text(lambda t: "\0".join(t)), CASES),
    refused("NUL bytes alone", become(CASES, bytes(5000)), CASES),
    refused("control character", text(lambda t: t.replace("P003", "P\x0703")), CASES, "line 5 holds the control character"),
    refused("cut in the middle of a row", text(lambda t: t[: t.index("P005")]), "cases.csv row 7", "cells under"),
    refused("cut in the middle of an id", text(lambda t: t[: t.index("P005") - 4]), "cases.csv row 7"),
    refused("mixed separators", text(lambda t: t.replace("C003,1,P003", "C003;1;P003")), "cases.csv row 5", "cells under"),
    refused("separators mixed in the header", text(lambda t: t.replace("case_id,label,", "case_id;label;")), "cases.csv"),
    refused("row too long", rows(lambda t: t[4].append("x")), "cases.csv row 5", "6 cells under 5 columns"),
    refused("row too short", rows(lambda t: t[4].pop()), "cases.csv row 5", "4 cells under 5 columns"),
    refused("quote never closed", text(lambda t: t.replace("P003", '"P003')), "cases.csv row 5", "A quote"),
    refused("quote inside a cell", text(lambda t: t.replace("P003", '"P"003')), "cases.csv row 5", "A quote"),
    refused("merged header of two rows", text(lambda t: "ids,,clinic,,\n" + t), "cases.csv header", "is absent"),
    refused("title above the header", text(lambda t: "Our study 2026\n" + t), "cases.csv header", "is absent"),
    refused("no header", rows(lambda t: t[1:]), "cases.csv header", "is absent"),
    refused("columns turned into rows", rows(lambda t: [list(r) for r in zip(*t, strict=True)]), "cases.csv header", "is absent"),
    refused("100000 columns", wide(100_000), CASES, "too many columns", "expected at most 4096"),
    refused("row of 100000 cells", text(lambda t: t + "," * 99_999 + "x\n"), "cases.csv row 12", "100000 cells under 5 columns"),
    refused("cell of 10 MB", cell("site", "x" * 10_000_000), "cases.csv row 5"),
    refused("column twice", column("label", "1"), CASES, "'label' occurs twice"),
    refused("column twice in another case", column("LABEL", "1"), CASES, "'label' occurs twice"),
    *(refused(f"column {name} missing", text(lambda t, n=name: t.replace(n, "other", 1)), "cases.csv header", f"'{name}'")
      for name in ("case_id", "label", "patient_id", "site", "age")),
    refused("column name misspelled", text(lambda t: t.replace("case_id", "case id", 1)), "cases.csv header", "'case_id'"),
    bad("label unknown", "label", "maybe", "found 'maybe'", "0 (negative) or 1 (positive)"),
    bad("label empty", "label", "", "no label for the training case 'C003'"),
    bad("label out of range", "label", "2", "unknown label"),
    bad("label negative", "label", "-1", "unknown label"),
    bad("label between classes", "label", "0.5", "unknown label"),
    bad("label infinite", "label", "inf", "unknown label"),
    bad("label not a number", "label", "NaN", "no label for the training case"),
    bad("label too large for a float", "label", "1e999", "unknown label"),
    bad("label that is a date", "label", "2026-01-01", "unknown label"),
    bad("label that is a formula", "label", "=IF(A1,1,0)", "unknown label"),
    bad("label that is an error of a spreadsheet", "label", "#REF!", "unknown label"),
    bad("label with an underscore", "label", "1_0", "unknown label"),
    bad("label of 5000 digits", "label", "1" * 5000, "unknown label"),
    refused("one class alone", labels("0", "0", "0", "0"), "class positive", "0 training patient(s)"),
    refused("one patient of a class", labels("1", "0", "0", "0"), "class positive", "1 training patient(s)"),
    bad("number that is none", "age", "old", "found 'old'", "declared continuous"),
    bad("number that is a date", "age", "01.02.1980", "not a number"),
    bad("number with a unit", "age", "43 y", "not a number"),
    bad("infinite number", "age", "inf", "not a number"),
    bad("decimal comma where the comma separates", "age", "40,5", "not a number"),
    bad("number that is a formula", "age", "=2026-1980", "not a number"),
    refused("binary of three values", lambda d: (set_spec(d, lambda s: s["covariates"].update(site="binary")),
            change_cell(d.raw, 5, "site", "west")), "cases.csv column site", "3 values"),
    refused("row twice", rows(lambda t: t.append(t[4])), "cases.csv row 12", "occurs in row 5 too"),
    refused("link to itself", link(CASES, CASES), CASES, "no such file"),
    refused("link to a device without end", link(CASES, "/dev/zero"), CASES, "is not a file"),
    refused("folder instead", lambda d: ((d.raw / CASES).unlink(), (d.raw / CASES).mkdir()), CASES, "is not a file"),
    refused("300 MB", lambda d: (open(d.raw / CASES, "r+b").truncate(300 << 20)), CASES, "more than 256 MiB"),
    accepted("byte-order mark", text(lambda t: t, "utf-8-sig"), "spreadsheets write it"),
    accepted("UTF-16", text(lambda t: t, "utf-16"), "spreadsheets write it"),
    accepted("UTF-16 without a mark", text(lambda t: t, "utf-16-le"), "recognised by its zeros"),
    accepted("two byte-order marks", raw(CASES, lambda b: codecs.BOM_UTF8 * 2 + b), "concatenated files have them"),
    accepted("Windows-1252", text(lambda t: t.replace("north", "Münster"), "cp1252"), "a note: it is guessed", "not UTF-8"),
    accepted("semicolons", separated(";"), "spreadsheets write them"),
    accepted("tabs", separated("\t"), "spreadsheets write them"),
    accepted("semicolons and decimal commas", separated(";", age="40,5"), "a comma is a point where it does not separate"),
    accepted("separator declared in the first line", text(lambda t: "sep=,\n" + t), "spreadsheets write it"),
    accepted("line ends of Windows", text(lambda t: t.replace("\n", "\r\n")), "any line ends"),
    accepted("line ends of old Macs", text(lambda t: t.replace("\r\n", "\n").replace("\n", "\r")), "any line ends"),
    accepted("every cell quoted", text(lambda t: "".join(
        ",".join(f'"{c}"' for c in line.split(",")) + "\n" for line in t.splitlines())), "usual"),
    accepted("empty rows and columns", text(lambda t: "\n,,,,\n" + t.replace("\r\n", ",,\n") + ",,,,,,\n\n"), "spreadsheets leave them"),
    accepted("padding", text(lambda t: t.replace(",", " , ")), "spreadsheets pad"),
    accepted("names of columns in capitals", text(lambda t: t.replace("case_id,label,patient_id", "CASE_ID,Label,Patient_ID")),
             "people type them"),
    accepted("columns that nobody declared", column("notes", "=1+1"), "they are never read"),
    accepted("column without a name", column("", "x"), "a note: it is not read", "a column without a name"),
    accepted("4000 columns", wide(4000), "at most 4096"),
    accepted("labels 1.0, positive, POSITIVE and =\"1\"", labels("1.0", "positive", "POSITIVE", '="1"'), "spellings of class 1"),
    accepted("labels quoted, padded, with a plus and an exponent", labels(" 1 ", "+1", "1e0", "01"), "spellings of class 1"),
    accepted("missing numbers", lambda d: [cell("age", v, i)(d) for i, v in enumerate(("", "NA", "n/a", "-", "?", "null"), start=2)],
             "a covariate may be missing"),
    accepted("site missing", cell("site", ""), "a site may be unknown"),
    accepted("test label missing", cell("label", "", row=10), "test labels may be sealed elsewhere"),
    accepted("test label unknown", cell("label", "maybe", row=10), "test labels are opened by the evaluation alone"),
]  # fmt: skip
