"""Table models: nothing is fitted outside of the fold, what is stored predicts the same, radiomics is what IBSI says it is."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_paths
from raw_factory import write_dataset
from small_run import plan_options

from her2net import pipeline, status
from her2net.archive.licence import read_licence
from her2net.archive.write import export_model
from her2net.cli.fuse import main as fuse_command
from her2net.errors import MissingDependencyError, PlanError, RawDataError, StaleArtefactError
from her2net.evaluate.delong import auc
from her2net.fuse.sources import fusion_sources, fusion_subsets
from her2net.paths import DatasetPaths
from her2net.plan.planner import explain
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.plan.table_schema import RadiomicsPlan, TableModelPlan, TablePlan
from her2net.plan.tables import count_fewest, enough_patients, plan_radiomics, settle_tables
from her2net.predict import Predictor
from her2net.predictions import Predictions, make_predictions, read_predictions, write_predictions
from her2net.preprocess.cache import CaseFiles
from her2net.project import load_project
from her2net.raw.dataset import Case
from her2net.raw.rows import read_covariates
from her2net.raw.spec import DatasetSpec
from her2net.report.tabular import added_value_table, clinical_scales, sentences
from her2net.states import table_fold_state
from her2net.tabular import features as features_module
from her2net.tabular import radiomics
from her2net.tabular.added import measure_added_value
from her2net.tabular.encode import encode, fit_encoding
from her2net.tabular.explain import _most_used
from her2net.tabular.features import FeatureTable, update_features
from her2net.tabular.learn import Trial, apply_model, estimate, fit_model, fit_with
from her2net.tabular.radiomics import describe_arrays, require_mirp
from her2net.tabular.record import TableExplanation, TableFold
from her2net.tabular.stage import plan_inputs, train_table_fold

BOTH = TableModelPlan(learners=["elastic_net", "forest"], transform="normal_scores", max_correlation=0.95, inner_folds=3, seed=0)
LINEAR = BOTH.model_copy(update={"learners": ["elastic_net"]})
PHANTOM = np.array([
    [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
    [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
    [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
    [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
])  # fmt: skip
"""The digital phantom of the IBSI reference manual; 0 lies outside of the region of interest."""


def make_table(n: int, n_columns: int, seed: int = 0) -> FeatureTable:
    rng = np.random.default_rng(seed)
    columns = {f"f{i}": rng.normal(size=n) for i in range(n_columns)}
    return FeatureTable(tuple(f"c{i:03d}" for i in range(n)), columns, dict.fromkeys(columns, "continuous"))


def out_of_fold(table: FeatureTable, labels: np.ndarray, plan: TableModelPlan, n_folds: int = 4) -> np.ndarray:
    scores, fold_of = np.zeros(len(labels)), np.arange(len(labels)) % n_folds
    for k in range(n_folds):
        train, held = np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)
        model = fit_model(table.take(train), labels[train], [f"p{i}" for i in train], 2, plan)
        scores[held] = apply_model(model, table.take(held))[:, 1]
    return scores


def test_permuted_labels_with_500_noise_features_cannot_be_predicted() -> None:
    labels = np.random.default_rng(1).permutation(np.arange(120) % 2)
    table = make_table(120, 500)
    assert abs(auc(labels, out_of_fold(table, labels, LINEAR)) - 0.5) < 0.15
    # what the test would see if features were selected on everybody
    strength = [abs(auc(labels, values) - 0.5) for values in table.columns.values()]
    best = [f"f{i}" for i in np.argsort(strength)[-15:]]
    chosen = FeatureTable(table.case_ids, {name: table.columns[name] for name in best}, dict.fromkeys(best, "continuous"))
    assert auc(labels, out_of_fold(chosen, labels, LINEAR)) > 0.75


def test_what_separates_the_classes_is_found_among_noise() -> None:
    labels = np.arange(120) // 4 % 2  # both classes in every fold
    table = make_table(120, 30)
    table.columns["f7"][:] += 3.0 * labels
    assert auc(labels, out_of_fold(table, labels, LINEAR)) > 0.85


def test_values_of_a_held_out_patient_do_not_change_the_model_that_predicts_it(copied: DatasetPaths) -> None:
    project = load_project(copied)
    record = train_table_fold(project, "CLIN", 0, restart=False, quiet=True)
    held = project.splits.folds(project.plan.splits)[0][0]
    change_age(copied, {held})
    changed = load_project(copied)
    assert table_fold_state(changed, "CLIN", 0).state == "stale"
    again = train_table_fold(changed, "CLIN", 0, restart=True, quiet=True)
    assert again.model == record.model
    other = next(c.patient_id for c in project.dataset.train if c.patient_id != held and c.patient_id not in
                 project.splits.folds(project.plan.splits)[0])  # fmt: skip
    change_age(copied, {other})
    assert train_table_fold(load_project(copied), "CLIN", 0, restart=True, quiet=True).model != record.model


def change_age(paths: DatasetPaths, patients: set[str]) -> None:
    path = paths.raw / "cases.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["age"] = "99" if row["patient_id"] in patients else row["age"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_clinical_covariates_are_planned_trained_evaluated_and_reported(done: DatasetPaths) -> None:
    project = load_project(done)
    assert list(project.plan.tables) == ["CLIN"]
    assert set(project.plan.tables["CLIN"].columns) == {"age", "menopausal", "grade"}, "the site is left out"
    table = read_predictions(done.model("CLIN") / "oof.csv")
    for k, held in enumerate(project.splits.folds(project.plan.splits)):
        owners = {p for p, fold in zip(table.patient_ids, table.folds, strict=True) if fold == str(k)}
        assert owners <= set(held)
    assert len(table) == len(project.dataset.train)
    assert (read_predictions(done.model("CLIN") / "test.csv").labels == -1).all()
    added = json.loads((done.evaluation / "added_value.json").read_text())["rows"]
    assert {(" + ".join(r["base"]), " + ".join(r["added"]), r["cohort"]) for r in added} == {
        ("US + MRI", "CLIN", "oof"), ("CLIN", "US + MRI", "oof"), ("US + MRI", "CLIN", "test"), ("CLIN", "US + MRI", "test")}
    page = done.report.read_text(encoding="utf-8")
    assert "Radiomics and clinical data" in page
    assert "Nomogram of fusion" in page
    explained = TableExplanation.load(done.model("CLIN") / "explanation.json")
    (level,) = [w for w in explained.weights if w.term.startswith("menopausal")]
    assert (level.term, level.reference) == ("menopausal = 1", "0")
    assert "menopausal = 1 (against 0)" in page
    labels = {scale.name: scale.labels for scale in clinical_scales(explained)[0]}
    assert labels.get("menopausal", ["0", "1"]) == ["0", "1"], "a level without a weight has no line"


def test_a_stored_model_predicts_as_it_did_when_it_was_fitted(tmp_path: Path) -> None:
    labels = np.arange(80) % 2
    table = make_table(80, 12)
    table.columns["f0"][::7] = np.nan
    table.columns["where"] = np.array(["left", "right", "", "both"] * 20, dtype=object)
    table.kinds["where"] = "categorical"
    for trial in (Trial(learner="elastic_net", settings={"C": 0.1, "l1_share": 0.5}, log_loss=0),
                  Trial(learner="forest", settings={"min_cases_per_leaf": 3}, log_loss=0)):  # fmt: skip
        model = fit_with(table, labels, 2, BOTH, trial)
        record = TableFold(table="CLIN", fold="0", settings=BOTH, n_held_out_cases=0, model=model, environment={})
        record.save(tmp_path / "model.json")
        probs = apply_model(TableFold.load(tmp_path / "model.json").model, table)
        x = encode(table, model.encoding)
        assert np.allclose(probs, estimate(x, labels, trial, 0).predict_proba(x), atol=1e-9)


def test_a_covariate_that_does_not_vary_says_nothing_and_is_no_hindrance() -> None:
    table, labels = make_table(40, 1), np.arange(40) % 2
    table.columns["f0"][:] = 3.0
    trial = Trial(learner="elastic_net", settings={"C": 0.1, "l1_share": 0.5}, log_loss=0)
    model = fit_with(table, labels, 2, BOTH, trial)
    record = TableFold(table="CLIN", fold="0", settings=BOTH, n_held_out_cases=0, model=model, environment={})
    assert not model.encoding.terms
    np.testing.assert_allclose(apply_model(model, table), 0.5)
    assert _most_used([record], ["f0"]) == []


def test_encoding_knows_nothing_of_new_cases_and_survives_them() -> None:
    table = make_table(50, 3)
    table.columns["f2"] = table.columns["f0"] * 2 + 1
    table.columns["where"] = np.array(["left"] * 30 + ["right"] * 20, dtype=object)
    table.kinds["where"] = "binary"
    encoding = fit_encoding(table, BOTH)
    assert [term.name for term in encoding.terms] == ["f0", "f1", "where = right"], "f2 says what f0 says"
    new = FeatureTable(("x", "y"), {"f0": np.array([np.nan, 1e9]), "where": np.array(["", "elsewhere"], dtype=object)}, table.kinds)
    x = encode(new, encoding)
    assert np.isfinite(x).all()
    assert x[0, 2] == x[1, 2], "a level that was not seen counts as missing"
    assert abs(x[1, 0]) < 4, "a value far outside is cut"


def test_three_classes() -> None:
    labels = np.arange(90) % 3
    table = make_table(90, 5)
    table.columns["f1"][:] += 2.0 * labels
    for plan in (LINEAR, BOTH.model_copy(update={"learners": ["forest"]})):
        probs = apply_model(fit_model(table, labels, list(table.case_ids), 3, plan), table)
        assert np.allclose(probs.sum(axis=1), 1)
        assert (probs.argmax(axis=1) == labels).mean() > 0.6


def test_a_plan_without_tables_is_what_it_was(done: DatasetPaths) -> None:
    plan = Plan.load(done.plan)
    bare = plan.model_copy(update={"tables": {}, "decisions": [d for d in plan.decisions if not d.path.startswith("tables.")]})
    assert "tables" not in bare.model_dump(mode="json")
    assert Plan.parse(bare.model_dump_json(), where="here") == bare


def test_evaluating_a_plan_without_tables_removes_what_they_added(copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [copied.evaluation / name for name in ("added_value.csv", "added_value.json")]
    monkeypatch.setattr(pipeline, "evaluate_dataset", lambda *_, **__: None)  # its own files are none of this test's
    plan = Plan.load(copied.plan)
    assert all(path.is_file() for path in left)
    bare = {"tables": {}, "decisions": [d for d in plan.decisions if not d.path.startswith("tables.")]}
    plan.model_copy(update=bare).save(copied.plan)
    pipeline.evaluate(load_project(copied))
    assert not any(path.exists() for path in left)


def test_an_evaluation_interrupted_before_the_added_value_is_not_complete(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_added_value", kill)
    monkeypatch.setattr("her2net.evaluate.files.write_figures", lambda *_: [])
    assert status.evaluation_state(load_project(copied)).state == "done"
    with pytest.raises(KeyboardInterrupt):
        pipeline.evaluate(load_project(copied))
    assert status.evaluation_state(load_project(copied)).state == "missing"


def test_tables_come_and_go_with_what_can_be_had(done: DatasetPaths) -> None:
    project = load_project(done)
    fingerprint = features_fingerprint(done)
    plan, remarks = settle_tables(project.plan, fingerprint, {"age": "continuous"}, radiomics=True, fewest=plenty)
    assert list(plan.tables) == ["RAD:US", "RAD:MRI", "CLIN"] or set(plan.tables) == {"RAD:US", "RAD:MRI", "CLIN"}
    assert plan.tables["CLIN"].columns == {"age": "continuous"}
    assert any("other covariates" in remark for remark in remarks)
    assert not plan.edited
    assert plan.tables["RAD:US"].radiomics.by_slice  # type: ignore[union-attr]
    assert "morphology" not in plan.tables["RAD:US"].radiomics.families  # type: ignore[union-attr]
    removed = plan.model_copy(update={"tables": {k: v for k, v in plan.tables.items() if k != "RAD:US"}})
    assert removed.edited == {"tables.RAD:US": "removed"}
    assert "RAD:US" not in settle_tables(removed, fingerprint, {"age": "continuous"}, radiomics=True, fewest=plenty)[0].tables
    assert settle_tables(plan, fingerprint, {}, radiomics=False, fewest=plenty)[0].tables.keys() == {"RAD:US", "RAD:MRI"}


def plenty(table: TablePlan) -> int:
    return 50


def test_a_table_of_too_few_patients_is_not_planned_and_the_plan_says_why(done: DatasetPaths) -> None:
    project, fingerprint, age = load_project(done), features_fingerprint(done), {"age": "continuous"}
    fewest = lambda table: 4 if table.modality is None else 5
    plan, remarks = settle_tables(project.plan, fingerprint, age, radiomics=True, fewest=fewest)  # type: ignore[arg-type]
    assert list(plan.tables) == ["RAD:US", "RAD:MRI"], "CLIN was planned when there were enough"
    why = "not planned: the smallest class has 4 training patients with these features in some fold; the inner loop needs 5"
    assert plan.unplanned_tables == {"CLIN": why}
    assert f"CLIN: {why}" in remarks
    assert "has 1 training patient with" in enough_patients(1).reason
    assert Plan.parse(plan.model_dump_json(), where="here") == plan
    assert not plan.edited
    assert f"tables.CLIN = None\n    enough_patients: {why}" in explain(plan)
    again = settle_tables(plan, fingerprint, age, radiomics=True, fewest=fewest)  # type: ignore[arg-type]
    assert again == (plan, []), "said once"
    grown, _ = settle_tables(plan, fingerprint, age, radiomics=True, fewest=plenty)  # type: ignore[arg-type]
    assert list(grown.tables) == ["RAD:US", "RAD:MRI", "CLIN"]
    assert not grown.unplanned_tables


def test_the_fewest_patients_are_counted_by_class_and_fold() -> None:
    cases = [Case(f"c{i}", f"p{i // 2}", "train", label, None, {}, {}, {}) for i, label in enumerate((0, 0, 0, 0, 1, 1, 1, 1, 1, 1))]
    assert count_fewest(cases, [["p0"], ["p2", "p3"]], 2) == 1, "p4 alone is left of class 1 in the second fold"
    assert count_fewest(cases, [["p0"], ["p1"]], 2) == 1
    assert count_fewest(cases, [["p2"], ["p3"]], 2) == 2
    assert count_fewest(cases, [["p2"], ["p3"]], 3) == 0


def test_a_tiny_cohort_with_covariates_is_planned_without_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make_paths(tmp_path, "Dataset001_Tiny")
    write_dataset(paths.raw, n_patients=8, n_test=2)
    plan, remarks = plan_dataset(paths, plan_options(tmp_path, preprocess=False))
    assert not plan.tables
    assert list(plan.unplanned_tables) == ["CLIN"]
    assert any(remark.startswith("CLIN: not planned") for remark in remarks)
    before = paths.plan.read_bytes()
    plan_dataset(paths, plan_options(tmp_path, preprocess=False))
    assert paths.plan.read_bytes() == before
    for root in (paths.roots.raw, paths.roots.preprocessed, paths.roots.results):
        monkeypatch.setenv(root.name, str(root))
    assert fuse_command(["--covariates"]) == 2
    assert "It was not planned: the smallest class has" in (error := capsys.readouterr().err)
    assert "Leave --covariates out." in error
    assert "Declare covariates" not in error, "they are declared"


def features_fingerprint(paths: DatasetPaths):  # type: ignore[no-untyped-def]
    from her2net.fingerprint import Fingerprint

    return Fingerprint.load(paths.fingerprint)


def test_fusion_has_a_model_for_each_thing_a_case_may_lack(done: DatasetPaths) -> None:
    project = load_project(done)
    table, _ = plan_radiomics("RAD:US", "US", features_fingerprint(done).modalities["US"])
    plan = project.plan.model_copy(update={"tables": {"RAD:US": table.model_copy(update={"fused": True}), **project.plan.tables}})
    sources = fusion_sources(plan, covariates=True)
    assert sources == ["US", "MRI", "RAD:US", "CLIN"]
    subsets = fusion_subsets(plan, sources)
    assert ["US", "MRI", "RAD:US", "CLIN"] in subsets
    assert ["US"] in subsets
    assert ["MRI", "RAD:US"] not in subsets
    assert fusion_subsets(project.plan, fusion_sources(project.plan, covariates=False)) == project.plan.fusion.subsets


def test_one_changed_case_recomputes_one_case(done: DatasetPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def describe(images: tuple[Path, ...], mask: Path, channels: list[str], plan: RadiomicsPlan) -> dict[str, float]:
        if images[0].name == "broken":
            raise RawDataError("broken")
        asked.append(images[0].name)
        return {"B-mode: stat_mean": 0.1 + len(asked)}

    monkeypatch.setattr(features_module, "describe_case", describe)
    monkeypatch.setattr(features_module, "require_mirp", lambda: "0")
    table, _ = plan_radiomics("RAD:US", "US", features_fingerprint(done).modalities["US"])
    paths = DatasetPaths(done.roots.__class__(tmp_path, tmp_path, tmp_path), "Dataset001_X")
    files = [CaseFiles(name, (Path(name),), Path("m"), name) for name in ("a", "b", "c")]
    update = lambda cases: update_features(paths, "RAD:US", table, ["B-mode"], cases, n_workers=1, quiet=True)
    assert update(files)[0] == 3
    n, first = update(files)
    assert (n, asked) == (0, ["a", "b", "c"])
    changed = [files[0], CaseFiles("b", (Path("b2"),), Path("m"), "other"), files[2]]
    n, second = update(changed)
    assert (n, asked[3:]) == (1, ["b2"])
    assert (second["a"], second["b"]) == (first["a"], {"B-mode: stat_mean": 4.1})
    with pytest.raises(RawDataError):
        update([*changed, CaseFiles("d", (Path("d"),), Path("m"), "d"), CaseFiles("e", (Path("broken"),), Path("m"), "e")])
    assert update([*changed, CaseFiles("d", (Path("d"),), Path("m"), "d")])[0] == 0, "what was computed before is kept"


def test_absence_of_mirp_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("her2net.tabular.radiomics.radiomics_at_hand", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'her2net\[radiomics\]'"):
        require_mirp()


def test_mirp_gives_the_reference_values_of_the_ibsi_phantom() -> None:
    pytest.importorskip("mirp")
    plan = RadiomicsPlan(families=["statistics", "glcm"], normalisation="none", discretisation="fixed_bin_number", bins=6,
                         bin_width=None, by_slice=False, spacing_mm=None)  # fmt: skip
    found = describe_arrays(PHANTOM[None], PHANTOM > 0, (2.0, 2.0, 2.0), ["x"], plan)
    reference = {"stat_mean": 2.15, "stat_var": 3.05, "stat_skew": 1.08, "stat_kurt": -0.355, "stat_median": 1, "stat_p90": 4,
                 "stat_max": 6, "stat_iqr": 3, "stat_mad": 1.55, "stat_energy": 567, "stat_rms": 2.77}  # fmt: skip
    for name, value in reference.items():
        assert found[f"x: {name}"] == pytest.approx(value, rel=5e-3), name
    contrast = next(v for k, v in found.items() if k.startswith("x: cm_contrast"))
    assert contrast == pytest.approx(5.12, rel=5e-3), "all directions in one matrix; the mean over directions is 5.32"


@pytest.mark.parametrize("spacing_mm", [None, [1.5, 1.5]])
def test_slices_side_by_side_give_what_mirp_gives_for_the_volume(spacing_mm: list[float] | None) -> None:
    pytest.importorskip("mirp")
    rng = np.random.default_rng(0)
    image = np.add.accumulate(rng.standard_normal((3, 18, 15)), axis=2).astype(np.float32)
    lesion = np.zeros(image.shape, dtype=bool)
    lesion[0, :9, 3:12], lesion[2, 6:16, :8] = True, True  # slices apart, lesions that touch the border
    plan = RadiomicsPlan(families=["statistics", "histogram", "intensity_volume", "glcm", "glrlm", "glszm", "gldzm", "ngtdm", "ngldm"],
                         normalisation="none", discretisation="fixed_bin_number", bins=8, bin_width=None, by_slice=True,
                         spacing_mm=spacing_mm)  # fmt: skip
    found = describe_arrays(image[None], lesion, (6.0, 1.0, 1.0), ["x"], plan)
    whole = radiomics._run_mirp(image, lesion, (6.0, 1.0, 1.0), plan, plan.families, by_slice=True, new_spacing=spacing_mm,
                                **radiomics.MERGED)  # fmt: skip
    assert len(whole) == len(found) > 100
    for name, value in whole.items():
        assert found[f"x: {name}"] == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_slices_lie_side_by_side_without_touching() -> None:
    lesion = np.zeros((4, 6, 5), dtype=bool)
    lesion[1, :3, 2:], lesion[3, 2:, 4] = True, True
    image = np.arange(lesion.size, dtype=np.float32).reshape(lesion.shape)
    flat, mask = radiomics.lay_side_by_side(image, lesion)
    assert flat.shape == mask.shape == (1, 2 * (6 + 2), 3 + 2)
    assert sorted(flat[mask]) == sorted(image[lesion])
    assert not mask[0, 7:9].any(), "two rows between the slices"


def test_covariates_of_new_cases_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("case_id;age;sex\na;41,5;f\nb;;m\n", encoding="utf-8")
    found = read_covariates(path, {"age": "continuous", "sex": "binary", "grade": "ordinal"})
    assert found == {"a": {"age": "41.5", "sex": "f"}, "b": {"age": "", "sex": "m"}}
    path.write_text("case_id,age\na,old\na,41\n", encoding="utf-8")
    with pytest.raises(RawDataError) as caught:
        read_covariates(path, {"age": "continuous"})
    assert "'old'" in str(caught.value)
    assert "stands twice" in str(caught.value)


def test_levels_of_new_cases_are_those_of_training_however_they_are_spelled(tmp_path: Path) -> None:
    kinds = {"mass": "binary"}
    table = FeatureTable(tuple("abcd"), {"mass": np.array(["Yes", "no", "no", "no"], dtype=object)}, kinds)  # type: ignore[arg-type]
    encoding = fit_encoding(table, LINEAR)
    assert [term.name for term in encoding.terms] == ["mass = no"]
    path = tmp_path / "cases.csv"
    path.write_text("case_id,mass\na,yes\nb,NO\nc,NA\nd,perhaps\n", encoding="utf-8")
    found = read_covariates(path, kinds)  # type: ignore[arg-type]
    assert found["c"] == {"mass": ""}
    new = FeatureTable(tuple(found), {"mass": np.array([row["mass"] for row in found.values()], dtype=object)}, kinds)  # type: ignore[arg-type]
    as_trained = FeatureTable(tuple("abcd"), {"mass": np.array(["Yes", "no", "", ""], dtype=object)}, kinds)  # type: ignore[arg-type]
    np.testing.assert_array_equal(encode(new, encoding), encode(as_trained, encoding))


@pytest.mark.parametrize("name", ["CLIN", "RAD-US", "rad-x"])
def test_names_of_table_folders_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match="taken"):
        DatasetSpec(name="x", labels={"a": 0, "b": 1}, modalities={name: {"channels": {"0": "c"}, "file_ending": ".png"}})  # type: ignore[dict-item]


def test_a_table_has_to_be_named_after_its_source(done: DatasetPaths) -> None:
    plan = Plan.load(done.plan)
    text = plan.model_copy(update={"tables": {"clinic": plan.tables["CLIN"]}, "decisions": []}).model_dump_json()
    with pytest.raises(PlanError, match="must be named CLIN"):
        Plan.parse(text, where="here")


def made_of_logits(labels: np.ndarray, logits: np.ndarray) -> Predictions:
    ids, p = [f"c{i:03d}" for i in range(len(labels))], 1 / (1 + np.exp(-logits))
    return make_predictions(ids, ids, np.stack([1 - p, p], 1), labels=labels.tolist(), folds=["0"] * len(ids))


def plan_with_covariates(done: DatasetPaths) -> Plan:
    table = TablePlan(modality=None, radiomics=None, columns={"age": "continuous"}, model=LINEAR, fused=False)
    return Plan.load(done.plan).model_copy(update={"tables": {"CLIN": table}})


def test_added_value_is_found_where_there_is_some_and_not_where_there_is_none(done: DatasetPaths) -> None:
    rng = np.random.default_rng(0)
    n = 200
    labels, ids = np.arange(n) // 4 % 2, [f"c{i:03d}" for i in range(n)]

    def model(strength: float) -> Predictions:
        return made_of_logits(labels, strength * (labels - 0.5) + rng.normal(size=n))

    plan = plan_with_covariates(done)
    folds = [ids[k::4] for k in range(4)]
    images = {"US": model(1.0), "MRI": model(1.0)}
    useful, useless = (measure_added_value({**images, "CLIN": model(s)}, {}, plan, folds, {})[0] for s in (2.0, 0.0))
    assert useful.ci_low > 0.02  # type: ignore[operator]
    assert useless.ci_low < 0.01  # type: ignore[operator]
    assert abs(useless.difference) < 0.02  # type: ignore[arg-type]
    assert (useful.base, useful.added, useful.n) == (["US", "MRI"], ["CLIN"], n)


def test_noise_that_points_the_wrong_way_is_not_turned_around(done: DatasetPaths) -> None:
    rng = np.random.default_rng(0)
    n = 200
    labels, folds = np.arange(n) // 4 % 2, [[f"c{i:03d}" for i in range(k, n, 4)] for k in range(4)]
    others = (labels.sum() - labels) / (n - 1)
    ignorant = made_of_logits(labels, np.log(others / (1 - others)) + rng.normal(0, 0.02, n))
    assert auc(labels, ignorant.probs[:, 1]) < 0.35, "who knows the prevalence of the others alone is worse than chance"
    images = {name: made_of_logits(labels, labels + rng.normal(size=n)) for name in ("US", "MRI")}
    both = {**images, "CLIN": ignorant}
    for found in (measure_added_value(both, {}, plan_with_covariates(done), folds, {}),
                  measure_added_value(both, both, plan_with_covariates(done), folds, {})[2:]):  # fmt: skip
        to_images, from_images = found
        assert (to_images.difference, to_images.auc_both) == (0, to_images.auc_base)
        assert "changes nothing: the cases are ranked alike" in sentences(SimpleNamespace(added=found, silent=[]))[0]  # type: ignore[arg-type]
        assert from_images.auc_base == 0.5, "turned around it would reach 0.75"
        assert from_images.auc_both == to_images.auc_base
        assert from_images.ci_low > 0.1  # type: ignore[operator]


def test_what_rests_on_an_optimistic_model_says_so(done: DatasetPaths) -> None:
    rng, n = np.random.default_rng(0), 40
    labels, folds = np.arange(n) // 4 % 2, [[f"c{i:03d}" for i in range(k, n, 4)] for k in range(4)]
    tables = {name: made_of_logits(labels, labels + rng.normal(size=n)) for name in ("US", "MRI", "CLIN")}
    remarks = {"US": "optimistic: epoch chosen on the reported fold"}
    found = measure_added_value(tables, tables, plan_with_covariates(done), folds, remarks)
    assert {row.remark for row in found if row.cohort == "oof"} == {"optimistic: epoch chosen on the reported fold (US)"}
    assert {row.remark for row in found if row.cohort == "test"} == {""}
    shown = SimpleNamespace(added=found, silent=[])
    assert "Read with: optimistic: epoch chosen on the reported fold (US)." in sentences(shown)[0]  # type: ignore[arg-type]
    table = added_value_table(shown)  # type: ignore[arg-type]
    assert table is not None
    assert [row[-1].text for row in table.rows] == [row.remark for row in found]


def test_new_cases_are_predicted_with_and_without_their_covariates(copied: DatasetPaths, tmp_path: Path) -> None:
    project, path = load_project(copied), copied.model("CLIN") / "oof.csv"
    table = read_predictions(path)
    telling = 0.4 + 0.2 * table.labels + 0.01 * np.arange(len(table)) / len(table)  # else the fusion may leave it out
    write_predictions(path, replace(table, probs=np.column_stack([1 - telling, telling])))
    record = pipeline.fuse(project, covariates=True)
    assert {tuple(m.modalities) for m in record.models} >= {("US", "MRI"), ("US", "MRI", "CLIN"), ("US",), ("US", "CLIN")}
    assert status.fusion_state(project).state == "done"
    assert status.fusion_state(project).command.endswith("--covariates")
    assert status.evaluation_state(project).state == "stale"
    predictor = Predictor(copied, device="cpu")
    with_them = predictor.predict(copied.raw, quiet=True)
    for name in ("CLIN", "fusion"):
        known = read_predictions(copied.model(name) / "test.csv")
        assert with_them[name].case_ids == known.case_ids
        assert np.allclose(with_them[name].probs, known.probs, atol=1e-5)
    for part in ("imagesTs", "masksTs"):
        shutil.copytree(copied.raw / part, tmp_path / "new" / part)
    without = predictor.predict(tmp_path / "new", quiet=True)
    assert "CLIN" not in without
    assert without["fusion"].case_ids == with_them["fusion"].case_ids
    assert not np.allclose(without["fusion"].probs, with_them["fusion"].probs)
    archive = export_model(copied, tmp_path / "x.her2net", read_licence(None)).path
    carried = Predictor(archive, device="cpu").predict(copied.raw, quiet=True)
    assert set(carried) == set(with_them)
    for name in ("CLIN", "fusion"):
        assert np.abs(carried[name].probs - with_them[name].probs).max() < 1e-12, name


def test_tables_fitted_by_another_plan_neither_predict_nor_are_ensembled(copied: DatasetPaths) -> None:
    before, text = (copied.model("CLIN") / "test.csv").read_bytes(), json.loads(copied.plan.read_text())
    text["tables"]["CLIN"]["model"]["max_correlation"] = 0.5
    copied.plan.write_text(json.dumps(text))
    told = r"CLIN: folds 0, 1, 2, 3 .*changed since: settings\)\. Run her2net_train CLIN 0 1 2 3 --restart -d Dataset001_Small"
    with pytest.raises(StaleArtefactError, match=told):
        Predictor(copied, device="cpu")
    with pytest.raises(StaleArtefactError, match=told):
        pipeline.ensemble_table(load_project(copied), "CLIN", quiet=True)
    assert (copied.model("CLIN") / "test.csv").read_bytes() == before


def test_how_features_are_taken_from_images_is_part_of_a_fitted_model() -> None:
    radiomics = RadiomicsPlan(families=["statistics"], normalisation="none", discretisation="fixed_bin_number", bins=32,
                              bin_width=None, by_slice=True, spacing_mm=None)  # fmt: skip
    digests = [plan_inputs(TablePlan(modality="US", radiomics=r, columns={}, model=LINEAR, fused=True))
               for r in (radiomics, radiomics.model_copy(update={"bins": 16}))]  # fmt: skip
    assert {key for key in digests[0] if digests[0][key] != digests[1][key]} == {"features"}


def test_planning_again_keeps_the_tables(copied: DatasetPaths) -> None:
    before = copied.plan.read_bytes()
    plan_dataset(copied, plan_options(copied.roots.raw.parent))
    assert copied.plan.read_bytes() == before
