"""A model leaves the hospital as one file, and gives the same probabilities where nothing else of it is."""

from __future__ import annotations

import errno
import getpass
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archive_factory import make_model, snapshot, take_apart, with_tiny_network, write_made_archive
from conftest import make_paths
from small_run import MACHINE, plan_options

from her2net import Predictor
from her2net.archive.licence import NONE_CHOSEN, read_licence
from her2net.archive.manifest import Manifest
from her2net.archive.read import load_archive
from her2net.artefact import load_json
from her2net.cli import export, import_, predict
from her2net.errors import ArchiveError
from her2net.evaluate.record import Evaluation
from her2net.evaluate.thresholds import Threshold, Thresholds
from her2net.paths import DatasetPaths, Roots
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.predictions import Predictions, read_predictions
from her2net.raw.dataset import read_dataset
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.tabular.features import FeatureTable
from her2net.trained import TrainedModel

ROOT_VARIABLES = ("her2net_raw", "her2net_preprocessed", "her2net_results")


def point_to(monkeypatch: pytest.MonkeyPatch, paths: DatasetPaths) -> None:
    for name, root in zip(ROOT_VARIABLES, (paths.roots.raw, paths.roots.preprocessed, paths.roots.results), strict=True):
        monkeypatch.setenv(name, str(root))


@pytest.fixture(scope="module")
def archive(small_run: DatasetPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a finished run, made by the command."""
    path = tmp_path_factory.mktemp("archive") / "model.her2net"
    with pytest.MonkeyPatch.context() as patch:
        point_to(patch, small_run)
        assert export.main(["-o", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedModel]:
    """A model of random weights of a tiny network."""
    with with_tiny_network():
        yield make_model(tmp_path_factory.mktemp("made"))


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without roots."""
    folder = tmp_path / "lonely"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ROOT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return folder


def put_new_images(paths: DatasetPaths, folder: Path) -> Path:
    """Lay the test images out as new ones, but for the last case: seven images are read in this process."""
    shutil.copytree(paths.raw / "imagesTs", folder)
    shutil.copytree(paths.raw / "masksTs", folder / "masks")
    shutil.copy(paths.raw / "cases.csv", folder)
    last = sorted((folder / "US").iterdir())[-1].stem
    for path in [p for p in folder.rglob(f"{last}*") if p.is_file()]:
        path.unlink()
    return folder


def assert_agree(found: Predictions, known: Predictions) -> None:
    """The table holds all cases but the last, with the known probabilities."""
    expected = dict(zip(known.case_ids, known.probs, strict=True))
    assert set(expected) - set(found.case_ids) == {known.case_ids[-1]}
    assert max(np.abs(p - expected[c]).max() for c, p in zip(found.case_ids, found.probs, strict=True)) < 1e-6


def test_the_archive_alone_predicts_what_the_pipeline_predicted(
    small_run: DatasetPaths, archive: Path, lonely: Path
) -> None:
    shutil.copy(archive, lonely / "model.her2net")
    put_new_images(small_run, lonely / "new")
    before = snapshot(lonely)
    assert predict.main(["--model", "model.her2net", "-i", "new", "-o", "out", "--quiet", "--device", "cpu"]) == 0
    added = set(snapshot(lonely)) - set(before)
    assert added == {"out", *(f"out/{n}.csv" for n in ("US", "MRI", "CLIN", "fusion", "decisions", "warnings"))}
    for name in ("US", "MRI", "CLIN", "fusion"):
        assert_agree(read_predictions(lonely / f"out/{name}.csv"), read_predictions(small_run.model(name) / "test.csv"))
    thresholds = Thresholds.load(small_run.evaluation / "thresholds.json").models
    for row in (lonely / "out/decisions.csv").read_text().splitlines()[1:]:
        case_id, name, probability, threshold, decision, _ = row.split(",")
        assert float(threshold) == thresholds[name].value
        assert decision == ("positive" if float(probability) >= float(threshold) else "negative"), case_id


def test_an_imported_model_is_found_without_raw_data(
    small_run: DatasetPaths, archive: Path, lonely: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_.main([str(archive)]) == 0
    said = capsys.readouterr().out
    assert "her2net_predict -d Dataset001_Small -i new_images -o predictions" in said
    assert "licence: none was chosen" in said
    folder = "her2net_results/Dataset001_Small/auto"
    assert {p.as_posix() for p in Path().rglob("*") if p.is_file()} == {f"{folder}/model.her2net", f"{folder}/model_card.md"}
    assert (Path(folder) / "model.her2net").read_bytes() == archive.read_bytes()
    tables = Predictor("Small", device="cpu").predict(put_new_images(small_run, lonely / "new"), quiet=True)
    assert_agree(tables["fusion"], read_predictions(small_run.model("fusion") / "test.csv"))


def test_the_archive_names_nobody(small_run: DatasetPaths, archive: Path) -> None:
    """Every member, decompressed: no case, patient, path, user, host or date; nor in what zip keeps of a file."""
    dataset = read_dataset(small_run.raw)
    ids = {case.case_id for case in dataset.cases} | {case.patient_id for case in dataset.cases}
    places = {getpass.getuser(), socket.gethostname()}
    root = str(small_run.roots.raw.parent)
    words = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in sorted(places)))
    dates = re.compile(r"(?<!\d)(19|20)\d\d-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./](19|20)\d\d|\d\d:\d\d:\d\d")
    dicom_dates = re.compile(r"(?<![\d.])(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?!\d)")
    paths = re.compile(r"(?<![\w.:/])/(home|root|tmp|usr|var|mnt|work|data|Users|private)\b|[A-Za-z]:\\")
    with zipfile.ZipFile(archive) as file:
        assert file.comment == b""
        for info in file.infolist():
            assert (info.date_time, info.extra, info.comment) == ((1980, 1, 1, 0, 0, 0), b"", b"")
            content = file.read(info)
            for secret in (root, *(i for i in ids if len(i) > 5)):
                assert secret.encode() not in content, f"{info.filename}: {secret}"
            tensors = info.filename.endswith(".safetensors")
            if tensors:
                content = content[8 : 8 + int.from_bytes(content[:8], "little")]  # the rest is numbers, as the import checks
            text = content.decode()
            for secret in ids:
                assert not re.search(rf"\b{re.escape(secret)}\b", text), f"{info.filename}: {secret}"
            for pattern in (words, dates, paths, *(() if tensors else (dicom_dates,))):  # offsets look like dates
                assert not pattern.search(text), f"{info.filename}: {pattern.search(text)}"
    assert len(ids) > 50


def test_the_archive_names_no_site_and_no_machine(made: TrainedModel, tmp_path: Path) -> None:
    """The files on disk do."""
    assert made.fingerprint.patients_per_site == {"north": 8, "south": 4}
    model = replace(made, plan=made.plan.model_copy(update={"machine": MACHINE.model_copy(update={"name": "recorded-cpu"})}))
    members = take_apart(write_made_archive(tmp_path / "a.her2net", model)).members
    assert json.loads(members["fingerprint.json"])["n_sites"] == 2
    words = (b"north", b"south", b"recorded-cpu", b"secret")
    assert not [(name, word) for name, content in members.items() for word in words if word in content]


def test_the_archive_holds_these_members_and_no_pickle(small_run: DatasetPaths, archive: Path) -> None:
    n_folds = Plan.load(small_run.plan).splits.n_folds
    texts = {"manifest.json", "plan.json", "fingerprint.json", "thresholds.json", "fusion.json", "model_card.md", "licence.txt"}
    weights = {f"weights/{name}/fold_{k}.safetensors" for name in ("US", "MRI") for k in range(n_folds)}
    tables = {f"tables/CLIN/fold_{k}.json" for k in range(n_folds)}
    members = take_apart(archive).members
    assert set(members) == texts | weights | tables | {"test_vectors.safetensors"}
    manifest = Manifest.parse(members["manifest.json"].decode(), where="manifest")
    assert set(manifest.members) == set(members) - {"manifest.json"}
    for name in weights:
        assert members[name][8:9] == b"{"
        assert not re.search(rb"pickle|torch\._utils|__reduce__", members[name][:200_000])


def test_the_card_repeats_the_evaluation(small_run: DatasetPaths, archive: Path) -> None:
    card = take_apart(archive).members["model_card.md"].decode()
    metrics = Evaluation.load(small_run.evaluation / "metrics.json").metrics
    for cohort in ("oof", "test"):
        auc = next(m for m in metrics if (m.model, m.cohort, m.metric) == ("US", cohort, "auc"))
        shown = f"| US | {cohort} | auc | {auc.value:.3f} [{auc.ci_low:.3f}, {auc.ci_high:.3f}] | {auc.ci_method} | {auc.n} |"
        assert shown in card
    for part in ("## Intended use", "## Input", "## Training cohort", "## Limits", "not a medical device", NONE_CHOSEN):
        assert part in card
    assert "| all | 26 |" in card
    assert "| US | scattering_2d | 96 x 96 | nothing: the filters are fixed | none: the classifier is solved | 4 |" in card
    assert "| CLIN | covariates of cases.csv: age (continuous)" in card
    assert "They hold no row of a case" in card


def test_remarks_reach_the_card(small_run: DatasetPaths) -> None:
    from her2net.archive.card import Training, write_card
    from her2net.trained import load_trained

    evaluation = Evaluation.load(small_run.evaluation / "metrics.json")
    marked = [metric.model_copy(update={"remark": "optimistic: chosen"}) for metric in evaluation.metrics]
    training = {name: Training((2, 3), "random numbers") for name in ("US", "MRI")}
    model = load_trained(small_run, "cpu")
    section = model.plan.modalities["US"]
    stepped = section.training.model_copy(update={"network": "resnet10t"})  # has epochs, which scattering networks have not
    model.plan.modalities["US"] = section.model_copy(update={"training": stepped})
    card = write_card(model, evaluation.model_copy(update={"metrics": marked}), training, read_licence("CC-BY-4.0"))
    assert "- fusion, oof: optimistic: chosen." in card
    assert "| resnet10t | 96 x 96 | random numbers | 2 to 3 | 2 |" in card
    assert "CC-BY-4.0; the text is in licence.txt" in card


def test_the_card_says_of_given_thresholds_that_they_were_not_chosen_on_patients(small_run: DatasetPaths) -> None:
    from her2net.archive.card import Training, write_card
    from her2net.trained import load_trained

    model, evaluation = load_trained(small_run, "cpu"), Evaluation.load(small_run.evaluation / "metrics.json")
    training = {name: Training((2, 3), "random numbers") for name in ("US", "MRI")}
    chosen = write_card(model, evaluation, training, read_licence("CC-BY-4.0"))
    assert "| 26 out-of-fold cases |" in chosen
    assert "The thresholds were chosen in the training cohort" in chosen
    bare = Threshold(value=0.3, rule="given", chosen_on="nothing", n=0)
    thresholds = model.thresholds.model_copy(update={"models": dict.fromkeys(model.thresholds.models, bare)})
    given = write_card(replace(model, thresholds=thresholds), evaluation, training, read_licence("CC-BY-4.0"))
    assert "| fusion | 0.3000 | given | nothing |" in given
    assert "The thresholds were given beforehand and not chosen on patients" in given
    assert "chosen in the training cohort" not in given
    assert "out-of-fold cases |" not in given


def test_the_same_model_gives_the_same_bytes(made: TrainedModel, tmp_path: Path) -> None:
    first, second = (write_made_archive(tmp_path / f"{i}.her2net", made).read_bytes() for i in range(2))
    assert first == second
    again = load_archive(tmp_path / "0.her2net")
    assert again.difference == 0
    assert write_made_archive(tmp_path / "2.her2net", again.model).read_bytes() == first


def test_exporting_before_training_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=20, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    plan_dataset(paths, plan_options(tmp_path, preprocess=False))
    point_to(monkeypatch, paths)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert export.main([]) == 2
    message = capsys.readouterr().err
    assert all(f"Run her2net_{c}" in message for c in ("train US 0", "train MRI 3", "ensemble US", "fuse", "evaluate"))
    assert snapshot(tmp_path) == before


def test_a_name_without_the_ending_is_refused(
    small_run: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(monkeypatch, small_run)
    assert export.main(["-o", "model.zip"]) == 2
    assert ".her2net" in capsys.readouterr().err


def test_licences(tmp_path: Path) -> None:
    text = tmp_path / "LICENCE.txt"
    text.write_text("Do good.")
    assert read_licence("CC-BY-NC-4.0").identifier == "CC-BY-NC-4.0"
    assert read_licence("MIT OR Apache-2.0").text == "SPDX-License-Identifier: MIT OR Apache-2.0\n"
    assert (read_licence(str(text)).text, read_licence(None).identifier) == ("Do good.", None)
    for wrong in ("no/such/file", "missing.txt", "", "do what you like!", "A" * 201):
        with pytest.raises(ArchiveError):
            read_licence(wrong)


def test_a_model_that_is_there_is_not_replaced(
    made: TrainedModel, roots: Roots, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_made_archive(tmp_path / "one.her2net", made)
    two = write_made_archive(tmp_path / "two.her2net", replace(made, tta={"US": True, "MG": False}))
    assert import_.main([str(one)]) == 0
    before = snapshot(tmp_path)
    assert import_.main([str(one)]) == 0, "the same file again changes nothing"
    assert snapshot(tmp_path) == before
    assert import_.main([str(two)]) == 2
    assert "-p NAME" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert import_.main([str(two), "-p", "second", "-d", "Dataset008_Theirs"]) == 0
    assert (roots.results / "Dataset008_Theirs" / "second" / "model.her2net").is_file()
    assert "-d Dataset008_Theirs -p second" in capsys.readouterr().out
    for wrong in (("-p", "../out"), ("-d", "Theirs"), ("-d", "../Dataset009_X")):
        before = snapshot(tmp_path)
        assert import_.main([str(two), *wrong]) == 2
        assert snapshot(tmp_path) == before


def test_own_training_is_not_replaced_by_an_import(made: TrainedModel, roots: Roots, tmp_path: Path) -> None:
    paths = DatasetPaths(roots, "Dataset007_Made")
    made.plan.save(paths.plan)
    assert import_.main([str(write_made_archive(tmp_path / "one.her2net", made))]) == 2
    assert not roots.results.exists()


def test_a_full_disk_leaves_nothing_of_an_import(
    made: TrainedModel, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_made_archive(tmp_path / "one.her2net", made)

    def fill(source: object, target: object, length: int) -> None:
        target.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    before = snapshot(tmp_path)
    assert import_.main([str(path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("arguments", ["-i x", "-o x", "-i x -o y -d 1", "-i x -o y -p b", "-i x -o y -p auto"])
def test_an_archive_needs_input_and_output_and_no_dataset(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--model", "a.her2net", *arguments.split()]) == 2
    assert "needs -i FOLDER and -o FOLDER" in capsys.readouterr().err


def test_test_time_augmentation_is_used_where_the_thresholds_were_fitted_with_it(
    made: TrainedModel, tmp_path: Path
) -> None:
    from raw_factory import write_dataset

    raw = write_dataset(tmp_path / "raw", n_patients=4)
    folder = tmp_path / "new"
    shutil.copytree(raw / "imagesTr", folder / "images")
    shutil.copytree(raw / "masksTr", folder / "masks")
    plain = write_made_archive(tmp_path / "plain.her2net", made)
    flipped = write_made_archive(tmp_path / "flipped.her2net", replace(made, tta={"US": True, "MG": False}))
    without = Predictor(plain, device="cpu").predict(folder, quiet=True)["US"].probs
    asked = Predictor(plain, device="cpu").predict(folder, quiet=True, tta=True)["US"].probs
    taken = Predictor(str(flipped), device="cpu").predict(folder, quiet=True)["US"].probs
    assert np.array_equal(asked, taken)
    assert not np.array_equal(without, taken)


def test_another_version_of_mirp_is_told_for_each_case(made: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, features = SimpleNamespace(plan=made.plan, model=made), FeatureTable(("a", "b"), {}, {})
    monkeypatch.setattr("her2net.predict.require_mirp", lambda: "9.9")
    found = Predictor._compare_mirp(holder, "RAD:US", features)  # type: ignore[arg-type]
    assert [(f.check, f.case_id, f.modality, f.found, f.expected) for f in found] == [
        ("mirp-version", case_id, "US", "9.9", "2.7.0") for case_id in ("a", "b")
    ]
    assert Predictor._compare_mirp(holder, "CLIN", features) == []  # type: ignore[arg-type]
    monkeypatch.setattr("her2net.predict.require_mirp", lambda: "2.7.0")
    assert Predictor._compare_mirp(holder, "RAD:US", features) == []  # type: ignore[arg-type]


def test_the_manifest_is_strict_json(archive: Path, tmp_path: Path) -> None:
    for name, content in take_apart(archive).members.items():
        if name.endswith(".json"):
            (tmp_path / "part.json").write_bytes(content)
            found = load_json(tmp_path / "part.json")
            assert found["schema_version"] == 1
            assert "her2net_version" in found
