"""The raw dataset: what is accepted, and that each fault is named with its place."""

from __future__ import annotations

import json
import re
import shutil
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_factory import change_cell, read_rows, spec_of, write_dataset, write_table

from her2net.errors import RawDataError
from her2net.evaluate.facts import facts_of_dataset, subgroup_levels
from her2net.raw.dataset import digest_test_label_cells, load_dataset, read_dataset, read_test_labels, seal_holdout
from her2net.raw.problems import Problem
from her2net.raw.table import read_table


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("good") / "Dataset001_Tiny")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / good.name))


def find(problems: list[Problem], check: str) -> Problem:
    return next(item for item in problems if item.check == check)


def set_spec(folder: Path, **changes: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(spec_of(**changes)), encoding="utf-8")


def test_a_folder_that_is_not_read_is_noted(folder: Path) -> None:
    (folder / "masksTr").rename(folder / "labelsTr")
    (folder / ".git").mkdir()
    (note,) = [item for item in load_dataset(folder)[1] if item.check == "folder-unknown"]
    assert (note.severity, note.where) == ("note", "labelsTr")
    assert note.message.endswith("name it one of imagesTr, masksTr, imagesTs, masksTs.")


def test_reads_a_good_dataset(good: Path) -> None:
    dataset = read_dataset(good)
    assert (len(dataset.train), len(dataset.test)) == (12, 2)
    assert dataset.class_names == ("negative", "positive")
    case = dataset.train[1]
    assert (case.case_id, case.patient_id, case.label, case.site) == ("C001", "P001", 1, "north")
    assert case.covariates == {"age": "41"}
    assert [p.name for p in case.images["MRI"]] == ["C001_0000.nii.gz", "C001_0001.nii.gz"]
    assert case.masks["US"].name == "C001.png"
    assert load_dataset(good)[1] == []


def test_labels_of_test_cases_are_sealed_and_openings_logged(good: Path, tmp_path: Path) -> None:
    dataset = seal_holdout(read_dataset(good), ["P003", "P004"])
    assert [case.case_id for case in dataset.test] == ["C003", "C004", "C012", "C013"]
    assert all(case.label is None for case in dataset.test)
    log = tmp_path / "deep" / "openings.jsonl"
    assert read_test_labels(dataset, purpose="evaluate", log=log) == {"C003": 1, "C004": 0, "C012": 0, "C013": 1}
    read_test_labels(dataset, purpose="report", log=log)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(line["purpose"], line["n_cases"]) for line in lines] == [("evaluate", 4), ("report", 4)]
    with pytest.raises(RawDataError, match="no training case: P099"):
        seal_holdout(dataset, ["P099"])


def test_the_digest_of_test_label_cells_opens_and_parses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset = read_dataset(folder)
    sealed = seal_holdout(dataset, ["P003"])
    for name in ("parse_label", "_record_opening"):
        monkeypatch.setattr(f"her2net.raw.dataset.{name}", None)
    before, of_holdout = digest_test_label_cells(dataset), digest_test_label_cells(sealed)
    assert re.fullmatch(r"[0-9a-f]+", before)
    assert len({before, of_holdout}) == 2
    change_cell(folder, 2, "label", "no class at all")  # of a training case
    assert digest_test_label_cells(dataset) == before
    seen = {before}
    for text in ("", "no class at all", "another"):
        change_cell(folder, 14, "label", text)
        seen.add(digest_test_label_cells(dataset))
    assert len(seen) == 4
    (folder / "cases.csv").write_text("nothing of the kind\n")
    with pytest.raises(RawDataError, match=r"cases\.csv: cannot be read"):
        digest_test_label_cells(dataset)
    assert digest_test_label_cells(replace(dataset, cases=dataset.train)) == ""


def test_labels_stay_sealed_where_the_opening_cannot_be_recorded(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RawDataError, match="cannot be recorded"):
        read_test_labels(read_dataset(good), purpose="x", log=tmp_path / "file" / "log.jsonl")


def test_a_test_label_may_be_empty(folder: Path, tmp_path: Path) -> None:
    change_cell(folder, 14, "label", "")
    dataset = read_dataset(folder)
    assert read_test_labels(dataset, purpose="x", log=tmp_path / "log") == {"C013": 1}


FILE_FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "a row without images": (
        lambda f: write_table(f / "cases.csv", [*read_rows(f), ["C900", "1", "P900", "north", "50"]]),
        "case-without-image", "cases.csv row 16", "no image of the case 'C900'"),
    "an image without a row": (
        lambda f: shutil.copy(f / "imagesTr/US/C000.png", f / "imagesTr/US/C777.png"),
        "image-without-row", "imagesTr/US/C777.png", "Add a row with the case_id 'C777'"),
    "a missing channel": (
        lambda f: (f / "imagesTr/MRI/C002_0001.nii.gz").unlink(),
        "channel-missing", "imagesTr/MRI/C002", "C002_0001.nii.gz"),
    "an undeclared channel": (
        lambda f: shutil.copy(f / "imagesTr/MRI/C002_0001.nii.gz", f / "imagesTr/MRI/C002_0005.nii.gz"),
        "channel-unknown", "imagesTr/MRI/C002_0005.nii.gz", "_0000 to _0001"),
    "one channel twice": (
        lambda f: shutil.copy(f / "imagesTr/US/C002.png", f / "imagesTr/US/C002_0000.png"),
        "channel-twice", "imagesTr/US/C002_0000.png", "the same channel of 'C002' as C002.png"),
    "two masks": (
        lambda f: shutil.copy(f / "masksTr/MRI/C002.nii.gz", f / "masksTr/US/C002.nii.gz"),
        "mask-twice", "masksTr/US/C002.png", "a second mask of 'C002' beside C002.nii.gz"),
    "a folder named like an image": (
        lambda f: ((f / "imagesTr/US/C003.png").unlink(), (f / "imagesTr/US/C003.png").mkdir()),
        "not-a-file", "imagesTr/US/C003.png", "is not a file"),
    "a case in both parts": (
        lambda f: shutil.copy(f / "imagesTr/US/C003.png", f / "imagesTs/US/C003.png"),
        "case-in-both", "C003", "in imagesTr and in imagesTs"),
    "a patient in both parts": (
        lambda f: change_cell(f, 14, "patient_id", "P001"),
        "patient-in-both", "patient P001", r"training cases (C001) and test cases (C012)"),
    "no imagesTr": (lambda f: shutil.rmtree(f / "imagesTr"), "folder-missing", "imagesTr", "no such folder"),
    "a folder of masks in another case": (
        lambda f: (f / "masksTr").rename(f / "maskstr"), "folder-unknown", "maskstr", "differs from 'masksTr' in upper and lower"),
    "a modality folder in another case": (
        lambda f: (f / "imagesTr/US").rename(f / "imagesTr/us"), "folder-unknown", "imagesTr/us", "upper and lower"),
    "no case of a modality": (
        lambda f: shutil.rmtree(f / "imagesTr/MRI"), "modality-without-images", "imagesTr/MRI", "no training case"),
    "no cases.csv": (lambda f: (f / "cases.csv").unlink(), "table-missing", "cases.csv", "no such file"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), "spec-missing", "dataset.json", "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_faulty_files_are_named(folder: Path, name: str) -> None:
    damage, check, where, message = FILE_FAULTS[name]
    damage(folder)
    found = find(load_dataset(folder)[1], check)
    assert (found.severity, found.where) == ("error", where)
    assert message in found.message
    with pytest.raises(RawDataError, match="her2net_verify"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("row", "column", "value", "check", "message"),
    [
        (3, "label", "maybe", "label-unknown", "found 'maybe', expected 0 (negative) or 1 (positive)"),
        (3, "label", "2024-01-01", "label-unknown", "unknown label"),
        (3, "label", "2", "label-unknown", "unknown label"),
        (3, "label", "inf", "label-unknown", "unknown label"),
        (3, "label", "", "label-missing", "no label for the training case 'C001'"),
        (3, "patient_id", "", "patient-missing", "both sides of a split"),
        (3, "age", "old", "covariate-kind", "found 'old', expected a number"),
        (3, "age", "inf", "covariate-kind", "not a number"),
        (3, "case_id", "C000", "id-twice", "occurs in row 2 too"),
        (3, "case_id", "c000", "id-twice", "only in case or accents"),
        (3, "case_id", "../C001", "id-not-a-file-name", "holds '/'"),
        (3, "case_id", "..", "id-not-a-file-name", "begins with a dot"),
        (3, "case_id", "CON", "id-not-a-file-name", "reserved name on Windows"),
        (3, "case_id", "nul.txt", "id-not-a-file-name", "reserved name on Windows"),
        (3, "case_id", "C001.", "id-not-a-file-name", "ends with a dot"),
        (3, "case_id", "=cmd()", "id-not-a-file-name", "formula"),
        (3, "case_id", "a\u202eb", "id-not-a-file-name", "invisible character"),
        (3, "case_id", "x" * 300, "id-not-a-file-name", "longer than"),
    ],
)
def test_faulty_cells_are_named(folder: Path, row: int, column: str, value: str, check: str, message: str) -> None:
    change_cell(folder, row, column, value)
    found = find(load_dataset(folder)[1], check)
    assert found.severity == "error"
    assert found.where.startswith(f"cases.csv row {row}")
    assert message in found.message


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"lables": {}}, "dataset.json lables", "unknown key"),
        ({"labels": {"a": 0}}, "dataset.json labels", "at least two"),
        ({"labels": {"a": 1, "b": 2}}, "dataset.json labels", "numbered from 0"),
        ({"labels": {"a": 0, "A": 1}}, "dataset.json labels", "upper and lower case"),
        ({"labels": {"1": 0, "0": 1}}, "dataset.json labels", "is a number other than its own"),
        ({"labels": {"a": 0, "b": True}}, "dataset.json labels.b", "valid integer"),
        ({"modalities": {}}, "dataset.json modalities", "at least one modality"),
        ({"modalities": {"fusion": {"channels": {"0": "x"}, "file_ending": ".png"}}},
         "dataset.json modalities", "taken"),
        ({"modalities": {"../x": {"channels": {"0": "x"}, "file_ending": ".png"}}}, "dataset.json modalities", "'/'"),
        ({"modalities": {"US": {"channels": {"1": "x"}, "file_ending": ".png"}}},
         "dataset.json modalities.US.channels", 'numbered "0", "1"'),
        ({"modalities": {"US": {"channels": {"0": "x"}, "file_ending": ".dcm"}}},
         "dataset.json modalities.US.file_ending", "one of .png"),
        ({"covariates": {"label": "binary"}}, "dataset.json", "cannot be a covariate"),
        ({"covariates": {"age": "float"}}, "dataset.json covariates.age", "continuous"),
        ({"covariates": {"bmi": "continuous"}}, "cases.csv header", "'bmi' (a declared covariate) is absent"),
        ({"site": "hospital"}, "cases.csv header", "'hospital' (the declared site) is absent"),
        ({"patient": "mrn"}, "cases.csv header", "'mrn' (the patient) is absent"),
        ({"labels": {"negative": 0, "positive": 1, "rare": 2}}, "class rare", "0 training patient(s), expected at"),
        ({"covariates": {"age": "binary"}}, "cases.csv column age", "declared binary"),
    ],
)  # fmt: skip
def test_faulty_dataset_json_is_named(folder: Path, changes: dict, where: str, message: str) -> None:
    set_spec(folder, **changes)
    problems = [item for item in load_dataset(folder)[1] if item.severity == "error"]
    assert any(item.where == where and message in item.message for item in problems), problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "'name' occurs twice"),
        ("{", "line 1"),
        ("// comment\n{}", "not JSON"),
        ('{"name": NaN}', "NaN is not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": ' + "9" * 5000 + "}", "cannot be read"),
        ("[]", "dictionary"),
        ("", "not JSON"),
    ],
)
def test_text_that_is_no_json_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    dataset, problems = load_dataset(folder)
    assert dataset is None
    assert any(message in item.message for item in problems), problems


def test_every_problem_is_listed_at_once(folder: Path) -> None:
    change_cell(folder, 3, "label", "maybe")
    change_cell(folder, 5, "age", "x")
    (folder / "imagesTr/MRI/C006_0000.nii.gz").unlink()
    with pytest.raises(RawDataError) as caught:
        read_dataset(folder)
    for place in ("cases.csv row 3", "cases.csv row 5", "imagesTr/MRI/C006"):
        assert place in str(caught.value)


def test_what_systems_leave_behind_is_ignored_and_the_rest_is_reported(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._C001.png"):
        (folder / "imagesTr/US" / name).write_bytes(b"x")
    assert load_dataset(folder)[1] == []
    (folder / "imagesTr/US/notes.txt").write_bytes(b"x")
    found = find(load_dataset(folder)[1], "extra-file")
    assert (found.severity, found.where) == ("warning", "imagesTr/US/notes.txt")


def test_a_modality_without_test_cases_is_warned_of(folder: Path) -> None:
    shutil.rmtree(folder / "imagesTs/MRI")
    shutil.rmtree(folder / "masksTs/MRI")
    found = find(load_dataset(folder)[1], "modality-without-images")
    assert (found.severity, found.where) == ("warning", "imagesTs/MRI")


def test_missing_masks_and_modalities_are_no_errors(folder: Path) -> None:
    (folder / "masksTr/US/C001.png").unlink()
    for channel in range(2):
        (folder / f"imagesTr/MRI/C002_{channel:04d}.nii.gz").unlink()
    (folder / "masksTr/MRI/C002.nii.gz").unlink()
    problems = load_dataset(folder)[1]
    assert [(item.severity, item.check) for item in problems] == [
        ("warning", "mask-missing"),
        ("note", "modality-missing"),
    ]
    assert "1 of 12 images have no mask: C001" in problems[0].message
    assert set(read_dataset(folder).train[2].images) == {"US"}


ROWS = [["case_id", "label", "patient_id", "name"], ["A 1", "1", "P1", "Müller; x,y"], ["B", "0", "P2", 'say "hi"']]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_dialects_of_csv_read_alike(tmp_path: Path, separator: str, encoding: str, line_end: str) -> None:
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in ROWS]
    text = line_end.join([*quoted, separator * 3, "", ""])
    path = tmp_path / "cases.csv"
    path.write_bytes(text.encode(encoding))
    table, problems = read_table(path, where="cases.csv", required=("case_id", "label"))
    assert table is not None
    assert [item.check for item in problems] == (["table-encoding"] if encoding == "cp1252" else [])
    assert [list(row.cells.values()) for row in table.rows] == ROWS[1:]
    assert [row.number for row in table.rows] == [2, 3]


cells = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zs", "Zl", "Zp")), max_size=8).filter(
    lambda text: not text.startswith("=")
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    padding=st.sampled_from(["", " ", "\u00a0"]),
)
def test_any_cell_survives_any_dialect(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], separator: str, encoding: str, padding: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "cases.csv"
    table = [("case_id", "label", "patient_id"), *(("x" + a, b, c) for a, b, c in rows)]
    lines = [separator.join('"' + padding + cell.replace('"', '""') + padding + '"' for cell in row) for row in table]
    path.write_bytes("\r\n".join(lines).encode(encoding))
    found, problems = read_table(path, where="cases.csv", required=("case_id", "label", "patient_id"))
    assert problems == []
    assert found is not None
    assert [tuple(row.cells.values()) for row in found.rows] == table[1:]


@settings(max_examples=150, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text('",;\t\r\nab\x00=', max_size=60).map(str.encode)))
def test_no_table_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("csv") / "cases.csv"
    path.write_bytes(content)
    table, problems = read_table(path, where="cases.csv", required=("case_id",))
    assert table is not None or any(item.severity == "error" for item in problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b"PK\x03\x04....", "is a spreadsheet workbook"),
        (b"case_id,label,patient_id\nA,1,P\x00\n", "line 2 holds the control character"),
        (b"case_id,label,label\nA,1,2\n", "'label' occurs twice"),
        (b'case_id,label,patient_id\n"A,1,P\n', "cannot be split into cells"),
        (b"case_id,label,patient_id\nA,1\n", "2 cells under 3 columns"),
        (b"case_id,label,patient_id\nA;1;P\n", "1 cells under 3 columns"),
        (",".join(f"c{i}" for i in range(100_000)).encode(), "too many columns"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    _, problems = read_table(path, where="cases.csv", required=("case_id", "label", "patient_id"))
    assert any(message in item.message for item in problems), problems


@pytest.mark.parametrize("label", ["1", "1.0", "positive", "POSITIVE", " 1 ", '="1"', "1,0"])
def test_spellings_of_a_label(folder: Path, label: str) -> None:
    rows = read_rows(folder)
    rows[1][1] = label
    write_table(folder / "cases.csv", rows, separator=";")
    assert read_dataset(folder).train[0].label == 1


def test_decimal_commas_become_points(folder: Path) -> None:
    rows = read_rows(folder)
    rows[1][4] = "40,5"
    rows[2][4] = "NA"
    write_table(folder / "cases.csv", rows, separator=";")
    assert [case.covariates["age"] for case in read_dataset(folder).train[:2]] == ["40.5", ""]


def test_levels_have_one_spelling_and_missing_ones_are_empty(folder: Path) -> None:
    """What verify counts as two values is two values for the models and the tables too."""
    rows = read_rows(folder)
    cells = ["Yes", "yes", "no", "NA", "YES", "No", "?"] + ["no"] * (len(rows) - 8)
    write_table(folder / "cases.csv", [[*rows[0], "mass"], *([*row, cell] for row, cell in zip(rows[1:], cells, strict=True))])
    set_covariates(folder, {"mass": "binary"})
    dataset, problems = load_dataset(folder)
    assert not [item for item in problems if item.check.startswith("covariate")]
    assert dataset is not None
    by_id = {case.case_id: case.covariates["mass"] for case in dataset.cases}
    assert [by_id[row[0]] for row in rows[1:8]] == ["Yes", "Yes", "no", "", "Yes", "no", ""]
    assert {level for levels in subgroup_levels(facts_of_dataset(dataset)).values() for level in levels.values()} >= {"Yes", "no", ""}


def test_an_ordinal_level_is_the_same_however_its_number_is_written(folder: Path) -> None:
    rows = read_rows(folder)
    cells = ["1", "1.0", "2", "2.0", "2,0", "2.5", "?"] + ["3"] * (len(rows) - 8)
    write_table(folder / "cases.csv", [[*rows[0], "grade"], *([*row, cell] for row, cell in zip(rows[1:], cells, strict=True))],
                separator=";")  # fmt: skip
    set_covariates(folder, {"grade": "ordinal"})
    by_id = {case.case_id: case.covariates["grade"] for case in read_dataset(folder).cases}
    assert [by_id[row[0]] for row in rows[1:8]] == ["1", "1", "2", "2", "2", "2.5", ""]


def test_a_patient_in_two_unicode_forms_is_one(folder: Path) -> None:
    """Else a fold would be trained on the patient whom it holds out."""
    rows = read_rows(folder)
    column = rows[0].index("patient_id")
    forms = [unicodedata.normalize(form, "Müller") for form in ("NFD", "NFC")]
    for row, name in zip(rows[1:3], forms, strict=True):
        row[column] = name
    write_table(folder / "cases.csv", rows)
    by_id = {case.case_id: case.patient_id for case in read_dataset(folder).cases}
    assert [by_id[row[0]] for row in rows[1:3]] == [forms[0]] * 2


def test_none_and_minus_are_findings_where_cells_are_words(folder: Path) -> None:
    rows = read_rows(folder)
    cells = ["+", "-", "none", "None"] + ["+"] * (len(rows) - 5)
    write_table(folder / "cases.csv", [[*rows[0], "mass"], *([*row, cell] for row, cell in zip(rows[1:], cells, strict=True))])
    set_covariates(folder, {"mass": "categorical"})
    by_id = {case.case_id: case.covariates["mass"] for case in read_dataset(folder).cases}
    assert [by_id[row[0]] for row in rows[1:5]] == ["+", "-", "none", "none"]


def set_covariates(folder: Path, kinds: dict[str, str]) -> None:
    spec = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(spec | {"covariates": kinds}))


def test_many_files_are_matched_in_linear_time(tmp_path: Path) -> None:
    """Four times the cases may take eight times the time, but not sixteen."""
    assert seconds_to_read(tmp_path / "Dataset002_Many", 4000) < 8 * seconds_to_read(tmp_path / "Dataset001_Few", 1000)


def seconds_to_read(folder: Path, n: int) -> float:
    """Make a dataset of n cases with empty images; return the processor time of reading it, the least of three."""
    (folder / "imagesTr/US").mkdir(parents=True)
    modalities = {"US": {"channels": {"0": "B"}, "file_ending": ".png"}}
    set_spec(folder, modalities=modalities, covariates={}, site=None)
    rows = [["case_id", "label", "patient_id"], *([f"C{i}", i % 2, f"P{i}"] for i in range(n))]
    write_table(folder / "cases.csv", rows)
    for row in rows[1:]:
        (folder / "imagesTr/US" / f"{row[0]}.png").touch()
    times = []
    for _ in range(3):
        start = time.process_time()
        assert len(read_dataset(folder).train) == n
        times.append(time.process_time() - start)
    return min(times)

