"""her2net_status: what a change makes stale, exactly that, and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import TRAIN, plan_options

from her2net import pipeline, require, status
from her2net.cli import status as status_command
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.locks import hold
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.predict import Predictor
from her2net.predictions import read_predictions, write_predictions
from her2net.project import load_project
from her2net.states import StageState
from her2net.train import run as train_run
from her2net.train.fold import read_record
from her2net.train.timeline import PHASES

STAGES = {"US": ["cache US", *(f"train US fold {k}" for k in range(4)), "ensemble US"],
          "MRI": ["cache MRI", *(f"train MRI fold {k}" for k in range(4)), "ensemble MRI"]}  # fmt: skip
CLINICAL = [*(f"train CLIN fold {k}" for k in range(4)), "ensemble CLIN"]
LATER = ["fuse", "evaluate"]


def states(paths: DatasetPaths) -> dict[str, StageState]:
    return {state.stage: state for state in status.report_status(paths)}


def not_done(paths: DatasetPaths) -> set[str]:
    """Return the stages that are not done, but for the report, which whatever concerns any stage concerns."""
    found = {name for name, state in states(paths).items() if state.state != "done"}
    assert not found or "plan" in found or "report" in found
    return found - {"report"}


def first_image(paths: DatasetPaths, folder: str) -> Path:
    return sorted((paths.raw / folder).iterdir())[0]


def invert(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def edit_plan(paths: DatasetPaths, modality: str, section: str, **values: object) -> None:
    plan = json.loads(paths.plan.read_text())
    plan["modalities"][modality][section].update(values)
    paths.plan.write_text(json.dumps(plan))


def plan_again(paths: DatasetPaths) -> list[str]:
    return plan_dataset(paths, plan_options(paths.roots.raw.parent))[1]


def test_a_changed_image_makes_its_modality_and_what_rests_on_it_stale_and_nothing_else(copied: DatasetPaths) -> None:
    path = first_image(copied, "imagesTr/US")
    invert(path)
    with pytest.raises(StaleArtefactError, match=path.name):
        load_project(copied)
    found = states(copied)
    assert not_done(copied) == {"plan", *STAGES["US"], *LATER}
    assert found["plan"].why == f"1 files came, went or changed, the first imagesTr/US/{path.name}"
    assert found["cache US"].why == f"1 changed: {path.name.split('_0000')[0].split('.')[0]}"
    assert all("changed since: " in found[f"train US fold {k}"].why for k in range(4))
    assert found["ensemble US"].why == "rests on: train US fold 0, which is stale"
    assert found["evaluate"].why == "rests on: ensemble US, which is stale"
    remarks = plan_again(copied)
    assert any("cache US: 1 of" in remark for remark in remarks)
    assert any("cache MRI: fresh" in remark for remark in remarks)
    assert not_done(copied) == {*STAGES["US"][1:], *LATER}


def test_a_file_saved_again_costs_no_training(copied: DatasetPaths) -> None:
    path = first_image(copied, "imagesTr/US")
    os.utime(path, (1, 1))
    assert not_done(copied) == {"plan"}
    assert "the content that is trained on is the same" in states(copied)["plan"].why
    plan_again(copied)
    assert not_done(copied) == set()


def test_a_changed_mask_of_a_test_case_concerns_the_ensemble_of_its_modality(copied: DatasetPaths) -> None:
    path = first_image(copied, "masksTs/US")
    mask = np.asarray(Image.open(path)).copy()
    mask[mask.nonzero()[0][0], mask.nonzero()[1][0]] = 0
    Image.fromarray(mask).save(path)
    assert not_done(copied) == {"plan", "ensemble US", *LATER}
    plan_again(copied)
    assert states(copied)["ensemble US"].why == "changed since: test_images"
    assert not_done(copied) == {"ensemble US", *LATER}


def test_a_changed_mask_of_a_training_case_concerns_its_modality(copied: DatasetPaths) -> None:
    path = first_image(copied, "masksTr/US")
    mask = np.asarray(Image.open(path)).copy()
    mask[mask.nonzero()[0][0], mask.nonzero()[1][0]] = 0
    Image.fromarray(mask).save(path)
    assert not_done(copied) == {"plan", *STAGES["US"], *LATER}
    assert states(copied)["cache US"].why == f"1 changed: {path.stem}"


def test_a_changed_label_asks_for_a_new_plan(copied: DatasetPaths) -> None:
    test_ids = {case.case_id for case in load_project(copied).dataset.test}
    lines = (copied.raw / "cases.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [line.split(",") for line in lines[1:]]
    row = next(row for row in rows if row[header.index("case_id")] not in test_ids)
    row[header.index("label")] = {"0": "1", "1": "0", "negative": "positive", "positive": "negative"}[row[header.index("label")]]
    (copied.raw / "cases.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    state = status.report_status(copied)[0]
    assert (state.stage, state.state) == ("plan", "stale")
    assert "other cases, patients or labels" in state.why
    plan_again(copied)
    found = states(copied)
    assert found["cache US"].state == found["cache MRI"].state == "done", "no pixel has changed"
    assert not_done(copied) == {name for stages in STAGES.values() for name in stages[1:]} | {*CLINICAL, *LATER}
    assert "_cases" in found["train US fold 0"].why


def test_a_label_of_a_test_case_filled_in_later_concerns_the_evaluation_alone(copied: DatasetPaths) -> None:
    case_id = load_project(copied).dataset.test[0].case_id
    lines = (copied.raw / "cases.csv").read_text().splitlines()
    column = lines[0].split(",").index("label")
    rows = [line.split(",") for line in lines]
    row = next(row for row in rows if row[0] == case_id)
    row[column] = ""
    (copied.raw / "cases.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    openings = copied.test_openings.read_bytes()
    assert not_done(copied) == {"evaluate"}
    found = states(copied)
    assert (found["evaluate"].state, found["evaluate"].why) == ("stale", "changed since: test_label_cells")
    assert found["report"].state == "stale"
    assert copied.test_openings.read_bytes() == openings, "to ask is no opening"
    pipeline.evaluate(load_project(copied))
    assert not_done(copied) == set()
    (copied.raw / "cases.csv").write_text("\n".join(lines) + "\n")
    assert not_done(copied) == {"evaluate"}


def test_renamed_classes_ask_for_a_new_plan_and_for_no_training(copied: DatasetPaths) -> None:
    spec = json.loads((copied.raw / "dataset.json").read_text())
    spec["labels"] = {f"{name} finding": number for name, number in spec["labels"].items()}
    (copied.raw / "dataset.json").write_text(json.dumps(spec))
    table = (copied.raw / "cases.csv").read_text()
    for name in ("negative", "positive"):
        table = table.replace(name, f"{name} finding")
    (copied.raw / "cases.csv").write_text(table)
    assert not_done(copied) == {"plan"}
    plan_again(copied)
    assert Plan.load(copied.plan).class_names == list(spec["labels"])
    assert not_done(copied) == {"ensemble CLIN", *LATER}  # their tables and figures name the classes


def test_folders_renamed_in_all_three_roots_keep_what_was_trained(copied: DatasetPaths) -> None:
    paths = replace(copied, folder="Dataset042_Our Clinic")
    for of in ("raw", "preprocessed"):
        getattr(copied, of).rename(getattr(paths, of))
    copied.results.parent.rename(paths.results.parent)
    edit_plan(paths, "US", "inference", batch_size=5)
    assert not_done(paths) == {"plan"}
    plan_again(paths)
    plan = Plan.load(paths.plan)
    assert (plan.dataset, plan.modalities["US"].inference.batch_size) == (paths.folder, 5)
    assert not_done(paths) == set()


def test_edits_of_the_plan_concern_what_depends_on_them(copied: DatasetPaths) -> None:
    edit_plan(copied, "US", "training", loss_weights=[0.9, 1.1])
    assert not_done(copied) == {*STAGES["US"][1:], *LATER}
    assert states(copied)["train US fold 0"].why == "changed since: training_plan"
    assert states(copied)["train US fold 0"].command.endswith("--restart")
    edit_plan(copied, "MRI", "preprocessing", margin=0.5)
    found = states(copied)
    assert (found["cache MRI"].state, found["cache US"].state) == ("missing", "done")
    assert {found[f"train MRI fold {k}"].state for k in range(4)} == {"stale"}


def test_fuse_evaluate_and_report_refuse_what_is_not_done_before_them(copied: DatasetPaths) -> None:
    before = {path: path.read_bytes() for path in copied.results.rglob("*.*") if path.is_file()}
    edit_plan(copied, "US", "preprocessing", margin=0.9)
    edit_plan(copied, "MRI", "training", loss_weights=[1.0, 7.0])
    project = load_project(copied)
    for stage in (pipeline.fuse, pipeline.evaluate, pipeline.report):
        with pytest.raises(StaleArtefactError, match="earlier stages are not done") as refusal:
            stage(project)
        lines = str(refusal.value).splitlines()
        assert "train US fold 0: stale (changed since: held_out_cases, training_cases)" in lines[1]
        assert lines[-1] == ("  - train MRI fold 3: stale (changed since: training_plan). "
                             "Run her2net_train MRI 3 -d Dataset001_Small --restart first.")  # fmt: skip
        assert len(lines) == 9
    assert before == {path: path.read_bytes() for path in copied.results.rglob("*.*") if path.is_file()}


def test_a_stale_fusion_is_neither_evaluated_nor_reported(copied: DatasetPaths) -> None:
    path = copied.model("MRI") / "oof.csv"
    table = read_predictions(path)
    write_predictions(path, replace(table, probs=table.probs[:, ::-1].copy()))
    project, told = load_project(copied), r"fuse: stale \(changed since: MRI/oof\.csv\)\. Run her2net_fuse -d Dataset001_Small first\."
    with pytest.raises(StaleArtefactError, match=told):
        pipeline.evaluate(project)
    with pytest.raises(StaleArtefactError, match=told):
        pipeline.report(project)
    write_predictions(path, table)
    (copied.fold("MRI", 2) / "checkpoint_final.pt").unlink()
    require.require_evaluation(project)  # the tables are what they were
    (copied.fold("MRI", 2) / "oof.csv").unlink()
    with pytest.raises(StaleArtefactError, match=r"train MRI fold 2: interrupted \(files of .* vanished\)\. Run her2net_train MRI 2 "):
        pipeline.fuse(project)
    path.unlink()
    with pytest.raises(MissingArtefactError, match=r"oof\.csv: no such file\. Run her2net_ensemble first\."):
        pipeline.evaluate(project)


def test_a_fold_in_training_hinders_the_report_alone(copied: DatasetPaths) -> None:
    (copied.fold("US", 1) / "run.json").unlink()
    project, models = load_project(copied), ["US", "MRI", "CLIN", "fusion"]
    with pytest.raises(StaleArtefactError, match=r"train US fold 1: missing\. Run her2net_train US 1 "):
        require.require_models(project, models)
    with hold(copied.fold("US", 1), "x"):
        require.require_models(project, models)
        with pytest.raises(StaleArtefactError, match=r"train US fold 1: running \(by .*\)\. Wait until it has ended\."):
            pipeline.report(project)


def test_a_fold_trained_anew_from_the_same_to_something_else_makes_what_rests_on_it_stale(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another device, or from scratch at first and with pretrained weights when these could be had."""
    former, options = read_record(copied.fold("US", 1)), replace(TRAIN, restart=True)
    pipeline.train(load_project(copied), "US", 1, options)
    assert not_done(copied) == set(), "the same bits"
    original = train_run.solve_classifier

    def solve_otherwise(model: torch.nn.Module, *args: object, **kwargs: object) -> float:
        loss = original(model, *args, **kwargs)
        with torch.no_grad():
            next(parameter for parameter in model.parameters() if parameter.requires_grad).mul_(1.001)
        return loss

    monkeypatch.setattr(train_run, "solve_classifier", solve_otherwise)
    record = pipeline.train(load_project(copied), "US", 1, options)
    assert former is not None
    assert record.made_from == former.made_from
    assert not_done(copied) == {"ensemble US", *LATER}
    assert states(copied)["ensemble US"].why == "changed since: folds"
    with pytest.raises(StaleArtefactError, match=r"ensemble US: made from other folds .*Run her2net_ensemble US -d Dataset001_Small"):
        Predictor(copied, device="cpu")
    pipeline.ensemble(load_project(copied), "US", tta=False, device="cpu", quiet=True)
    with pytest.raises(StaleArtefactError, match=r"fuse: .*\(US/oof\.csv\)\. Run her2net_fuse -d Dataset001_Small"):
        Predictor(copied, device="cpu")
    pipeline.fuse(load_project(copied))
    Predictor(copied, device="cpu")


def test_a_changed_table_of_a_fold_makes_its_ensemble_stale(copied: DatasetPaths) -> None:
    for name in ("MRI", "CLIN"):
        path = copied.fold(name, 2) / "oof.csv"
        table = read_predictions(path)
        write_predictions(path, replace(table, probs=table.probs[:, ::-1].copy()))
    found = states(copied)
    assert found["ensemble MRI"].why == found["ensemble CLIN"].why == "changed since: folds"


def test_thresholds_of_a_table_model_fitted_anew_are_refused_without_the_raw_data(copied: DatasetPaths) -> None:
    shutil.rmtree(copied.raw)
    Predictor(copied, device="cpu")
    path = copied.fold("CLIN", 2) / "oof.csv"
    table = read_predictions(path)
    write_predictions(path, replace(table, probs=table.probs[:, ::-1].copy()))
    with pytest.raises(StaleArtefactError, match=r"ensemble CLIN: .*Run her2net_ensemble CLIN -d Dataset001_Small") as refused:
        Predictor(copied, device="cpu")
    assert "US" not in str(refused.value)
    assert "her2net_fuse" not in str(refused.value), "it does not fuse the covariates"


def test_a_fusion_fitted_on_test_tables_is_refused_once_these_change(copied: DatasetPaths) -> None:
    pipeline.fuse(load_project(copied), fit_on="test")
    Predictor(copied, device="cpu")
    path = copied.model("US") / "test.csv"
    table = read_predictions(path)
    write_predictions(path, replace(table, probs=table.probs[:, ::-1].copy()))
    told = r"fuse: .*\(US/test\.csv\)\. Run her2net_fuse -d Dataset001_Small --fit-on test first"
    with pytest.raises(StaleArtefactError, match=told):
        Predictor(copied, device="cpu")
    pipeline.fuse(load_project(copied))
    Predictor(copied, device="cpu")


@pytest.mark.parametrize(
    ("constant", "stale", "why"),
    [
        ("her2net.preprocess.cache.CACHE_VERSION", {*STAGES["US"], *STAGES["MRI"], *LATER}, "prepares images in another way"),
        ("her2net.train.fold.TRAINING_VERSION", {*STAGES["US"][1:], *STAGES["MRI"][1:], *LATER}, "training_version"),
        ("her2net.ensemble.ENSEMBLE_VERSION", {"ensemble US", "ensemble MRI", *LATER}, "version"),
        ("her2net.fuse.stage.FUSION_VERSION", set(LATER), "version"),
        ("her2net.evaluate.evaluation.EVALUATION_VERSION", {"evaluate"}, "version"),
        ("her2net.report.stage.REPORT_VERSION", set(), "version"),
    ],
)
def test_another_her2net_makes_stale_what_it_would_make_differently(
    done: DatasetPaths, monkeypatch: pytest.MonkeyPatch, constant: str, stale: set[str], why: str
) -> None:
    monkeypatch.setattr(constant, 99)
    assert not_done(done) == stale
    assert any(why in state.why for state in states(done).values())


def test_what_vanished_is_named(copied: DatasetPaths) -> None:
    (copied.model("US") / "oof.csv").unlink()
    (copied.evaluation / "metrics.csv").unlink()
    (copied.fold("MRI", 2) / "checkpoint_final.pt").unlink()
    found = states(copied)
    assert found["ensemble US"].why == "vanished: oof.csv"
    assert found["train MRI fold 2"].why == "files of the finished fold have vanished"
    assert found["evaluate"].state == "missing", "a table it needs is gone"


def test_a_plan_of_another_name_is_stale_too(copied: DatasetPaths) -> None:
    other = replace(copied, plan_name="other")
    plan_dataset(other, plan_options(copied.roots.raw.parent))
    invert(first_image(copied, "imagesTr/US"))
    plan_again(copied)
    assert "made for other images" in states(other)["plan"].why
    assert states(other)["plan"].command == "her2net_plan -d Dataset001_Small -p other"
    with pytest.raises(StaleArtefactError, match=r"other.json: made for .* Run her2net_plan -d Dataset001_Small -p other\."):
        load_project(other)


def test_who_is_at_work_is_shown(copied: DatasetPaths) -> None:
    done = copied  # other processes read the run that all tests share, and would wait for its locks
    with hold(done.evaluation, "x"), hold(done.fold("US", 1), "x"), hold(done.preprocessed, "x"):
        found = states(done)
    running = {name for name, state in found.items() if state.state == "running"}
    assert running == {"plan", "train US fold 1", "evaluate"}
    assert found["train US fold 1"].why.startswith("2 of 2 epochs, by ")
    assert f"(process {os.getpid()} on " in found["plan"].why
    assert found["ensemble US"].why == "rests on: train US fold 1, which is running"
    assert not_done(done) == set()


def test_timing_tells_every_phase_of_every_fold(
    done: DatasetPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timings = status.report_timing(done)
    assert {(t.modality, t.fold) for t in timings} == {(name, str(k)) for name in ("US", "MRI") for k in range(4)}
    for timing in timings:
        assert list(timing.seconds) == list(PHASES)
        assert timing.epochs == 2
        spent = {phase for phase, seconds in timing.seconds.items() if seconds > 0}
        assert spent == {"forward", "solve", "validation", "checkpoint"}, "what is solved draws nothing and steps nowhere"
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"her2net_{name}", str(getattr(done.roots, name)))
    assert status_command.main(["--timing"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fold", "epochs", "s/epoch", *PHASES]
    shares = [float(word.rstrip("%")) for word in lines[1].split()[4:]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_timing_before_training_names_the_command(copied: DatasetPaths) -> None:
    shutil.rmtree(copied.results)
    with pytest.raises(MissingArtefactError, match="her2net_train"):
        status.report_timing(copied)


def test_asking_for_a_state_imports_nothing_that_computes() -> None:
    heavy = ("torch", "scipy", "SimpleITK", "matplotlib", "sklearn")
    code = f"import sys, her2net.status; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_never_made_is_missing_also_where_the_data_have_errors(copied: DatasetPaths) -> None:
    (copied.raw / "cases.csv").write_text("nothing\n")
    assert status.report_status(copied)[0].state == "stale"
    copied.plan.unlink()
    found = status.report_status(copied)[0]
    assert (found.state, "cases.csv" in found.why) == ("missing", True)
