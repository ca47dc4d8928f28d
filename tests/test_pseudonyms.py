"""Pseudonyms: stable with the key, meaningless without it."""

from __future__ import annotations

import csv
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_factory import make_model, with_tiny_network, write_made_archive
from hypothesis import given
from hypothesis import strategies as st
from raw_factory import write_dataset

from her2net.cli import predict
from her2net.errors import PlanError
from her2net.paths import Roots
from her2net.predictions import make_predictions, read_predictions
from her2net.pseudonyms import load_key, pseudonym, pseudonymise, pseudonymise_table
from her2net.raw.names import explain_bad_name

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@given(st.text(min_size=1), st.text(min_size=1))
def test_an_id_has_one_pseudonym_and_shares_it_with_nobody(one: str, two: str) -> None:
    assert pseudonym(one, KEY) == pseudonym(one, KEY)
    assert (pseudonym(one, KEY) == pseudonym(two, KEY)) == (one == two)
    assert pseudonym(one, KEY) != pseudonym(one, OTHER)
    assert pseudonym(one, KEY)[2:] != pseudonym(one, KEY, "patient")[2:]
    assert explain_bad_name(pseudonym(one, KEY)) == ""


def test_pseudonyms_do_not_change_between_releases() -> None:
    """HMAC-SHA256 of the kind, a zero byte and the id, as `openssl dgst -mac hmac` gives it; 80 bits in base 32."""
    assert pseudonym("BR0001", KEY) == "C-GJTT6CXREGC5IOSG"
    assert pseudonym("BR0001", KEY, "patient") == "P-MBMIL4F6MTT3WDSK"


def test_five_thousand_ids_do_not_collide() -> None:
    assert len(set(pseudonymise([f"P{i}" for i in range(5000)], KEY).values())) == 5000


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "results" / "pseudonym.key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(tmp_path / "other" / "pseudonym.key") != key


@pytest.mark.parametrize("content", [b"", b"abcd\n", b"not hex at all", b"\xff\xfe"])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pseudonym.key"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"pseudonym\.key"):
        load_key(path)
    assert path.read_bytes() == content


def test_a_table_keeps_its_numbers_and_loses_its_order() -> None:
    ids = [f"case{i:02d}" for i in range(40)]
    probs = np.column_stack([np.linspace(0.9, 0.1, 40), np.linspace(0.1, 0.9, 40)])
    table = make_predictions(ids, [i[:5] for i in ids], probs, labels=[i % 2 for i in range(40)], folds=["0"] * 40)
    hidden = pseudonymise_table(table, KEY)
    back = {pseudonym(i, KEY): k for k, i in enumerate(ids)}
    rows = [back[case_id] for case_id in hidden.case_ids]
    assert rows != sorted(rows)
    assert np.array_equal(hidden.probs, table.probs[rows])
    assert np.array_equal(hidden.labels, table.labels[rows])
    assert [pseudonym(table.patient_ids[k], KEY, "patient") for k in rows] == list(hidden.patient_ids)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("made")
    with with_tiny_network():
        yield write_made_archive(root / "m.her2net", make_model(root))


def test_predictions_with_pseudonyms_name_no_case(model_file: Path, roots: Roots, tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw", n_patients=4)
    new = tmp_path / "new"
    new.mkdir()
    (raw / "imagesTr").rename(new / "images")
    (new / "images" / "US" / "Jane Doe.jpg").write_bytes(b"")
    out = [tmp_path / name for name in ("plain", "hidden", "again")]
    for folder, options in zip(out, ([], ["--pseudonymise"], ["--pseudonymise"]), strict=True):
        assert predict.main(["--model", str(model_file), "-i", str(new), "-o", str(folder), "--quiet", *options]) == 0
    key = load_key(roots.results / "Dataset007_Made" / "pseudonym.key")
    plain, hidden = (read_predictions(folder / "US.csv") for folder in out[:2])
    known = dict(zip(plain.case_ids, plain.probs[:, 1], strict=True))
    assert dict(zip(hidden.case_ids, hidden.probs[:, 1], strict=True)) == {pseudonym(c, key): p for c, p in known.items()}
    for path in out[1].iterdir():
        text = path.read_text()
        assert not [c for c in (*plain.case_ids, "Jane") if c in text], path.name
        assert text == (out[2] / path.name).read_text()
    warned = {row["case_id"] for row in csv.DictReader((out[1] / "warnings.csv").open())}
    assert {pseudonym(c, key) for c in plain.case_ids} <= warned, "no masks: every case is warned of"
    assert not list(out[1].glob("*.key"))


def test_a_folder_written_to_again_hides_the_cases_of_before_but_not_the_name_of_the_table(
    model_file: Path, roots: Roots, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = write_dataset(tmp_path / "raw", n_patients=4), tmp_path / "out"
    (raw / "imagesTr").rename(raw / "images")
    cases = sorted({path.stem.partition("_")[0] for path in (raw / "images" / "US").iterdir()})
    call = ["--model", str(model_file), "-i", str(raw), "-o", str(out), "--quiet"]
    (raw / "cases.csv").write_text("case_id,age,sex\n" + "".join(f"{c},50,f\n" for c in cases))
    assert predict.main(call) == 0
    assert (out / "CLIN.csv").is_file()
    (raw / "cases.csv").write_text("case_id,sex\n" + "".join(f"{c},\n" for c in cases))
    assert predict.main([*call, "--pseudonymise"]) == 0
    assert not (out / "CLIN.csv").exists()
    assert not [c for c in cases for path in out.iterdir() if c in path.read_text()]
    found = [row for row in csv.DictReader((out / "warnings.csv").open()) if row["check"] == "column-missing"]
    assert [(row["case_id"], row["expected"]) for row in found] == [("cases.csv", "a column 'age'")]
    assert "CLIN cases.csv: the table lacks a covariate" in capsys.readouterr().err
