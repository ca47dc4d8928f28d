"""Raw folder → fused prediction, as a user meets it; then the ways in which it must not go wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_paths
from raw_factory import write_dataset, write_volume
from small_run import MACHINE, TRAIN, plan_options

from her2net import pipeline, status
from her2net.errors import MissingArtefactError, PlanError, StaleArtefactError
from her2net.evaluate.evaluation import Options
from her2net.evaluate.thresholds import Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.stage import FusionRecord
from her2net.inference import load_network
from her2net.new_folder import find_cases
from her2net.paths import DatasetPaths
from her2net.plan.rules import choose_loss_weights
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.predict import Predictor
from her2net.predictions import read_predictions
from her2net.project import load_project
from her2net.raw import synthetic
from her2net.raw.images import read_image, read_mask
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.data import select_fold
from her2net.train.fold import read_record, refuse_other_plan, weigh_classes


def test_run_leaves_exactly_these_files(done: DatasetPaths) -> None:
    plan = Plan.load(done.plan)
    fold_files = {"checkpoint_latest.pt", "checkpoint_final.pt", "history.csv", "progress.png", "oof.csv", "run.json"}
    expected = {"fusion/fusion.json", "fusion/oof.csv", "fusion/test.csv"}
    for name in ("US", "MRI"):
        expected |= {f"{name}/{file}" for file in ("ensemble.json", "oof.csv", "test.csv")}
        expected |= {f"{name}/fold_{k}/{f}" for k in range(plan.splits.n_folds) for f in fold_files}
    expected |= {f"CLIN/{file}" for file in ("ensemble.json", "explanation.json", "oof.csv", "test.csv")}
    expected |= {f"CLIN/fold_{k}/{f}" for k in range(plan.splits.n_folds) for f in ("model.json", "oof.csv")}
    found = {p.relative_to(done.results).as_posix() for p in done.results.rglob("*") if p.is_file()}
    assert {f for f in found if not f.startswith(("evaluation/", "report/", "explain/"))} == expected
    assert {"metrics.csv", "metrics.json", "comparisons.csv", "thresholds.json"} <= {
        p.name for p in done.evaluation.iterdir()
    }
    caches = {f"{n}_{plan.modalities[n].preprocessing_digest}.h5" for n in ("US", "MRI")}
    assert {p.name for p in (done.preprocessed / "cache").iterdir()} == caches
    assert {p.name for p in done.preprocessed.iterdir()} == {"scan.json", "fingerprint.json", "plans", "splits.json", "cache"}


def test_every_training_case_is_predicted_once_by_a_model_that_never_saw_its_patient(done: DatasetPaths) -> None:
    project = load_project(done)
    folds = project.splits.folds(project.plan.splits)
    for name in ("US", "MRI"):
        table = read_predictions(done.model(name) / "oof.csv")
        assert set(table.case_ids) == {case.case_id for case in project.training(name)}
        for patient, fold in zip(table.patient_ids, table.folds, strict=True):
            assert patient in folds[int(fold)]
    fused = read_predictions(done.model("fusion") / "oof.csv")
    assert set(fused.case_ids) == {case.case_id for case in project.dataset.train}


def test_test_labels_stay_sealed_until_the_evaluation(done: DatasetPaths) -> None:
    project = load_project(done)
    assert all(case.label is None for case in project.dataset.test)
    for name in ("US", "MRI", "fusion"):
        assert (read_predictions(done.model(name) / "test.csv").labels == -1).all()
    openings = [json.loads(line) for line in done.test_openings.read_text().splitlines()]
    assert [opening["purpose"] for opening in openings] == ["evaluate", "report"]


def test_changing_a_test_label_changes_nothing_before_the_evaluation(copied: DatasetPaths) -> None:
    """The canary for rule 3: retrain nothing, refuse nothing, predict the same."""
    predictions = lambda: {p: p.read_bytes() for p in copied.results.rglob("*.csv") if not {"evaluation", "report"} & set(p.parts)}
    before = predictions()
    table = (copied.raw / "cases.csv").read_text().splitlines()
    test_ids = {case.case_id for case in load_project(copied).dataset.test}
    header = table[0].split(",")
    rows = [line.split(",") for line in table[1:]]
    column = header.index("label")
    for row in rows:
        if row[header.index("case_id")] in test_ids:
            row[column] = {"0": "1", "1": "0", "negative": "positive", "positive": "negative"}[row[column]]
    (copied.raw / "cases.csv").write_text("\n".join([table[0], *(",".join(row) for row in rows)]) + "\n")
    said: list[str] = []
    pipeline.run(copied, plan_options(copied.roots.raw.parent), TRAIN, say=said.append)
    assert before == predictions()
    assert {line.split(":")[0] for line in said if "stale" in line} == {"evaluate", "report"}


def test_thresholds_come_from_oof_alone(done: DatasetPaths) -> None:
    from her2net.evaluate.thresholds import choose_threshold

    oof = read_predictions(done.model("US") / "oof.csv")
    chosen = Thresholds.load(done.evaluation / "thresholds.json").models["US"]
    assert chosen.value == choose_threshold(oof.labels, oof.probs[:, 1])


def test_new_images_are_decided_at_the_threshold_that_was_evaluated(copied: DatasetPaths) -> None:
    pipeline.evaluate(load_project(copied), Options(rule="sensitivity", parameter=0.95))
    evaluated = Thresholds.load(copied.evaluation / "thresholds.json").models
    assert Predictor(copied, device="cpu").model.thresholds.models == evaluated
    assert {threshold.rule for threshold in evaluated.values()} == {"sensitivity"}


def test_each_fold_weighs_classes_by_its_own_training_cases_unless_the_plan_was_edited(done: DatasetPaths) -> None:
    plan = Plan.load(done.plan)
    held_out_excluded = np.array([0] * 16 + [1] * 4)
    assert weigh_classes(plan, "US", held_out_excluded) == choose_loss_weights([16, 4]).value == [0.6667, 1.3333]
    edited = plan.model_copy(deep=True)
    edited.modalities["US"].training.loss_weights[:] = [0.5, 1.5]
    assert weigh_classes(edited, "US", held_out_excluded) == [0.5, 1.5]
    project, found = load_project(done), Fingerprint.load(done.fingerprint).modalities["MRI"]
    assert sum(found.cases_per_class.values()) == found.n_cases < len(project.dataset.train)
    assert plan.modalities["MRI"].training.loss_weights == choose_loss_weights(list(found.cases_per_class.values())).value
    for fold in range(plan.splits.n_folds):
        cases = select_fold(project.training("US"), "US", fold, plan, project.splits)
        counts = np.bincount([case.label for case in cases.training], minlength=2).tolist()
        assert read_record(done.fold("US", fold)).training.loss_weights == choose_loss_weights(counts).value


def test_a_second_run_repeats_nothing(copied: DatasetPaths) -> None:
    said: list[str] = []
    done = copied  # other processes read the run that all tests share, and would wait for its locks
    before = {p: p.stat().st_mtime_ns for p in done.results.rglob("*") if p.is_file()}
    pipeline.run(done, plan_options(done.roots.raw.parent), TRAIN, say=said.append)
    assert {p: p.stat().st_mtime_ns for p in done.results.rglob("*") if p.is_file()} == before
    assert all("fresh" in line or "kept" in line or "not planned" in line for line in said), said
    assert {state.state for state in status.report_status(done)} == {"done"}


def test_predicting_the_test_images_as_new_ones_gives_the_same_probabilities(
    done: DatasetPaths, tmp_path: Path
) -> None:
    predictor = Predictor(done, device="cpu")
    project = load_project(done)
    folder = tmp_path / "new"
    shutil.copytree(done.raw / "imagesTs", folder)
    shutil.copytree(done.raw / "masksTs", folder / "masks")
    for tables in (predictor.predict(folder, quiet=True), pipeline.predict_test(project, predictor, tta=False, quiet=True)):
        for name, table in tables.items():
            known = read_predictions(done.model(name) / "test.csv")
            assert table.case_ids == known.case_ids
            assert np.abs(table.probs - known.probs).max() < 1e-6


def test_fusion_has_a_model_for_cases_that_lack_a_modality(done: DatasetPaths) -> None:
    record = FusionRecord.load(done.model("fusion") / "fusion.json")
    assert [model.modalities for model in record.models] == [["US"], ["MRI"], ["US", "MRI"]]
    coefficients = [c for model in record.models for c in model.coefficients]
    weighed = [c for c in coefficients if c.ci_low is not None]
    assert all(c.ci_low < c.odds_ratio < c.ci_high for c in weighed)
    assert all(c.odds_ratio == 1 for c in coefficients if c not in weighed), "left out: it pointed the wrong way"
    assert weighed


def test_fusion_fitted_on_the_test_set_is_marked(copied: DatasetPaths) -> None:
    record = pipeline.fuse(load_project(copied), fit_on="test")
    assert record.remark.startswith("apparent performance")
    evaluation = pipeline.evaluate(load_project(copied))
    marked = {metric.cohort for metric in evaluation.metrics if metric.model == "fusion" and metric.remark}
    assert "test" in marked
    table, case_id = copied.raw / "cases.csv", load_project(copied).dataset.test[0].case_id
    rows = [line.split(",") for line in table.read_text().splitlines()]
    next(row for row in rows if row[0] == case_id)[rows[0].index("label")] = ""  # and it follows the labels it was fitted on
    table.write_text("\n".join(map(",".join, rows)) + "\n")
    found = status.fusion_state(load_project(copied))
    assert (found.state, found.why, found.command.endswith("--fit-on test")) == ("stale", "changed since: test_label_cells", True)
    assert pipeline.fuse(load_project(copied), **status.fusion_choices(load_project(copied))).fitted_on == "test"
    assert status.fusion_state(load_project(copied)).state == "done"


def test_the_remark_of_a_fusion_makes_the_evaluation_stale_where_its_tables_are_the_same(copied: DatasetPaths) -> None:
    text = json.loads(copied.plan.read_text())
    text["fusion"]["method"] = "mean"
    copied.plan.write_text(json.dumps(text))
    project = load_project(copied)
    pipeline.fuse(project)
    pipeline.evaluate(project)
    tables = [(copied.model("fusion") / name).read_bytes() for name in ("oof.csv", "test.csv")]
    for fit_on, state, why in (("oof", "done", ""), ("test", "stale", "changed since: remarks"), ("oof", "done", "")):
        pipeline.fuse(project, fit_on=fit_on)
        assert tables == [(copied.model("fusion") / name).read_bytes() for name in ("oof.csv", "test.csv")]
        found = status.evaluation_state(project)
        assert (found.state, found.why) == (state, why)


def test_an_edited_plan_is_kept_shown_and_makes_the_folds_stale(copied: DatasetPaths) -> None:
    text = json.loads(copied.plan.read_text())
    text["modalities"]["US"]["training"]["loss_weights"] = [0.9, 1.1]
    copied.plan.write_text(json.dumps(text))
    plan, remarks = plan_dataset(copied, plan_options(copied.roots.raw.parent))
    assert remarks[0] == "plan auto: kept"
    assert plan.edited == {"modalities.US.training.loss_weights": [0.9, 1.1]}
    states = {state.stage: state.state for state in status.report_status(copied)}
    assert states["cache US"] == "done"
    assert states["train US fold 0"] == "stale"
    with pytest.raises(StaleArtefactError, match="training_plan"):
        pipeline.train(load_project(copied), "US", 0, TRAIN)
    with pytest.raises(PlanError, match="you edited"):
        plan_dataset(copied, plan_options(copied.roots.raw.parent, preset="paper"))


@pytest.mark.parametrize(
    ("section", "edit", "changed"),
    [
        ("preprocessing", {"margin": 0.05, "margin_unit": "lesion"}, "preprocessing"),
        ("training", {"loss_weights": [0.9, 1.1]}, "training_plan"),
        ("inference", {"tta": True}, "training_plan"),
    ],
)
def test_networks_trained_by_another_plan_neither_predict_nor_are_ensembled(
    copied: DatasetPaths, section: str, edit: dict[str, object], changed: str
) -> None:
    before = (copied.model("US") / "test.csv").read_bytes()
    edit_plan(copied, section, edit)
    told = rf"US: folds \[0, 1, 2, 3\] were trained .*{changed}\)\. Run her2net_train US 0 1 2 3 --restart -d Dataset001_Small"
    with pytest.raises(StaleArtefactError, match=told):
        Predictor(copied, device="cpu")
    with pytest.raises(StaleArtefactError, match=r"fold 3: stale .*\. Run her2net_train US 3 -d Dataset001_Small --restart"):
        pipeline.ensemble(load_project(copied), "US", tta=False, device="cpu", quiet=True)
    assert (copied.model("US") / "test.csv").read_bytes() == before


def test_what_of_an_edit_does_not_concern_trained_networks_is_no_hindrance(copied: DatasetPaths) -> None:
    edit_plan(copied, "inference", {"batch_size": 3})
    section = Plan.load(copied.plan).modalities["US"]
    training = section.training.model_copy(update={"epochs": 300, "seed": 7})
    refuse_other_plan(copied, section.model_copy(update={"training": training}), "US", range(4))
    assert Predictor(copied, device="cpu").plan.edited
    assert pipeline.ensemble(load_project(copied), "US", tta=False, device="cpu", quiet=True).n_test


def edit_plan(paths: DatasetPaths, section: str, edit: dict[str, object]) -> None:
    text = json.loads(paths.plan.read_text())
    text["modalities"]["US"][section].update(edit)
    paths.plan.write_text(json.dumps(text))


def test_all_trains_on_every_case_and_holds_nobody_out(copied: DatasetPaths) -> None:
    project = load_project(copied)
    record = pipeline.train(project, "US", "all", replace(TRAIN, epochs=1))
    assert record.n_training_cases == len(project.training("US"))
    assert not (copied.fold("US", "all") / "oof.csv").exists()
    assert load_network(copied, project.plan.modalities["US"], "US", "all", "cpu")
    edit_plan(copied, "preprocessing", {"margin": 0.05})
    with pytest.raises(StaleArtefactError, match=r"changed since: preprocessing.*her2net_train US all --restart"):
        load_network(copied, load_project(copied).plan.modalities["US"], "US", "all", "cpu")


def test_ensembling_before_training_names_the_command(tmp_path: Path) -> None:
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=20, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    plan_dataset(paths, plan_options(tmp_path))
    with pytest.raises(MissingArtefactError, match="her2net_train US 0 1 2 3"):
        pipeline.ensemble(load_project(paths), "US", tta=False, device="cpu", quiet=True)


def test_tta_predicts_oof_and_test_alike(copied: DatasetPaths) -> None:
    before = read_predictions(copied.model("US") / "test.csv").probs
    record = pipeline.ensemble(load_project(copied), "US", tta=True, device="cpu", quiet=True)
    assert record.tta
    assert np.abs(read_predictions(copied.model("US") / "test.csv").probs - before).max() > 0


def test_a_sealed_holdout_is_a_test_set(tmp_path: Path) -> None:
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=40, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    plan_dataset(paths, plan_options(tmp_path, holdout=0.25))
    project = load_project(paths)
    sealed = set(project.splits.holdout.patients)
    assert {case.patient_id for case in project.dataset.test} == sealed
    assert all(case.label is None for case in project.dataset.test)
    assert not sealed & {p for fold in project.splits.folds(project.plan.splits) for p in fold}
    fingerprint = json.loads(paths.fingerprint.read_text())
    assert fingerprint["n_cases"] == len(project.dataset.train)
    plan_dataset(paths, plan_options(tmp_path))
    assert set(load_project(paths).splits.holdout.patients) == sealed
    with pytest.raises(PlanError, match="sealed"):
        plan_dataset(paths, plan_options(tmp_path, holdout=0.1))


def test_own_folds_are_taken_and_a_patient_in_two_is_refused(tmp_path: Path) -> None:
    from her2net.errors import LeakageError

    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=20, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    plan_dataset(paths, plan_options(tmp_path, preprocess=False))
    folds = load_project(paths).splits.partitions["stratified-4"].folds
    own = tmp_path / "own.json"
    own.write_text(json.dumps([folds[0] + folds[1], folds[2] + folds[3]]))
    plan, _ = plan_dataset(paths, plan_options(tmp_path, preprocess=False, splits=str(own)))
    assert (plan.splits.scheme, plan.splits.n_folds) == ("custom", 2)
    assert load_project(paths).splits.folds(plan.splits)[0] == sorted(folds[0] + folds[1])
    own.write_text(json.dumps([folds[0] + folds[1], folds[1] + folds[2] + folds[3]]))
    with pytest.raises(LeakageError):
        plan_dataset(paths, plan_options(tmp_path, preprocess=False, splits=str(own)))


def test_a_fold_in_which_nobody_has_the_modality_has_a_network_and_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with one fold per site, where a site has no ultrasound and no clinical data."""
    monkeypatch.setattr(synthetic, "MISSING", {"US": 0.0, "MRI": 0.0})
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=40, n_test=4, us_size=(96, 112), mri_size=(8, 24, 24))
    plan_dataset(paths, plan_options(tmp_path, preprocess=False))
    folds = load_project(paths).splits.partitions["stratified-4"].folds
    own, table = tmp_path / "own.json", paths.raw / "cases.csv"
    own.write_text(json.dumps(folds))
    lines = [line.split(",") for line in table.read_text().splitlines()]
    patient, columns = lines[0].index("patient_id"), [lines[0].index(name) for name in ("age", "menopausal", "grade")]
    for row in [row for row in lines if row[patient] in folds[1]]:
        for path in paths.raw.glob(f"*Tr/US/{row[0]}*"):
            path.unlink()
        for column in columns:
            row[column] = ""
    table.write_text("\n".join(map(",".join, lines)) + "\n")
    plan_dataset(paths, plan_options(tmp_path, splits=str(own)))
    project = load_project(paths)
    for fold in range(4):
        pipeline.train(project, "US", fold, TRAIN)
        pipeline.train_table(project, "CLIN", fold, restart=False, quiet=True)
    pipeline.ensemble_table(project, "CLIN", quiet=True)
    for tta in (False, True):
        assert pipeline.ensemble(project, "US", tta=tta, device="cpu", quiet=True).folds == [0, 1, 2, 3]
        for name in ("US", "CLIN"):
            pooled = read_predictions(paths.model(name) / "oof.csv")
            assert set(pooled.folds) == {"0", "2", "3"}
            assert set(pooled.case_ids) == {case.case_id for case in project.dataset.train if case.patient_id not in folds[1]}
    states = {state.stage: state.state for state in status.report_status(paths)}
    assert states["train US fold 1"] == states["train CLIN fold 1"] == states["ensemble US"] == states["ensemble CLIN"] == "done"


def test_the_paper_preset_is_planned_preprocessed_and_marked_optimistic(tmp_path: Path) -> None:
    paths = replace(make_paths(tmp_path), plan_name="paper")
    make_synthetic_dataset(paths.raw, n_train=20, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    plan, _ = plan_dataset(paths, plan_options(tmp_path, preset="paper"))
    us, mri = plan.modalities["US"], plan.modalities["MRI"]
    assert (us.training.network, us.preprocessing.input_vox, us.training.learning_rate) == ("convnextv2_tiny", [256, 256], 2e-5)
    assert (mri.training.network, mri.preprocessing.input_vox, mri.training.weight_decay) == ("resnet18_3d", [96] * 3, 1e-2)
    assert {m.preprocessing.margin for m in (us, mri)} == {50.0}
    assert {m.training.epochs for m in (us, mri)} == {300}
    assert plan.splits.n_folds == 4
    assert set(plan.optimistic) == {"US", "MRI"}
    assert all(paths.cache(name, m.preprocessing_digest).exists() for name, m in plan.modalities.items())
    chosen = next(d for d in plan.decisions if d.path == "modalities.MRI.training.batch_size")
    assert (chosen.value, "of 8 GB at most 6.0 are used" in chosen.reason) == (2, True)
    for other in ({"memory_gb": 64}, {"device": "cuda"}):  # a card parts a batch that it cannot hold
        MACHINE.model_copy(update=other).save(tmp_path / "other.json")
        larger, _ = plan_dataset(paths, plan_options(tmp_path, machine=tmp_path / "other.json", preprocess=False))
        assert [m.training.batch_size for m in larger.modalities.values()] == [16, 16]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_flat_images_in_volume_files_are_planned_and_used_as_flat(tmp_path: Path, dtype: type) -> None:
    """The plan of the planner is one that the other commands accept."""
    paths = make_paths(tmp_path, "Dataset001_Tiny")
    write_dataset(paths.raw, modalities={"US": {"channels": {"0": "B-mode"}, "file_ending": ".nii.gz"}})
    for part in ("Tr", "Ts"):
        shutil.rmtree(paths.raw / f"images{part}" / "MRI")
        shutil.rmtree(paths.raw / f"masks{part}" / "MRI")
        for kind in ("images", "masks"):
            for path in sorted((paths.raw / f"{kind}{part}" / "US").iterdir()):
                array = read_image([path]).array[0] if kind == "images" else read_mask(path).array
                write_volume(path.with_suffix(".nii.gz"), array.astype(dtype if kind == "images" else np.uint8), (0.1, 0.1))
                path.unlink()
    plan, _ = plan_dataset(paths, plan_options(tmp_path))
    assert plan.modalities["US"].ndim == 2
    project = load_project(paths)
    assert project.plan == plan
    cases, _ = find_cases(paths.raw, plan)
    assert len(cases["US"]) == 2


def test_a_third_modality_needs_no_code(tmp_path: Path) -> None:
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=20, n_test=4, us_size=(96, 112), mri_size=(8, 40, 40))
    description = json.loads((paths.raw / "dataset.json").read_text())
    description["modalities"]["MG"] = {"channels": {"0": "mammogram"}, "file_ending": ".png"}
    (paths.raw / "dataset.json").write_text(json.dumps(description))
    from PIL import Image

    for part in ("Tr", "Ts"):
        shutil.copytree(paths.raw / f"masks{part}" / "US", paths.raw / f"masks{part}" / "MG")
        (paths.raw / f"images{part}" / "MG").mkdir()
        for path in (paths.raw / f"images{part}" / "US").iterdir():  # mirrored, so that pixels and hashes differ
            Image.fromarray(np.asarray(Image.open(path))[::-1]).save(paths.raw / f"images{part}" / "MG" / path.name)
        for path in (paths.raw / f"masks{part}" / "MG").iterdir():
            Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    pipeline.run(paths, plan_options(tmp_path), replace(TRAIN, epochs=1), say=lambda text: None)
    assert set(read_predictions(paths.model("MG") / "oof.csv").case_ids)
    record = FusionRecord.load(paths.model("fusion") / "fusion.json")
    assert ["US", "MRI", "MG"] in [model.modalities for model in record.models]
