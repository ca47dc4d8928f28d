"""Tables from anywhere, side by side: whose cases they are is known before anything is counted."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from her2net.artefact import write_csv, write_json
from her2net.cli import evaluate as command
from her2net.evaluate.evaluation import Evaluation
from her2net.evaluate.labels import read_labels
from her2net.predictions import check_table, make_predictions, read_predictions, write_predictions
from her2net.raw.dataset import Case

N = 24
CASES = [f"c{i:02d}" for i in range(N)]
PATIENTS = [f"Müller{i // 2:02d}" for i in range(N)]
OTHER_CASES = [f"t{i:02d}" for i in range(N)]
composed, apart = (lambda names, form=form: [unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD"))


def write_table(
    path: Path, cases: list[str], patients: list[str] | None = None, *, n_folds: int = 0, folds: list[str] | None = None, seed: int = 0
) -> str:
    """Write predictions of cases of which two neighbours are of one class; without patients the column is absent."""
    p = np.random.default_rng(seed).random(len(cases)).round(3)
    folds = folds or [str(i // 2 % n_folds) if n_folds else "" for i in range(len(cases))]
    rows = [
        {"case_id": case, "fold": folds[i], "label": i // 2 % 2, "prob_0": 1 - p[i], "prob_1": p[i]}
        | ({"patient_id": patients[i]} if patients else {})
        for i, case in enumerate(cases)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, list(rows[0]), rows)
    return str(path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("oof", "test"), [
    ((CASES, PATIENTS), (CASES, None)),
    ((CASES, None), (CASES, PATIENTS)),
    ((CASES, None), (CASES, None)),
    ((CASES, composed(PATIENTS)), (OTHER_CASES, apart(PATIENTS))),
    ((CASES, PATIENTS), (OTHER_CASES, [f" {name} " for name in PATIENTS])),
    ((composed([f"ü{c}" for c in CASES]), None), ([f"{c} " for c in apart([f"ü{c}" for c in CASES])], None)),
], ids=["oof names patients", "test names patients", "nobody does", "Unicode form", "padding", "cases"])  # fmt: skip
def test_a_model_is_not_tested_on_its_training_cases_whoever_names_them_and_however(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], oof: tuple, test: tuple
) -> None:
    files = [write_table(tmp_path / "oof" / "US.csv", *oof, n_folds=3), write_table(tmp_path / "test" / "US.csv", *test, seed=1)]
    for order in (files, files[::-1]):
        assert command.main(["--predictions", *order, "-o", str(tmp_path / "out")]) == 2
        assert "patients of its test table are in its out-of-fold table" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("who", ["another table", "--labels"])
def test_patients_that_only_another_table_names_show_the_leak(
    who: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_table(tmp_path / "oof" / "US.csv", CASES, PATIENTS, n_folds=3),
             write_table(tmp_path / "test" / "US.csv", OTHER_CASES, seed=1)]  # fmt: skip
    arguments = []
    if who == "--labels":
        rows = [{"case_id": c, "label": i % N // 2 % 2, "patient_id": (PATIENTS * 2)[i]} for i, c in enumerate(CASES + OTHER_CASES)]
        write_csv(tmp_path / "cases.csv", ["case_id", "label", "patient_id"], rows)
        arguments = ["--labels", str(tmp_path / "cases.csv")]
    else:
        files.append(write_table(tmp_path / "test" / "MRI.csv", OTHER_CASES, PATIENTS, seed=2))
    assert command.main(["--predictions", *files, *arguments, "-o", str(tmp_path / "out")]) == 2
    assert "12 patients of its test table are in its out-of-fold table" in capsys.readouterr().err


def test_patients_count_whichever_table_names_them_in_whatever_order(tmp_path: Path) -> None:
    named = [write_table(tmp_path / "named" / f"{m}.csv", CASES, PATIENTS, seed=s) for s, m in enumerate("AB")]
    bare = [write_table(tmp_path / "bare" / f"{m}.csv", CASES, seed=s) for s, m in enumerate("AB")]
    some = [p if i % 3 else "" for i, p in enumerate(PATIENTS)]
    part = write_table(tmp_path / "part" / "A.csv", CASES, some)
    found = {}
    for i, files in enumerate([named, [named[0], bare[1]], [bare[0], named[1]], [named[1], bare[0]], [part, named[1]]]):
        out = tmp_path / f"out{i}"
        assert command.main(["--predictions", *files, "-o", str(out)]) == 0
        metrics = sorted(tuple(row.values()) for row in read(out / "metrics.csv"))
        pairs = {row["metric"]: row for row in read(out / "comparisons.csv")}
        found[i] = metrics, {name: row["p_value"] for name, row in pairs.items()}, pairs["auc"]["test"]
    assert "clustered by patient" in found[0][2]
    assert all(one == found[0] for one in found.values())


def test_labels_name_the_patients_that_a_table_leaves_out(tmp_path: Path) -> None:
    some = [p if i % 3 else "" for i, p in enumerate(PATIENTS)]
    file = write_table(tmp_path / "A.csv", CASES, some)
    rows = [{"case_id": c, "label": i // 2 % 2, "patient_id": p} for i, (c, p) in enumerate(zip(CASES, PATIENTS, strict=True))]
    write_csv(tmp_path / "cases.csv", ["case_id", "label", "patient_id"], rows)
    out = tmp_path / "out"
    assert command.main(["--predictions", file, "--labels", str(tmp_path / "cases.csv"), "-o", str(out)]) == 0
    assert {int(row["n_cases"]) for row in read(out / "patients.csv")} == {2}


def test_ids_in_either_unicode_form_are_one_case_in_labels_and_covariates(tmp_path: Path) -> None:
    cases = [f"ü{c}" for c in CASES]
    file = write_table(tmp_path / "A.csv", composed(cases))
    write_json(tmp_path / "dataset.json", {
        "name": "X", "labels": {"benign": 0, "malignant": 1}, "patient": "patient_id",
        "modalities": {"US": {"channels": {"0": "B"}, "file_ending": ".png"}}, "covariates": {"age": "continuous"},
    })  # fmt: skip
    rows = [{"case_id": c, "label": i // 2 % 2, "patient_id": PATIENTS[i], "age": 40 + i} for i, c in enumerate(apart(cases))]
    write_csv(tmp_path / "cases.csv", ["case_id", "label", "patient_id", "age"], rows)
    out = tmp_path / "out"
    assert command.main(["--predictions", file, "--labels", str(tmp_path / "cases.csv"), "-o", str(out)]) == 0
    assert {row["n"] for row in read(out / "subgroups.csv")} == {str(N // 2)}
    assert read(out / "patients.csv")[0]["patient_id"] == composed(PATIENTS)[0]


def test_two_cases_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_table(tmp_path / "A.csv", [*CASES[:-2], *composed(["ü"]), *apart(["ü"])])
    assert command.main(["--predictions", file, "-o", str(tmp_path / "out")]) == 2
    assert "A.csv: column case_id: cases differ only in Unicode form: ü." in capsys.readouterr().err
    file = write_table(tmp_path / "A.csv", [*CASES[:-1], "c00 "])
    assert command.main(["--predictions", file, "-o", str(tmp_path / "out")]) == 2
    assert "case_id stands in row 2 already" in capsys.readouterr().err


def test_a_dataset_keeps_the_form_in_which_it_spells_its_ids(tmp_path: Path) -> None:
    """Its tables are read as they were written: labels and cases of the dataset are found by its own spelling."""
    case, patient = apart(["ü1", "Müller"])
    write_predictions(tmp_path / "oof.csv", make_predictions([case], [patient], np.array([[0.4, 0.6]]), labels=[1], folds=["0"]))
    table = read_predictions(tmp_path / "oof.csv")
    assert table.with_labels({case: 1}).labels.tolist() == [1]
    known = Case(case, patient, part="train", label=1, site=None, covariates={}, images={}, masks={})
    check_table(tmp_path / "oof.csv", table, [known], n_classes=2, made_by="her2net_train")


def test_a_table_of_which_some_rows_are_out_of_fold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_table(tmp_path / "all" / "US.csv", CASES, folds=[str(i % 3) if i < 10 else "" for i in range(N)])
    whole = write_table(tmp_path / "oof" / "US.csv", CASES, n_folds=3)
    for files in ([mixed], [whole, mixed]):
        assert command.main(["--predictions", *files, "-o", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"column fold: out-of-fold and test predictions stand in one table; found 'filled in 10 of {N} rows'" in error
        assert "Make two tables of it" in error


@pytest.mark.parametrize(("cell", "label"), [("1,0", 1), ("0,0", 0), ("1", 1), ("Positive", 1)])
def test_a_label_may_have_a_decimal_comma_where_commas_do_not_separate(cell: str, label: int, tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(f"case_id;label\n1,5;{cell}\nb;\n", encoding="utf-8")
    assert read_labels(path).labels == {"1,5": label, "b": -1}


def test_certainty_and_brier_know_the_patients_of_another_table(tmp_path: Path) -> None:
    files = [write_table(tmp_path / "A.csv", CASES), write_table(tmp_path / "B.csv", CASES, PATIENTS, seed=1)]
    assert command.main(["--predictions", *files, "-o", str(tmp_path / "out")]) == 0
    found = Evaluation.load(tmp_path / "out" / "metrics.json")
    assert all(row.advice.startswith("With 12 patients (6 positive)") for row in found.certainty)
    brier = next(row for row in found.comparisons if row["metric"] == "brier")
    assert brier["test"] == "paired t, clustered by patient with 11 df"


@pytest.mark.parametrize("missing", ["NA", "nan", " "])
def test_a_cell_written_as_missing_is_no_patient_no_fold_and_no_label(tmp_path: Path, missing: str) -> None:
    empty, written = tmp_path / "empty" / "US.csv", tmp_path / "written" / "US.csv"
    write_table(empty, CASES)
    rows = read(empty)
    rows[0]["label"] = ""
    write_csv(empty, list(rows[0]), rows)
    write_csv(written, ["patient_id", *rows[0]], [
        row | {"patient_id": missing, "fold": missing, "label": row["label"] or missing} for row in rows
    ])  # fmt: skip
    for path in (empty, written):
        assert command.main(["--predictions", str(path), "-o", str(path.parent / "out")]) == 0
    found = [(path.parent / "out" / "metrics.csv").read_text() for path in (empty, written)]
    assert found[0] == found[1]
    assert Evaluation.load(written.parent / "out" / "metrics.json").recalibration == {}  # nothing was fitted on test cases
    table = tmp_path / "labels.csv"
    write_csv(table, ["case_id", "patient_id", "label"], [{"case_id": "a", "patient_id": missing, "label": missing}])
    given = read_labels(table)
    assert (given.labels, given.patients) == ({"a": -1}, {})
