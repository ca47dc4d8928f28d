"""Which hold-out and folds a plan gets when the cohort changes after they were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_paths
from raw_factory import change_cell, read_rows, write_dataset, write_table
from small_run import MACHINE, plan_options

from her2net.errors import PlanError, RawDataError
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.project import load_planned, load_project
from her2net.splits import Splits

OWN = [["P000", "P001", "P006", "P007"], ["P002", "P003", "P004", "P005"]]


def make_cohort(root: Path, n_patients: int = 8) -> DatasetPaths:
    paths = make_paths(root, "Dataset001_Tiny")
    write_dataset(paths.raw, n_patients=n_patients, n_test=0)
    return paths


def plan(paths: DatasetPaths, **changes: object) -> tuple[Splits, list[str]]:
    _, remarks = plan_dataset(paths, plan_options(paths.roots.raw.parent, preprocess=False, **changes))
    return Splits.load(paths.splits), remarks


def bring_own_folds(paths: DatasetPaths) -> Splits:
    file = paths.roots.raw.parent / "own.json"
    file.write_text(json.dumps(OWN))
    return plan(paths, splits=str(file))[0]


def drop_patient(paths: DatasetPaths, patient: str) -> None:
    case = f"C{patient[1:]}"
    write_table(paths.raw / "cases.csv", [row for row in read_rows(paths.raw) if patient not in row])
    for file in [*paths.raw.glob(f"*/*/{case}.*"), *paths.raw.glob(f"*/*/{case}_*")]:
        file.unlink()


def copy_image(paths: DatasetPaths, patient: str, other: str) -> None:
    folder = paths.raw / "imagesTr/US"
    shutil.copyfile(folder / f"C{patient[1:]}.png", folder / f"C{other[1:]}.png")


def drop_images(paths: DatasetPaths, modality: str, patients: list[str]) -> None:
    for patient in patients:
        case = f"C{patient[1:]}"
        for file in [*paths.raw.glob(f"*/{modality}/{case}.*"), *paths.raw.glob(f"*/{modality}/{case}_*")]:
            file.unlink()


def test_a_modality_without_a_class_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=12)
    positive = [row[2] for row in read_rows(paths.raw)[1:] if row[1] in ("1", "positive")]
    assert 4 <= len(positive) <= 8
    drop_images(paths, "MRI", positive)
    with pytest.raises(RawDataError, match=r"modality MRI: 0 training patient\(s\) of class positive have this modality, expected at"):
        plan(paths)
    assert not paths.plan.exists()


def test_a_class_of_a_modality_that_lies_in_one_fold_is_refused(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=8)
    positive = {row[2] for row in read_rows(paths.raw)[1:] if row[1] in ("1", "positive")}
    drop_images(paths, "MRI", [patient for patient in OWN[0] if patient in positive])
    with pytest.raises(PlanError, match="MRI fold 1: all cases of class positive that have it are held out together"):
        bring_own_folds(paths)


def test_a_recorded_card_must_know_every_speed_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine could measure")
    paths, file = make_cohort(tmp_path), tmp_path / "card.json"
    card = MACHINE.model_copy(update={"device": "cuda", "name": "a card", "samples_per_s": {}})
    card.save(file)
    with pytest.raises(PlanError, match=r"card\.json: samples_per_s: holds no speed of a network to be considered.*found 'none'"):
        plan(paths, machine=file, budget_h=1.0)
    with pytest.raises(PlanError, match="is of another device than --device"):
        plan(paths, machine=file, device="cpu")
    assert not paths.plan.exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("preset", "paper", r'preset: .*"paper", .* for "auto"\. Write "auto" again, and run her2net_plan --preset paper -d '),
        ("budget_h", None, r"budget_h: .*null, .* for 1\.0\. Write 1\.0 again, and run her2net_plan --budget HOURS -d "),
        ("name", "mine", r"name: not that of the file; found 'mine', expected 'auto'\. Write that, or rename the file\."),
    ],
)
def test_what_is_asked_for_with_an_option_is_not_edited(tmp_path: Path, key: str, value: object, says: str) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    assert not Plan.load(paths.plan).edited
    values = json.loads(paths.plan.read_text())
    paths.plan.write_text(json.dumps(values | {key: value}))
    for options in ({}, {"preset": "paper"}):
        with pytest.raises(PlanError, match=says):
            plan(paths, **options)
    with pytest.raises(PlanError, match=says):
        load_planned(paths)


@pytest.mark.parametrize(
    ("network", "key", "value", "says"),
    [
        ("scattering_2d", "drop_path", 0.1, "nothing is dropped where the classifier is solved"),
        ("resnet10t", "batch_size", 1, r"spread of a batch, which one case does not have\. Set it to 2 or more"),
    ],
)
def test_an_edit_that_could_not_be_trained_is_refused_with_the_plan(
    tmp_path: Path, network: str, key: str, value: float, says: str
) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    values = json.loads(paths.plan.read_text())
    values["modalities"]["US"]["training"] |= {"network": network, key: value}
    paths.plan.write_text(json.dumps(values))
    with pytest.raises(PlanError, match=rf"modalities\.US\.training\.{key}: .*{says}"):
        plan(paths)


def edit_us(paths: DatasetPaths, key: str, value: object) -> None:
    """Write a value into the plan's section of US."""
    values = json.loads(paths.plan.read_text())
    part = values["modalities"]["US"]
    part = part[key.split(".")[0]] if "." in key else part
    part[key.rpartition(".")[2]] = value
    paths.plan.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("preprocessing.input_vox", [63, 65], ".preprocessing: stored_vox [96, 96] must exceed input_vox [63, 65] by an even number"),
        ("training.loss_weights", [1.0], ".training.loss_weights needs one weight per class, 2; found [1.0]"),
        ("ndim", 3, ": preprocessing.input_vox [96, 96] is not 3-dimensional"),
        ("training.epochs", 0, ".training.epochs: input should be greater than or equal to 1; found '0'"),
    ],
)
def test_values_that_contradict_each_other_are_named_alone(tmp_path: Path, key: str, value: object, line: str) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    edit_us(paths, key, value)
    with pytest.raises(PlanError) as refusal:
        Plan.load(paths.plan)
    assert str(refusal.value).splitlines()[1:] == [f"  - modalities.US{line}"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.learning_rate", 2e5, r"learning_rate: input should be less than or equal to 1; found '200000\.0'"),
        ("preprocessing.margin", 1e6, r"preprocessing: margin is 1e\+06 lesion, expected at most 10"),
        ("channels", ["T2"], r"modalities\.US\.channels: not that of dataset\.json; found \['T2'\], expected \['B-mode'\]"),
        ("file_ending", ".jpg", r"modalities\.US\.file_ending: not that of dataset\.json; found '\.jpg', expected \.png"),
    ],
)
def test_values_out_of_all_reason_are_refused_when_the_plan_is_read(tmp_path: Path, key: str, value: object, says: str) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    edit_us(paths, key, value)
    with pytest.raises(PlanError, match=says):
        plan(paths)


def test_more_folds_than_the_smallest_class_has_patients_are_refused_with_the_number(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    values = json.loads(paths.plan.read_text())
    values["splits"]["n_folds"] = 50
    paths.plan.write_text(json.dumps(values))
    with pytest.raises(PlanError, match=r"splits\.n_folds of the plan: 50 folds .* '4 in the smallest'\. Write 4 or less there"):
        plan(paths)


IGNORED = [
    ("epochs", 5), ("batch_size", 4), ("learning_rate", 0.5), ("weight_decay", 0.1), ("warmup_epochs", 2.0), ("ema_decay", 0.9),
    ("label_smoothing", 0.1), ("gradient_clip", 2.0), ("precision", "fp16"), ("checkpoint", "best"), ("seed", 7),
    ("initialisation", "pretrained"), ("augmentation.mixup_alpha", 0.4), ("augmentation.noise_probability", 0.5),
    ("augmentation.flip_probability", 0.5), ("augmentation.engine", "batchgenerators"),
]  # fmt: skip


def test_edits_that_a_solved_network_would_not_heed_are_refused_all_at_once(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    values = json.loads(paths.plan.read_text())
    training = values["modalities"]["US"]["training"]
    assert training["network"] == "scattering_2d"
    for key, value in IGNORED:
        part = training["augmentation"] if "." in key else training
        assert part[key.rpartition(".")[2]] != value
        part[key.rpartition(".")[2]] = value
    paths.plan.write_text(json.dumps(values))
    for use in (plan, load_planned):
        with pytest.raises(PlanError) as refusal:
            use(paths)
        lines = [line for line in str(refusal.value).splitlines() if ", without effect: scattering_2d is solved in one go" in line]
        assert sorted(line.split(": ")[0] for line in lines) == sorted(f"  - modalities.US.training.{key}" for key, _ in IGNORED)
    training["network"] = "resnet10t"  # which is trained by steps
    paths.plan.write_text(json.dumps(values))
    assert "kept" in plan(paths)[1][0]


def test_edits_that_a_solved_network_heeds_are_kept(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    plan(paths)
    values = json.loads(paths.plan.read_text())
    training = values["modalities"]["US"]["training"]
    training["loss_weights"] = [0.5, 1.5]
    training["augmentation"] |= {"flip_axes": [True, True], "flip_probability": 0.0}
    paths.plan.write_text(json.dumps(values))
    assert "kept" in plan(paths)[1][0]
    assert len(load_planned(paths).plan.edited) == 3


def test_own_folds_outlive_a_corrected_label(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    change_cell(paths.raw, 2, "label", "1")
    splits, _ = plan(paths)
    assert splits.folds(Plan.load(paths.plan).splits) == OWN


def test_own_folds_that_fit_no_longer_are_refused_and_not_replaced(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    before = bring_own_folds(paths)
    drop_patient(paths, "P003")
    change_cell(paths.raw, 2, "patient_id", "P900")
    with pytest.raises(PlanError, match=r"(?s)in no fold; found 'P900'.*not in the training set; found 'P000'.*'P003'.*--splits FILE"):
        plan(paths)
    assert Splits.load(paths.splits) == before


def test_own_folds_are_not_said_to_meet_changed_cases_where_a_holdout_is_asked_for(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    with pytest.raises(PlanError, match="The training patients are not those that you brought these folds for"):
        plan(paths, holdout=0.25)


WITH_TRAIN = [{"val": OWN[0], "train": OWN[1]}, {"val": OWN[1], "train": OWN[0]}]


@pytest.mark.parametrize("written", [OWN, WITH_TRAIN, [[f"C{patient[1:]}" for patient in fold] for fold in OWN]])
def test_a_holdout_is_drawn_first_and_leaves_own_folds_of_everybody(tmp_path: Path, written: list) -> None:
    paths, file = make_cohort(tmp_path), tmp_path / "own.json"
    file.write_text(json.dumps(written))
    splits, remarks = plan(paths, splits=str(file), holdout=0.25)
    assert splits.holdout is not None
    sealed = splits.holdout.patients
    assert (len(sealed), splits.partitions["custom-2"].folds) == (2, [[p for p in fold if p not in sealed] for fold in OWN])
    assert "splits custom-2: your folds without the 2 sealed patients" in remarks
    assert plan(paths, splits=str(file))[0] == plan(paths)[0].model_copy(update={"made_from": splits.made_from}) == splits


def test_own_folds_may_not_name_a_case_of_images_ts(tmp_path: Path) -> None:
    paths, file = make_paths(tmp_path, "Dataset001_Tiny"), tmp_path / "own.json"
    write_dataset(paths.raw, n_patients=8, n_test=1)
    file.write_text(json.dumps([OWN[0], [*OWN[1], "P008"]]))
    with pytest.raises(PlanError, match=r"fold 1: unknown ids; found .*P008"):
        plan(paths, splits=str(file))


def test_own_folds_that_are_lost_are_asked_for_and_not_drawn(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    paths.splits.unlink()
    with pytest.raises(PlanError, match=r"your own folds, custom-2, are not there\. .*--splits FILE"):
        plan(paths)


def test_patients_who_come_to_look_alike_are_brought_into_one_fold(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    before = plan(paths)[0].partitions["stratified-4"].folds
    fold = {patient: k for k, held in enumerate(before) for patient in held}
    other = next(patient for patient in ("P002", "P004", "P006") if fold[patient] != fold["P000"])
    copy_image(paths, "P000", other)
    splits, remarks = plan(paths)
    assert [{"P000", other} & set(held) for held in splits.partitions["stratified-4"].folds].count({"P000", other}) == 1
    assert f"splits stratified-4: drawn anew; images of patients in different folds look alike: P000 with {other}" in remarks
    again, remarks = plan(paths)
    assert (again, [remark for remark in remarks if "splits" in remark]) == (splits, [])


def test_own_folds_are_not_drawn_anew_for_patients_who_look_alike(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    bring_own_folds(paths)
    copy_image(paths, "P000", "P002")
    splits, _ = plan(paths)
    assert splits.partitions["custom-2"].folds == OWN
    assert splits.linked_patients == [["P000", "P002"]]


def test_sealed_patients_whom_a_training_patient_comes_to_resemble_are_named(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=12)
    sealed = plan(paths, holdout=0.25)[0].holdout.patients
    free = next(f"P{i:03d}" for i in range(12) if f"P{i:03d}" not in sealed and i % 2 == int(sealed[0][1:]) % 2)
    copy_image(paths, sealed[0], free)
    splits, _ = plan(paths)
    assert splits.holdout.patients == sealed
    assert splits.resembling_test_cases == [f"C{sealed[0][1:]}"]


@pytest.mark.parametrize("declared", [True, False])
def test_leaving_out_the_only_site_is_refused_in_words(tmp_path: Path, declared: bool) -> None:
    paths = make_paths(tmp_path, "Dataset001_Tiny")
    write_dataset(paths.raw, n_patients=8, n_test=0, site="site" if declared else None)
    for row in range(2, 10):
        change_cell(paths.raw, row, "site", "north")
    with pytest.raises(PlanError, match="at least two sites.*found " + ("'north'" if declared else "'none'")):
        plan(paths, splits="leave-one-site-out")


def test_a_patient_of_two_sites_leaves_no_fold_empty(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path)
    change_cell(paths.raw, 9, "patient_id", "P000")
    change_cell(paths.raw, 9, "site", "west")
    splits, _ = plan(paths, splits="leave-one-site-out")
    made = Plan.load(paths.plan)
    assert (made.splits.n_folds, len(splits.folds(made.splits))) == (2, 2)
    assert "2 sites; 3 are named" in next(d.reason for d in made.decisions if d.path == "splits.n_folds")
    assert load_project(paths).plan == made


def test_a_sealed_patient_who_withdraws_leaves_the_seal(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=12)
    sealed = plan(paths, holdout=0.25)[0].holdout.patients
    drop_patient(paths, sealed[0])
    splits, remarks = plan(paths, holdout=0.25)
    assert splits.holdout.patients == sealed[1:]
    assert f"hold-out: {sealed[0]} left the cohort and the seal; {len(sealed) - 1} patients remain sealed" in remarks
    assert {case.patient_id for case in load_project(paths).dataset.test} == set(sealed[1:])


def test_a_sealed_patient_who_is_renamed_does_not_come_into_training(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=12)
    sealed = plan(paths, holdout=0.25)[0].holdout.patients
    change_cell(paths.raw, int(sealed[0][1:]) + 2, "patient_id", "P900")
    with pytest.raises(PlanError, match=rf"\({sealed[0]}\); found 'images of before under new patients, P900'.*write their new names"):
        plan(paths)
    paths.splits.write_text(paths.splits.read_text().replace(f'"{sealed[0]}"', '"P900"'))
    assert "P900" in plan(paths)[0].holdout.patients


def test_a_hold_out_of_which_nobody_is_left_is_refused_with_the_way_out(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n_patients=12)
    splits = plan(paths, holdout=0.25)[0]
    for patient in splits.holdout.patients:
        drop_patient(paths, patient)
    with pytest.raises(PlanError, match="write null for holdout if nobody remains"):
        plan(paths)
    splits.model_copy(update={"holdout": None}).save(paths.splits)
    assert plan(paths)[0].holdout is None
