"""What the report says of its figures is true of them: no more is claimed than they show, and none is left unexplained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_page import Page
from test_report import read_all_labels

from her2net import status
from her2net.evaluate import cohort_metrics
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.record import RESEMBLING
from her2net.explain.record import MeanFigure
from her2net.paths import DatasetPaths
from her2net.predictions import make_predictions
from her2net.project import load_project
from her2net.report import cautions, words
from her2net.report.cohort import count_groups
from her2net.report.gallery import judge
from her2net.report.material import Material, collect
from her2net.report.pictures import _table_pictures
from her2net.report.render import make_environment
from her2net.report.results import threshold_note
from her2net.report.settings import settings_table
from her2net.report.summary import _without
from her2net.report.tabular import MAX_WEIGHTS, _importance_table, _weights_table, sentences
from her2net.report.use import impact_table
from her2net.tabular.added import AddedValue
from her2net.tabular.record import Importance, TableExplanation, TermWeight


@pytest.fixture(scope="module")
def material(small_run: DatasetPaths) -> Material:
    project = load_project(small_run)
    known, test = read_all_labels(small_run), {case.case_id for case in project.dataset.test}
    labels = {case_id: label for case_id, label in known.items() if case_id in test}
    return collect(project, status.model_names(project), test_labels=lambda: labels, paper=False)


def warn(material: Material) -> dict[str, str]:
    """Return caution -> how serious it is."""
    return {caution.text: caution.level for caution in cautions.find_cautions(material, count_groups(material))}


def weigh(material: Material, weights: list[list[float]]) -> Material:
    """Give the fusion of US and MRI other weights."""
    assert material.fusion is not None
    both = next(m for m in material.fusion.models if m.modalities == ["US", "MRI"]).model_copy(update={"weights": weights})
    return replace(material, fusion=material.fusion.model_copy(update={"models": [both]}))


def added_value(**changes: object) -> AddedValue:
    values = {"base": ["CLIN"], "added": ["US", "MRI"], "cohort": "test", "n": 40, "n_positive": 20, "auc_base": 0.6,
              "auc_both": 0.8, "difference": 0.2, "ci_low": 0.1, "ci_high": 0.3, "p_value": 1e-5,
              "p_adjusted": 1e-5, "test": "", "reason": ""}  # fmt: skip
    return AddedValue.model_validate(values | changes)


def test_an_outline_that_is_shown_to_a_network_is_warned_of_and_listed_with_its_channels(material: Material) -> None:
    us = material.plan.modalities["US"]
    us = us.model_copy(update={"preprocessing": us.preprocessing.model_copy(update={"derived_channels": ["mask"]})})
    plan = material.plan.model_copy(update={"modalities": material.plan.modalities | {"US": us}})
    shown = replace(material, project=replace(material.project, plan=plan))
    (text,) = [caution for caution in warn(shown) if "outline" in caution]
    assert text.startswith("US is shown the outline as a channel (mask). Where outlines were drawn by someone who knew the class")
    assert warn(shown)[text] == "serious"
    assert not any("outline" in caution for caution in warn(material))
    rows = {row[0].text: row[1].text for row in settings_table(shown).rows}
    assert rows["Channels"] == "B-mode, mask"


def test_a_modality_without_weight_in_the_fusion_is_named(material: Material) -> None:
    rows = [added_value()]
    mute, both = (replace(weigh(material, [[1.0, mri]]), added=rows) for mri in (0.0, 0.5))
    text = "MRI has no weight in the fusion that was fitted on all cases and predicts new ones: what it says is what US says."
    assert warn(mute)[text] == "serious"
    assert not any("no weight" in caution for caution in warn(both))
    assert sentences(mute) == [f"{sentences(both)[0]} In the fusion, MRI has no weight."]
    three = weigh(material, [[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])  # two logits of US, then two of MRI
    assert (three.weighed, three.silent) == (["MRI"], ["US"])
    nothing = next(caution for caution in warn(weigh(material, [[0.0, 0.0]])) if "no weight" in caution)
    assert nothing.startswith("US and MRI have no weight")
    assert nothing.endswith(": nor has anything else.")


def test_an_auc_that_is_not_that_within_folds_is_a_caution(material: Material) -> None:
    evaluation, (model, _) = material.evaluation, material.headline
    values = {"auc": 0.88, "auc_within_folds": 0.99}
    metrics = [m.model_copy(update={"value": values.get(m.metric, m.value)}) for m in evaluation.metrics]

    def levels_at(p: float) -> dict[str, str]:
        changes = {"metrics": metrics, "certainty": [c.model_copy(update={"folds_p": p}) for c in evaluation.certainty]}
        found = warn(replace(material, evaluation=evaluation.model_copy(update=changes)))
        return {text.split(",")[0]: level for text, level in found.items() if "0.990 between cases of the same fold" in text}

    levels = levels_at(0.002)
    assert set(levels) == set(material.models)
    assert levels_at(0.02) == {}
    assert {name for name, level in levels.items() if level == "serious"} == {model}


def test_without_test_cases_nothing_is_said_of_them(material: Material) -> None:
    metrics = [m for m in material.evaluation.metrics if m.cohort.startswith("oof")]
    tables = {key: table for key, table in material.tables.items() if key[1] == "oof"}
    alone = replace(material, tables=tables, evaluation=material.evaluation.model_copy(update={"metrics": metrics}))
    chosen = [next(text for text in warn(of) if text.startswith("Thresholds were chosen")) for of in (material, alone)]
    assert [("test cases" in text, "favourable there" in text) for text in chosen] == [(True, True), (False, True)]
    notes = [threshold_note(of) for of in (material, alone)]
    assert [("test cases" in text, "a little favourable" in text) for text in notes] == [(True, True), (False, True)]


def test_the_predictors_of_tripod_are_those_of_the_tables_too(small_run: DatasetPaths, material: Material) -> None:
    page = Page(small_run.report.read_text(encoding="utf-8"))
    answer = next(row[3] for row in page.table("tripod_ai") if row[0] == "9a")
    assert answer.endswith(f" CLIN: the covariates {words.listed(list(material.plan.tables['CLIN'].columns))}.")
    radiomics = SimpleNamespace(modality="US", radiomics=SimpleNamespace(families=["statistics", "glcm"]))
    plan = SimpleNamespace(tables={"RAD:US": radiomics})
    items = json.loads(resources.files("her2net.report").joinpath("tripod_ai.json").read_text(encoding="utf-8"))["items"]
    template = next(item["answer"] for item in items if item["item"] == "9a")
    text = make_environment(autoescape=False).from_string(template).render(plan=plan, modalities="US")
    assert text.endswith(" RAD:US: radiomic features of the lesions on US (families statistics and glcm).")


def test_the_largest_odds_ratios_are_shown_whatever_their_class(material: Material) -> None:
    unknown = dict.fromkeys(("ci_low", "ci_high", "odds_ratio_per_unit", "unit_ci_low", "unit_ci_high"))
    weights = [TermWeight(term=f"{name}{i}", class_name=name, weight=sign * size, odds_ratio=1, n_folds_used=4, mean=0, sd=1, **unknown)
               for name, sign, size in (("first", 1, 0.1), ("last", -1, 0.2)) for i in range(MAX_WEIGHTS - 1)]  # fmt: skip
    table = _weights_table("RAD:US", material.explained["CLIN"].model_copy(update={"weights": weights}))
    assert table is not None
    assert [row[1].text for row in table.rows] == ["first"] + ["last"] * (MAX_WEIGHTS - 1)
    assert f"The {MAX_WEIGHTS} largest of {len(weights)}." in table.notes


def test_a_p_value_has_one_sign_before_it(material: Material) -> None:
    small, larger = sentences(replace(material, added=[added_value(), added_value(p_value=0.04)]))
    assert ", p < 0.001, from 0.600" in small
    assert ", p = 0.040, from 0.600" in larger


def test_the_answer_without_resembling_cases_has_its_own_verdict(material: Material) -> None:
    splits = material.project.splits.model_copy(update={"resembling_test_cases": ["SYN0001"]})
    metrics = [m for m in material.evaluation.metrics if m.metric != "auc" or m.cohort != "test"]
    auc = next(m for m in material.evaluation.metrics if m.metric == "auc" and (m.model, m.cohort) == material.headline)

    def say(low: float) -> str:
        rows = [auc.model_copy(update={"cohort": cohort, "value": 0.67, "ci_low": limit, "ci_high": 0.8, "n": 29, "reason": ""})
                for cohort, limit in (("test", 0.53), (RESEMBLING, low))]  # fmt: skip
        changed = replace(material, evaluation=material.evaluation.model_copy(update={"metrics": metrics + rows}),
                          project=replace(material.project, splits=splits))  # fmt: skip
        return _without(changed, material.headline[0])

    start = "Without the 1 test case that nearly equals a training case: AUC 0.670 "
    assert say(0.51) == f"{start}(0.510 to 0.800), n = 29."
    assert say(0.49) == f"{start}(0.490 to 0.800), n = 29. Not shown to be better than guessing: the interval includes 0.5."


def test_no_sign_stands_before_what_rounds_to_0(material: Material) -> None:
    importance = [Importance(name="size", kind="feature", loss=-0.0002, low=-0.0041, high=0.0004)]
    table = _importance_table("CLIN", material.explained["CLIN"].model_copy(update={"importance": importance}))
    assert table.rows[0][2].text == "0.000 (-0.004 to 0.000)"
    (text,) = sentences(replace(material, added=[added_value(difference=-0.0001, ci_low=-0.2, ci_high=0.2)]))
    assert "the AUC: 0.000 (-0.200 to +0.200)" in text


def test_net_benefit_that_rounds_to_0_has_no_minus(material: Material) -> None:
    n = 5000
    names, positive = [f"c{i}" for i in range(n)], np.where(np.arange(n) == 0, 0.9, 0.001)  # one false alarm, and the positive missed
    table = make_predictions(names, names, np.column_stack([1 - positive, positive]), labels=[0] * (n - 1) + [1], folds=[""] * n)
    model, cohort = material.headline
    shown = impact_table(replace(material, tables=material.tables | {(model, cohort): table}))
    assert shown is not None
    assert not [cell.text for row in shown.rows for cell in row if re.search(r"-0\b", cell.text)]


def test_the_largest_loss_may_be_that_of_a_feature(material: Material, tmp_path: Path) -> None:
    losses = [("glcm", "family", 0.003), ("size", "feature", 0.009)]
    importance = [Importance(name=name, kind=kind, loss=loss, low=0.0, high=0.01) for name, kind, loss in losses]
    explained: TableExplanation = material.explained["CLIN"].model_copy(update={"importance": importance})
    found = _table_pictures(replace(material, explained={"CLIN": explained}), tmp_path)
    assert next(p for p in found if p.key == "importance_CLIN").alt.endswith("The largest loss is that of size: 0.009.")


def test_more_than_a_blob_is_claimed_where_the_interval_says_so() -> None:
    def say(low: float) -> str:
        figure = lambda value: MeanFigure(value=value, ci_low=value, ci_high=value, ci_method="", n=4)
        summary = {name: figure(value) for name, value in (("mask_share", 0.2), ("energy_centre", 0.53), ("deletion_auc", 0.3),
                                                           ("insertion_auc", 0.7), ("randomised_abs_rho", 0.1))}  # fmt: skip
        return judge(summary | {"energy_inside": MeanFigure(value=0.7, ci_low=low, ci_high=0.93, ci_method="", n=4)})[0]

    assert say(0.6).startswith("On the lesion: 0.70 of the map")
    assert say(0.47).startswith("On the lesion (0.70 of the map")
    assert "but not shown to be more than a mere blob in the middle of the crop (0.53)" in say(0.47)


def test_every_method_of_an_interval_is_told_in_words() -> None:
    rng = np.random.default_rng(0)
    methods = set()
    for n_classes in (2, 3):
        labels = np.arange(24) % n_classes
        for effect in (0.2, 9.0):  # the latter without an error
            weights = rng.dirichlet(np.ones(n_classes), 24) + effect * np.eye(n_classes)[labels]
            probs = weights / weights.sum(axis=1, keepdims=True)
            for owners in (np.arange(24), np.arange(24) // 4):
                names = [f"c{i:02d}" for i in range(24)]
                table = make_predictions(names, [f"p{i}" for i in owners], probs, labels=labels.tolist(), folds=["0"] * 24)
                found = []
                if n_classes == 2:
                    call = (labels, probs[:, 1], owners)
                    found += cohort_metrics.binary_metrics(*call, threshold=0.5, prevalence=0.2, pair=(0.3, 0.7)).values()
                    found += cohort_metrics.recalibrated_metrics(*call).values()
                    found += chain(*cohort_metrics.alternative_intervals(*call, threshold=0.5).values())
                    found.append(auc_interval(labels, probs[:, 1], method="delong"))
                else:
                    found += cohort_metrics.multiclass_metrics(table, ordinal=True).values()
                methods |= {estimate.ci_method for estimate in found if estimate.ci_method}
    assert len(methods) > 25
    told = {how: words.method(how).replace(words.CLUSTERED, "") for how in methods}
    assert not [how for how, text in told.items() if text == how.replace(words.CLUSTERED, "")]
    assert told["bootstrap percentile, patients, 2000, quadratic weights"] == (
        "percentile bootstrap (2000 resamples of patients), quadratic weights"
    )
    bare = {re.sub(r" \(\d+ resamples.*|, quadratic weights|, at a prevalence.*", "", text) for text in told.values()}
    assert bare == set(words.METHOD_WORDS.values()), "words for a method that there is not"
