"""The accuracy benchmark: equal folds for every method, and no way to a held-out label."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "accuracy"))

import folds
import learning_curve
import new_cases
import run
import table
from ablations import ABLATIONS, LEARNED
from automl import autogluon
from cohorts import COHORTS, FOLDER, Synthetic, ideal_auc, make_cohort
from methods import auto

from her2net.paths import DatasetPaths
from her2net.raw.dataset import read_dataset, read_test_labels

FAKE_AUTOGLUON = """
import csv, json, os, sys
from pathlib import Path
from PIL import Image
script, folder, *arguments = sys.argv[1:]
tables = [list(csv.DictReader((Path(folder) / f"{part}.csv").open())) for part in ("training", "held_out")]
json.dump({"arguments": arguments, "columns": [list(table[0]) for table in tables], "labels": [row["label"] for row in tables[0]],
           "sizes": [Image.open(row["image"]).size for table in tables for row in table]}, open(os.environ["SEEN"], "w"))
with (Path(folder) / "scores.csv").open("w") as file:
    print("image,score", *(f"{row['image']},0.5" for row in tables[1]), sep="\\n", file=file)
"""
"""What takes the place of AutoGluon's interpreter: it keeps what it was shown."""


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(COHORTS, "core_2d_40", Synthetic(2, 12))
    make_cohort("core_2d_40", tmp_path / "whole" / FOLDER, raw=None, seed=0)
    return tmp_path / "whole" / FOLDER


def test_a_fold_holds_no_label_of_who_is_held_out(cohort: Path, tmp_path: Path) -> None:
    held = folds.make_folds(read_dataset(cohort).train, [], 0)[0]
    paths = folds.make_paths(tmp_path / "work", FOLDER)
    folds.lay_out(cohort, held, paths.raw)
    dataset = read_dataset(paths.raw)
    assert [case.case_id for case in dataset.test] == held
    assert read_test_labels(dataset, purpose="test", log=tmp_path / "log.jsonl") == {}
    files = [path for path in paths.raw.rglob("*") if not path.is_dir()]
    assert not [path for path in files if path.is_symlink() or path.stat().st_nlink > 1], "a way back to the labels"
    assert {path.name for path in files if path.parent == paths.raw} == {"cases.csv", "dataset.json"}
    images = sorted((cohort / "imagesTr").rglob("*.png"))
    assert sorted(path.name for path in files if "images" in str(path.parent)) == [path.name for path in images]


def test_every_method_gets_the_same_folds(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[str, ...]]] = {"one": [], "other": []}

    def watch(name: str, paths: DatasetPaths) -> dict[str, float]:
        dataset = read_dataset(paths.raw)
        assert not {c.patient_id for c in dataset.train} & {c.patient_id for c in dataset.test}
        seen[name].append(tuple(case.case_id for case in dataset.test))
        return {case.case_id: 0.5 for case in dataset.test}

    for name in seen:
        monkeypatch.setitem(run.METHODS, name, lambda paths, seconds, seed, name=name: watch(name, paths))
    held_out = folds.make_folds(read_dataset(cohort).train, [], 0)
    rows = [run.run_method(name, cohort, held_out, tmp_path / name, 1.0, 0) for name in seen]
    assert seen["one"] == seen["other"] == [tuple(fold) for fold in held_out]
    assert sorted(rows[0]["case_ids"]) == [case.case_id for case in read_dataset(cohort).train]
    assert rows[0]["auc"] == 0.5


def test_a_method_must_score_who_is_held_out_and_nobody_else() -> None:
    assert folds.in_order({"b": 1.0, "a": 0.0}, ["a", "b"], "m").tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="not the 2 that are held out"):
        folds.in_order({"a": 0.0}, ["a", "b"], "m")
    with pytest.raises(ValueError, match="not finite"):
        folds.in_order({"a": float("nan")}, ["a"], "m")


def test_results_of_unequal_folds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.jsonl"
    row = {"cohort": "c", "seed": 0, "method": "auto", "code": "", "folds": "x"}
    path.write_text("".join(json.dumps(row | {"folds": fold}) + "\n" for fold in ("x", "y")))
    with pytest.raises(ValueError, match="lines with other folds"):
        run.read_results(path)


def test_the_table_compares_in_the_same_resamples() -> None:
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).standard_normal(60)
    tables = {"auto": {0: (labels, labels + noise)}, "forest": {0: (labels, labels + noise)}, "plain": {0: (labels, noise)}}
    rows = {row["method"]: row for row in table.summarise(tables, redraw_seeds=False)}
    assert rows["auto"]["reference"] == "forest"
    assert rows["auto"]["difference"] == 0
    assert rows["auto"]["limits"].tolist() == [0, 0], "the same scores differ in no resample"
    assert rows["plain"]["limits"][1] < 0
    assert rows["auto"]["low"] < rows["auto"]["auc"] < rows["auto"]["high"]


def test_a_changed_rule_can_be_compared_with_the_plan_as_it_is() -> None:
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).standard_normal(60)
    tables = {"auto": {0: (labels, labels + noise)}, "auto_margin_0": {0: (labels, noise)}, "forest": {0: (labels, 2 * labels + noise)}}
    rows = {row["method"]: row for row in table.summarise(tables, redraw_seeds=False, against="auto")}
    assert rows["auto"]["reference"] == "auto"
    assert rows["auto_margin_0"]["difference"] < 0 < rows["forest"]["difference"]
    lines = table.over_cohorts({"auto_margin_0": [-0.2, 0.1, -0.2], "forest": [0.1]})
    assert lines[2:] == [
        "| forest | 1 | +0.100 (nan) | 1 | +0.100, +0.100 |",
        "| auto_margin_0 | 3 | -0.100 (0.100) | 1 | -0.200, +0.100 |",
    ]


def test_a_learning_curve_judges_the_same_cases_by_models_of_fewer_patients(cohort: Path, tmp_path: Path) -> None:
    cases = read_dataset(cohort).train
    held = folds.make_folds(cases, [], 0)[0]
    training = [case for case in cases if case.case_id not in held]
    left_out = {share: learning_curve.choose_left_out(training, share, 0) for share in learning_curve.SHARES}
    assert left_out[1.0] == []
    assert set(left_out[0.75]) < set(left_out[0.5]) <= set(left_out[0.25]) < {case.case_id for case in training}
    paths = folds.make_paths(tmp_path / "work", FOLDER)
    folds.lay_out(cohort, held, paths.raw, left_out[0.25])
    dataset = read_dataset(paths.raw)
    assert [case.case_id for case in dataset.test] == held
    assert {case.case_id for case in dataset.train} == {case.case_id for case in training} - set(left_out[0.25])
    assert min(sum(case.label == label for case in dataset.train) for label in (0, 1)) == 2, "no class is left with one patient"


@pytest.mark.parametrize("name", ["core_2d_200", "texture_3d_200", "size_2d_200", "none_3d_200"])
def test_an_ideal_reader_of_many_cases_reaches_the_bayes_auc(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = COHORTS[name]
    assert isinstance(recipe, Synthetic)
    monkeypatch.setitem(COHORTS, name, dataclasses.replace(recipe, n_patients=4000))
    assert ideal_auc(name, 0) == pytest.approx(recipe.bayes_auc, abs=0.025)
    assert ideal_auc("busi", 0) is None


def test_a_cohort_without_the_confounder_is_judged_without_its_labels(cohort: Path, tmp_path: Path) -> None:
    judged = new_cases.lay_out_cohorts(cohort, {"A-": cohort, "B-": cohort}, tmp_path / FOLDER)
    dataset = read_dataset(tmp_path / FOLDER)
    ids = [case.case_id for case in read_dataset(cohort).train]
    assert [case.case_id for case in dataset.train] == ids
    assert sorted(case.case_id for case in dataset.test) == sorted(prefix + i for prefix in judged for i in ids)
    assert read_test_labels(dataset, purpose="test", log=tmp_path / "log.jsonl") == {}
    assert all(case.masks and case.images for case in dataset.test)


def test_a_rival_in_an_environment_of_its_own_gets_pictures_and_no_label_of_a_held_out_case(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_dataset(cohort).train
    held = folds.make_folds(cases, [], 0)[0]
    paths = folds.make_paths(tmp_path / "work", FOLDER)
    folds.lay_out(cohort, held, paths.raw)
    monkeypatch.setenv("AUTOGLUON_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"set AUTOGLUON_PYTHON to its python, found .*nowhere"):
        autogluon(paths, 60.0, 0)
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE_AUTOGLUON)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("AUTOGLUON_PYTHON", str(python))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    scores = autogluon(paths, 60.0, 7)
    assert set(scores) == set(held)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["arguments"] == ["60.0", "7"]
    assert seen["columns"] == [["image", "label"], ["image"]]
    assert sorted(seen["labels"]) == sorted(str(case.label) for case in cases if case.case_id not in held)
    assert {tuple(size) for size in seen["sizes"]} == {(224, 224)}


@pytest.mark.parametrize("change", [*ABLATIONS, *list(LEARNED)[1:]])
def test_every_ablation_changes_the_plan(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ndim = 3 if change in {"auto_channels_apart", "auto_uptake", "learned_stride_1", "learned_stride_122"} else 2
    monkeypatch.setitem(COHORTS, "core_2d_40", Synthetic(ndim, 40 if "folds" in change else 12, positive_share=0.25))
    if change == "auto_wavelets":  # what is planned anyway but of very large cohorts
        monkeypatch.setattr("her2net.plan.rules.SCATTERING_UP_TO", 5)
    make_cohort("core_2d_40", tmp_path / "raw" / FOLDER, raw=None, seed=0)
    plans = []
    for method in (auto, ABLATIONS[change]) if change in ABLATIONS else (LEARNED["learned"], LEARNED[change]):
        paths = folds.make_paths(tmp_path, FOLDER)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("methods._train", lambda project, options, folds: plans.append(project.plan) or {})
            patch.setattr("her2net.plan.rules.MIN_STEPS", 1)  # so few cases take more passes than were asked for
            patch.setattr("her2net.plan.stage.measure_speed", lambda *_, **__: 100.0)  # takes seconds, and no rule is about it
            method(paths, 60.0, 0)
        paths.plan.unlink()
    before, after = ([plan.splits.n_folds, [(m.preprocessing, m.training) for m in plan.modalities.values()]] for plan in plans)
    assert before != after
