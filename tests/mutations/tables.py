"""Damaged prediction tables: those of the folds and modalities, and those that are given to `her2net_evaluate`."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

from her2net.paths import DatasetPaths
from mutations.case import ENSEMBLE, FUSE, Command, Kind, Mutation
from mutations.tools import Damage, edit_file, replace_file

GIVEN: Command = ("evaluate", "--predictions", "{root}/a.csv", "-o", "{root}/out", "--quiet")
LABELLED: Command = ("evaluate", "--predictions", "{root}/a.csv", "--labels", "{root}/cases.csv", "-o", "{root}/out", "--quiet")
TWO: Command = ("evaluate", "--predictions", "{root}/a.csv", "{root}/b.csv", "-o", "{root}/out", "--quiet")
OOF = Kind("oof.csv", (ENSEMBLE,))
POOLED = Kind("oof.csv of a modality", (FUSE,))
OWN = Kind("evaluate --predictions", (GIVEN,))
LABELS = Kind("evaluate --labels", (LABELLED,))

GOOD = b"case_id,patient_id,fold,label,prob_0,prob_1\n" + b"".join(
    b"C%03d,P%03d,%d,%d,%.2f,%.2f\n" % (i, i, i // 4, i % 2, 0.95 - i / 10, 0.05 + i / 10) for i in range(8)
)
"""Out-of-fold predictions of eight cases."""


def root_of(d: DatasetPaths) -> Path:
    return d.roots.raw.parent


def given(content: bytes, name: str = "a.csv") -> Damage:
    return lambda d: (root_of(d) / name).write_bytes(content)


def table(change: Callable[[list[list[str]]], object]) -> bytes:
    """Return the good table with other rows, header first."""
    rows = [line.split(",") for line in GOOD.decode().splitlines()]
    changed = change(rows)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(changed if isinstance(changed, list) else rows)
    return buffer.getvalue().encode()


def cell(row: int, column: int, value: str) -> bytes:
    def change(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return table(change)


ROW = "row 3 (C001)"
TABLES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "0 bytes": (b"", ("case_id", "no header")),
    "header only": (table(lambda r: r[:1]), ("no case",)),
    "NUL bytes": (bytes(200), ("control character",)),
    "NUL in a cell": (cell(2, 0, "C\0"), ("line 3", "control character")),
    "no text": (b"\x80\xff\xfe", ("not UTF-8",)),
    "UTF-16": (GOOD.decode().encode("utf-16"), ("not UTF-8",)),
    "workbook": (b"PK\x03\x04" + bytes(range(256)), ("not UTF-8",)),
    "HTML": (b"<html><table><tr><td>case_id</td></tr></table>", ("case_id",)),
    "quote not closed": (GOOD.replace(b"C001", b'"C001'), ("not CSV",)),
    "cell of a megabyte": (cell(2, 1, "x" * (1 << 20)), ("not CSV",)),
    "case_id absent": (table(lambda r: [row[1:] for row in r]), ("case_id", "absent")),
    "prob_0 absent": (table(lambda r: [row[:4] + row[5:] for row in r]), ("prob_0", "absent")),
    "probabilities numbered from 1": (GOOD.replace(b"prob_1", b"prob_2").replace(b"prob_0", b"prob_1"), ("prob_0", "absent")),
    "column twice": (table(lambda r: [[*row, row[0]] for row in r]), ("'case_id' occurs twice",)),
    "probability twice": (table(lambda r: [[*row, row[-1]] for row in r]), ("'prob_1' occurs twice",)),
    "100000 columns": (b",".join([b"case_id", *(b"prob_%d" % i for i in range(100_000))]) + b"\nC000" + b",0" * 100_000 + b"\n", ("column",)),
    "cell too few": (table(lambda r: r[2].pop()), (ROW,)),
    "cells too many": (table(lambda r: r[2].extend(["1", "2"])), (ROW,)),
    "case twice": (table(lambda r: r.append(r[2])), ("row 10 (C001)", "already")),
    "case_id empty": (cell(2, 0, ""), ("row 3", "empty")),
    **{f"probability {text or 'empty'}": (cell(2, 5, text), (ROW, "outside 0..1 or not a number"))
       for text in ("", "nan", "inf", "-0.1", "1.1", "85%", "0,15", "0x1", "=1-1", "1e999", "maybe", "1_0")},
    "probabilities sum to 2": (cell(2, 5, "1"), (ROW, "sum to 1")),
    "probabilities all 0": (table(lambda r: r[2].__setitem__(slice(4, 6), ["0", "0"])), (ROW, "sum to 1")),
    **{f"label {text}": (cell(2, 3, text), (ROW, "label is unknown")) for text in ("2", "-1", "0.5", "inf", "positive", "1e400")},
    "no label at all": (table(lambda r: [row.__setitem__(3, "") for row in r[1:]] and r), ("no case has a label",)),
    "one probability": (table(lambda r: [row[:5] for row in r]), ("prob_1", "absent")),
}  # fmt: skip


def pooled(content: bytes) -> Damage:
    return lambda d: replace_file(d.model("US") / "oof.csv", content)


def in_fold(change: Callable[[bytes], bytes]) -> Damage:
    return lambda d: edit_file(d.fold("US", 0) / "oof.csv", change)


def with_labels(labels: bytes, *more: tuple[str, bytes]) -> Damage:
    """Give predictions without labels, and a table of labels."""

    def damage(d: DatasetPaths) -> None:
        given(table(lambda r: [row.__setitem__(3, "") for row in r[1:]] and r))(d)
        for name, content in (("cases.csv", labels), *more):
            (root_of(d) / name).write_bytes(content)

    return damage


GOOD_LABELS = b"case_id,label\n" + b"".join(b"C%03d,%d\n" % (i, i % 2) for i in range(8))
MUTATIONS: list[Mutation] = [
    *(OWN.refused(name, given(content), "a.csv", *says) for name, (content, says) in TABLES.items()),
    OWN.refused("missing", lambda d: None, "a.csv", "no such file"),
    OWN.refused("folder", lambda d: (root_of(d) / "a.csv").mkdir(), "a.csv", "is not a file"),
    OWN.refused("named pipe", lambda d: os.mkfifo(root_of(d) / "a.csv"), "a.csv", "is not a file"),
    OWN.refused("unreadable", lambda d: (given(GOOD)(d), os.chmod(root_of(d) / "a.csv", 0)), "a.csv", "cannot be read"),
    OWN.refused("output is a file", lambda d: (given(GOOD)(d), given(b"", "out")(d)), "out/metrics.json", "Not a directory"),
    OWN.refused("three classes beside two", lambda d: (given(GOOD)(d), given(
        b"case_id,prob_0,prob_1,prob_2,label\nC000,0.2,0.3,0.5,2\n", "b.csv")(d)), "different numbers of classes: a 2, b 3", commands=(TWO,)),
    OWN.refused("labels that contradict each other", lambda d: (given(GOOD)(d), given(cell(2, 3, "0"), "b.csv")(d)), "C001", commands=(TWO,)),
    OWN.accepted("byte-order mark, semicolons, decimal commas, line ends of Windows", given(
        codecs.BOM_UTF8 + GOOD.replace(b",", b";").replace(b".", b",").replace(b"\n", b"\r\n")), "spreadsheets write it"),
    OWN.accepted("label nan", given(cell(2, 3, "nan")), "that is how a missing cell is written; the case is left out, with a remark"),
    OWN.accepted("formula for an id", given(cell(2, 0, '=HYPERLINK("http://x")')), "an id is text and is never evaluated here"),
    *(POOLED.refused(name, pooled(TABLES[name][0]), "US/oof.csv", *TABLES[name][1]) for name in (
        "0 bytes", "UTF-16", "quote not closed", "prob_0 absent", "case twice", "probability nan", "label 2",
        "column twice")),
    POOLED.refused("missing", lambda d: (d.model("US") / "oof.csv").unlink(), "US/oof.csv", "Run her2net_ensemble"),
    POOLED.refused("unknown case", pooled(cell(2, 0, "C999")), "US/oof.csv", "C999"),
    POOLED.refused("case missing", pooled(table(lambda r: r[:-1])), "US/oof.csv", "C007"),
    POOLED.refused("another patient", pooled(cell(2, 1, "P999")), "US/oof.csv", "P999"),
    POOLED.refused("another label", pooled(cell(2, 3, "0")), "US/oof.csv", "C001"),
    POOLED.refused("three classes", pooled(table(lambda r: [[*row, "prob_2" if not i else "0"] for i, row in enumerate(r)])), "US/oof.csv",
                   "3"),
    OOF.refused("0 bytes", in_fold(lambda b: b""), "fold_0/oof.csv", "case_id"),
    OOF.refused("row missing", in_fold(lambda b: b"\n".join(b.splitlines()[:-1])), "US", "C003"),
    OOF.refused("row of the other fold", lambda d: edit_file(d.fold("US", 0) / "oof.csv", lambda b: b + (
        d.fold("US", 1) / "oof.csv").read_bytes().splitlines()[1]), "US", "C004"),
    OOF.refused("probability nan", in_fold(lambda b: b.replace(b",0.", b",nan,", 1)), "fold_0/oof.csv", "row 2"),
    OOF.refused("missing", lambda d: (d.fold("US", 0) / "oof.csv").unlink(), "fold_0/oof.csv", "Run her2net_train"),
    OOF.refused("three classes", lambda d: replace_file(d.fold("US", 0) / "oof.csv", b"case_id,patient_id,fold,label,prob_0,prob_1,prob_2\n"
                + b"".join(b"C%03d,P%03d,0,%d,0.5,0.25,0.25\n" % (i, i, i % 2) for i in range(4))), "fold_0/oof.csv", "3"),
    OOF.refused("another label", in_fold(lambda b: b.replace(b"C000,P000,0,0,", b"C000,P000,0,1,")), "fold_0/oof.csv", "C000"),
    OOF.refused("another patient", in_fold(lambda b: b.replace(b"C000,P000,", b"C000,P999,")), "fold_0/oof.csv", "P999"),
    LABELS.refused("0 bytes", with_labels(b""), "cases.csv"),
    LABELS.refused("NUL bytes", with_labels(bytes(100)), "cases.csv", "control character"),
    LABELS.refused("workbook", with_labels(b"PK\x03\x04" + bytes(range(256))), "cases.csv", "workbook"),
    LABELS.refused("quote not closed", with_labels(GOOD_LABELS.replace(b"C001", b'"C001')), "cases.csv", "row"),
    LABELS.refused("label absent", with_labels(GOOD_LABELS.replace(b"label", b"class")), "cases.csv", "'label'"),
    LABELS.refused("case twice", with_labels(GOOD_LABELS + b"C000,0\n"), "cases.csv", "row 10", "C000"),
    LABELS.refused("case unknown", with_labels(GOOD_LABELS.replace(b"C000", b"X000")), "a.csv", "C000"),
    LABELS.refused("class 2", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000,2")), "C000", "2"),
    LABELS.refused("class -1", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000,-1")), "cases.csv", "'-1'"),
    LABELS.refused("class 10**30", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000," + b"9" * 30)), "cases.csv", "9" * 30),
    LABELS.refused("class 0.5", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000,0.5")), "cases.csv", "'0.5'"),
    LABELS.refused("class a word", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000,benign")), "cases.csv", "'benign'"),
    LABELS.accepted("class nan", with_labels(GOOD_LABELS.replace(b"C000,0", b"C000,nan")), "that is how a missing cell is written"),
    LABELS.refused("damaged dataset.json beside it", with_labels(GOOD_LABELS, ("dataset.json", b"{")), "dataset.json", "not valid"),
    LABELS.accepted("UTF-16 with tabs", with_labels(GOOD_LABELS.decode().replace(",", "\t").encode("utf-16")), "spreadsheets write it"),
]  # fmt: skip
