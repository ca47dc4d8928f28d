"""Case and patient ids that cannot be file names everywhere, or that look as if they could not."""

from __future__ import annotations

from raw_factory import change_cell

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import rows

ID = Kind("id", (VERIFY, PLAN))
ROW = "cases.csv row 5"


def written(case_id: str):  # type: ignore[no-untyped-def]
    """Change the id in the table alone."""
    return lambda d: change_cell(d.raw, 5, "case_id", case_id)


def renamed(case_id: str, file_id: str = ""):  # type: ignore[no-untyped-def]
    """Change the id in the table and the names of the case's files."""

    def damage(d: DatasetPaths) -> None:
        change_cell(d.raw, 5, "case_id", case_id)
        for path in [p for p in d.raw.rglob("C003*") if p.is_file()]:
            path.rename(path.with_name((file_id or case_id) + path.name.removeprefix("C003")))

    return damage


def patient(patient_id: str):  # type: ignore[no-untyped-def]
    return lambda d: change_cell(d.raw, 5, "patient_id", patient_id)


def bad(name: str, case_id: str, why: str) -> Mutation:
    return ID.refused(name, written(case_id), ROW, why)


MUTATIONS: list[Mutation] = [
    bad("empty", "", "is empty"),
    bad("parent folder", "..", "begins with a dot"),
    bad("this folder", ".", "begins with a dot"),
    bad("path up", "../C003", "holds '/'"),
    bad("absolute path", "/etc/passwd", "holds '/'"),
    bad("path of Windows", "C:\\x", "holds ':'"),
    bad("backslash", "a\\b", "holds '\\\\'"),
    bad("hidden file", ".C003", "begins with a dot"),
    bad("wildcard", "C*", "holds '*'"),
    bad("quote", 'C"3', "holds"),
    bad("pipe", "C|3", "holds '|'"),
    bad("angle brackets", "<b>C003</b>", "holds '<'"),
    bad("dot at the end", "C003.", "ends with a dot"),
    *(bad(f"reserved name {name}", name, "reserved name on Windows") for name in ("CON", "nul", "AUX.png", "com1", "LPT9.x.y")),
    *(bad(f"formula {name}", name, "formula") for name in ("=1+1", "+C003", "-C003", "@SUM(A1)")),
    bad("formula that starts a program", "=cmd|' /C calc'!A0", "'|'"),
    bad("invisible character", "C\u200b003", "invisible character"),
    bad("written from right to left", "C\u202e003", "invisible character"),
    bad("line break", "C0\n03", "control"),
    bad("private-use character", "C\ue000", "invisible character"),
    bad("120 letters and one", "x" * 121, "longer than 120 bytes"),
    bad("60 accents and one", "é" * 61, "longer than 120 bytes"),
    bad("100000 letters", "x" * 100_000, "longer than 120 bytes"),
    bad("another case's", "C002", "occurs in row 4 too"),
    bad("another case's in lower case", "c002", "only in case or accents"),
    ID.refused("accent composed twice", lambda d: (written("e\u0301")(d), change_cell(d.raw, 6, "case_id", "é")),
               "cases.csv row 6", "only in case or accents"),
    ID.refused("leading zeros dropped by a spreadsheet", lambda d: [renamed("007", "007")(d), written("7")(d)], ROW,
               "dropped leading zeros"),
    ID.refused("number made decimal by a spreadsheet", lambda d: [renamed("12", "12")(d), written("12.0")(d)], ROW,
               "no image of the case '12.0'"),
    ID.refused("id made a date by a spreadsheet", lambda d: [renamed("3-4", "3-4")(d), written("2026-03-04")(d)], ROW,
               "no image of the case '2026-03-04'"),
    ID.refused("patient empty", patient(""), ROW, "both sides of a split"),
    ID.refused("patient that is a formula", patient("=HYPERLINK(A1)"), ROW, "not plain text"),
    ID.refused("patient with a control character", patient("P\u0085003"), ROW, "not plain text"),
    *(ID.accepted(name, renamed(case_id), reason) for name, case_id, reason in (
        ("spaces inside", "patient 3 left", "ids may hold spaces"),
        ("dots inside", "3.1.left", "ids may hold dots"),
        ("accents", "Größe-é", "any letters"),
        ("Chinese", "患者003", "any letters"),
        ("Arabic", "مريض3", "any letters"),
        ("emoji", "🩺3", "any visible character"),
        ("digits", "0003", "text stays text"),
        ("like a channel", "C003_0000", "the table says which names are ids"),
        ("120 letters", "x" * 100, "up to 120 bytes"),
        ("like a missing value", "NA", "an id is never missing"),
        ("like a number", "1e5", "text stays text"),
        ("hyphens and signs inside", "a-b_c+d=e@f,g;h'i", "harmless inside"),
        ("almost a reserved name", "console", "only whole names are reserved"),
    )),
    ID.accepted("accent composed in the table, apart in the file name", renamed("Zoë", "Zoe\u0308"),
                "file systems differ; both are the same letter"),
    ID.accepted("padding in the table", lambda d: written("  C003\u00a0")(d), "spreadsheets pad"),
    ID.accepted("protected zeros of a spreadsheet", lambda d: [renamed("0012")(d), written('="0012"')(d)], "spreadsheets write them"),
    ID.accepted("patient of 300 letters", patient("p" * 300), "a patient names no file", commands=(VERIFY,)),
    ID.accepted("patient like a path", patient("../../x"), "a patient names no file", commands=(VERIFY,)),
    ID.accepted("several cases of a patient", patient("P001"), "the patient is the unit of splitting", commands=(VERIFY,)),
    ID.refused("patient renamed whom the user's folds name", patient("P999"), "custom-2 in splits.json", "P003", "P999", "--splits FILE",
               commands=(PLAN,)),
    ID.accepted("order of rows reversed", rows(lambda t: [t[0], *t[:0:-1]]), "rows are matched by id"),
]  # fmt: skip
