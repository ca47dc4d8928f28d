"""Splits: no patient on two sides, whatever the cohort, at making and at reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from her2net.errors import LeakageError, PlanError
from her2net.plan.parting import read_own_folds
from her2net.plan.schema import SplitsPlan
from her2net.raw.dataset import Case, RawDataset
from her2net.raw.spec import DatasetSpec, ModalitySpec
from her2net.splits import (
    Splits,
    cohort_digest,
    count_site_folds,
    draw_holdout,
    load_splits,
    make_partition,
)


def make_case(i: int, patient: str, label: int | None, site: str | None = None, part: str = "train") -> Case:
    return Case(case_id=f"c{i:03d}", patient_id=patient, part=part, label=label, site=site, covariates={},
                images={"US": (Path(f"c{i}.png"),)}, masks={})  # fmt: skip


def make_cohort(n: int = 40, seed: int = 0) -> list[Case]:
    rng = np.random.default_rng(seed)
    labels = {f"p{k}": k % 2 for k in range(n)}
    owners = [f"p{k}" for k in range(n)] + [f"p{k}" for k in rng.integers(0, n, n // 4)]
    return [make_case(i, p, labels[p], "ab"[int(p[1:]) % 3 == 0]) for i, p in enumerate(owners)]


def make_dataset(cases: list[Case]) -> RawDataset:
    spec = DatasetSpec(name="x", labels={"negative": 0, "positive": 1},
                       modalities={"US": ModalitySpec(channels={"0": "B-mode"}, file_ending=".png")})  # fmt: skip
    return RawDataset(Path("Dataset001_X"), spec, tuple(cases))


def save_splits(path: Path, cases: list[Case], folds: list[list[str]], **changes: object) -> None:
    values = {
        "dataset": "Dataset001_X", "cohort_digest": cohort_digest(cases), "holdout": None, "linked_patients": [],
        "resembling_test_cases": [],
        "partitions": {"stratified-2": {"scheme": "stratified", "seed": 0, "folds": folds}},
    }  # fmt: skip
    path.write_text(json.dumps(values | changes))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(12, 60), st.integers(2, 5), st.floats(0.2, 0.8))
def test_any_cohort_is_parted_by_patient(seed: int, n: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    labels = {f"p{i}": int(rng.random() < share) for i in range(n)}
    owners = [*labels, *(f"p{i}" for i in rng.integers(0, n, n // 3))]
    cases = [make_case(i, p, labels[p], str(rng.integers(0, 3))) for i, p in enumerate(owners)]
    linked = [[f"p{a}", f"p{b}"] for a, b in rng.integers(0, n, (2, 2)) if a != b]
    assume(min(np.bincount(list(labels.values()), minlength=2)) >= 2 * k)
    plan = SplitsPlan(scheme="stratified", n_folds=k, seed=seed % 7)
    try:
        folds = make_partition(cases, plan, linked).folds
    except PlanError:
        assume(False)
    assert sorted(p for fold in folds for p in fold) == sorted(labels)
    where = {p: i for i, fold in enumerate(folds) for p in fold}
    assert all(where[a] == where[b] for a, b in linked)
    assert folds == make_partition(cases[::-1], plan, linked).folds


def test_folds_are_stratified_by_label() -> None:
    cases = make_cohort(100)
    folds = make_partition(cases, SplitsPlan(scheme="stratified", n_folds=4, seed=0), []).folds
    shares = [np.mean([int(p[1:]) % 2 for p in fold]) for fold in folds]
    assert max(abs(np.array(shares) - 0.5)) < 0.06


def test_patients_with_cases_of_several_classes_count_in_each() -> None:
    cases = [make_case(i, f"p{i // 2}", i % 2) for i in range(8)] + [make_case(8, "p4", 1)]
    folds = make_partition(cases, SplitsPlan(scheme="stratified", n_folds=4, seed=0), []).folds
    assert sorted(patient for fold in folds for patient in fold) == ["p0", "p1", "p2", "p3", "p4"]
    with pytest.raises(PlanError, match=r"found .4 in the smallest"):
        make_partition(cases, SplitsPlan(scheme="stratified", n_folds=5, seed=0), [])


def test_every_class_of_patients_with_several_is_stratified() -> None:
    cases = [make_case(i, f"p{i % 40}", int(i < 40 or i % 4 > 0)) for i in range(80)]  # 10 of 40 hold class 0, all hold class 1
    folds = make_partition(cases, SplitsPlan(scheme="stratified", n_folds=5, seed=0), []).folds
    negative = {case.patient_id for case in cases if case.label == 0}
    assert [(len(fold), len(negative & set(fold))) for fold in folds] == [(8, 2)] * 5


def test_every_site_is_held_out_once() -> None:
    cases = make_cohort(40)
    partition = make_partition(cases, SplitsPlan(scheme="leave-one-site-out", n_folds=2, seed=0), [])
    sites = [{case.site for case in cases if case.patient_id in fold} for fold in partition.folds]
    assert sorted(map(tuple, sites)) == [("a",), ("b",)]


def test_a_site_that_shares_its_patients_with_another_has_no_fold() -> None:
    cases = [make_case(i, f"p{i}", i % 2, "ab"[i // 4]) for i in range(8)]
    cases += [make_case(8, "p0", 0, "c"), make_case(9, "p9", 1, "c")]
    assert count_site_folds(cases, []) == 3
    assert count_site_folds(cases, [["p1", "p9"]]) == 2
    with pytest.raises(PlanError, match=r"found 3, expected 2\. Write 2 there"):
        make_partition(cases, SplitsPlan(scheme="leave-one-site-out", n_folds=3, seed=0), [["p1", "p9"]])


def test_a_patient_without_a_site_cannot_be_left_out_with_it() -> None:
    cases = make_cohort()
    cases = [make_case(i, c.patient_id, c.label, c.site if c.patient_id != "p3" else "") for i, c in enumerate(cases)]
    with pytest.raises(PlanError, match=r"1 of 40 patients has no site \(p3\)"):
        make_partition(cases, SplitsPlan(scheme="leave-one-site-out", n_folds=2, seed=0), [])


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(PlanError, match="Write 3 or less"):
        make_partition(make_cohort(6), SplitsPlan(scheme="stratified", n_folds=4, seed=0), [])


def test_a_patient_in_two_folds_is_refused_when_read(tmp_path: Path) -> None:
    cases = make_cohort(8)[:8]
    save_splits(tmp_path / "splits.json", cases, [["p0", "p1", "p2", "p3"], ["p3", "p4", "p5", "p6", "p7"]])
    with pytest.raises(LeakageError, match="p3"):
        load_splits(tmp_path / "splits.json", make_dataset(cases))


def test_a_test_patient_in_a_fold_is_refused_when_read(tmp_path: Path) -> None:
    cases = make_cohort(8)[:8]
    save_splits(tmp_path / "splits.json", cases, [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7", "x"]])
    with pytest.raises(LeakageError, match="test set"):
        load_splits(tmp_path / "splits.json", make_dataset([*cases, make_case(99, "x", None, part="test")]))


def test_a_sealed_patient_in_a_fold_is_refused_when_read(tmp_path: Path) -> None:
    cases = make_cohort(8)[:8]
    save_splits(tmp_path / "splits.json", cases, [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"]],
                holdout={"fraction": 0.1, "seed": 0, "patients": ["p7"]})  # fmt: skip
    with pytest.raises(LeakageError, match="p7"):
        load_splits(tmp_path / "splits.json", make_dataset(cases))


def test_linked_patients_in_two_drawn_folds_are_refused_when_read(tmp_path: Path) -> None:
    cases = make_cohort(8)[:8]
    folds = [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"]]
    save_splits(tmp_path / "splits.json", cases, folds, linked_patients=[["p0", "p2"]])
    assert load_splits(tmp_path / "splits.json", make_dataset(cases)).linked_patients == [["p0", "p2"]]
    save_splits(tmp_path / "splits.json", cases, folds, linked_patients=[["p2", "p4"]])
    with pytest.raises(LeakageError, match=r"found 'p2, p4'\. Run her2net_plan"):
        load_splits(tmp_path / "splits.json", make_dataset(cases))
    own = {"custom-2": {"scheme": "custom", "seed": 0, "folds": folds}}
    save_splits(tmp_path / "splits.json", cases, folds, linked_patients=[["p2", "p4"]], partitions=own)
    assert load_splits(tmp_path / "splits.json", make_dataset(cases)).folds(SplitsPlan(scheme="custom", n_folds=2, seed=0)) == folds


def test_a_changed_label_makes_the_splits_stale(tmp_path: Path) -> None:
    cases = make_cohort(8)[:8]
    save_splits(tmp_path / "splits.json", cases, [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"]])
    assert isinstance(load_splits(tmp_path / "splits.json", make_dataset(cases)), Splits)
    changed = [make_case(0, "p0", 1, cases[0].site), *cases[1:]]
    with pytest.raises(PlanError, match="her2net_plan"):
        load_splits(tmp_path / "splits.json", make_dataset(changed))


def test_holdout_is_stratified_and_repeatable() -> None:
    dataset = make_dataset(make_cohort(80))
    held = draw_holdout(dataset, fraction=0.25, seed=0)
    assert len(held.patients) == 20
    assert 8 <= sum(int(p[1:]) % 2 for p in held.patients) <= 12
    assert held == draw_holdout(dataset, fraction=0.25, seed=0)


@pytest.mark.parametrize(("fraction", "n"), [(0.25, 10), (0.05, 2)])
def test_a_rare_site_does_not_keep_a_holdout_from_being_drawn(fraction: float, n: int) -> None:
    cases = [make_case(i, f"p{i}", i % 2, "abcd"[i % 4] if i else "rare") for i in range(40)]
    held = draw_holdout(make_dataset(cases), fraction=fraction, seed=0)
    assert len(held.patients) == n
    assert abs(sum(int(p[1:]) % 2 for p in held.patients) - n / 2) <= 1


def test_a_holdout_needs_no_two_patients_who_have_the_lower_class_alone() -> None:
    cases = [make_case(i, f"p{i // 2}", i % 2) for i in range(40)] + [make_case(40, "p99", 0)]
    held = draw_holdout(make_dataset(cases), fraction=0.25, seed=0)
    assert len(held.patients) == 6


def test_holdout_is_refused_where_a_test_set_exists() -> None:
    with pytest.raises(PlanError, match="1 test cases"):
        draw_holdout(make_dataset([*make_cohort(8), make_case(99, "x", None, part="test")]), fraction=0.25, seed=0)


def test_own_folds_may_name_cases_or_patients(tmp_path: Path) -> None:
    cases = make_cohort(6)[:6]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"train": ["p1", "p3", "p4", "p5"], "val": ["c000", "p2"]}, {"val": ["p1", "p3", "p4", "p5"]}]))
    assert read_own_folds(path, cases) == [["p0", "p2"], ["p1", "p3", "p4", "p5"]]
    path.write_text(json.dumps([{"train": ["p0"], "val": ["c000"]}, {"val": ["p1"]}]))
    with pytest.raises(LeakageError, match="p0"):
        read_own_folds(path, cases)


def test_resembling_patients_are_sealed_together() -> None:
    dataset = make_dataset(make_cohort(80))
    plain = set(draw_holdout(dataset, fraction=0.25, seed=0).patients)
    inside, outside = sorted(plain)[0], sorted({case.patient_id for case in dataset.train} - plain)[0]
    linked = draw_holdout(dataset, fraction=0.25, seed=0, linked_patients=[[inside, outside]])
    assert set(linked.patients) == plain | {outside}


def test_own_folds_with_a_patient_in_two_are_refused(tmp_path: Path) -> None:
    from her2net.splits import Partition, check_partition

    cases = make_cohort(6)[:6]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([["p0", "p1", "p2"], ["p2", "p3", "p4", "p5"]]))
    partition = Partition(scheme="custom", seed=0, folds=read_own_folds(path, cases))
    with pytest.raises(LeakageError, match="p2"):
        check_partition(partition, cases, where=str(path))
