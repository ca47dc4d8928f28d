"""The report: what is in it, that it is true, that nothing gets out of it or into it."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import re
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_page import Page
from small_run import TRAIN, plan_options

from her2net import pipeline, status
from her2net.cli.evaluate import main as evaluate_command
from her2net.cli.report import main as report_command
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.evaluate.record import Evaluation
from her2net.evaluate.tables import evaluate_tables
from her2net.evaluate.thresholds import Threshold
from her2net.paths import DatasetPaths
from her2net.plan.stage import plan_dataset
from her2net.predictions import Predictions
from her2net.project import load_project
from her2net.report import cautions, mistakes, summary, use, words
from her2net.report.cohort import count_groups, flow_table, table1s
from her2net.report.figures import draw_training
from her2net.report.material import Material, collect
from her2net.report.page import SECTIONS, make_page
from her2net.report.paper import load_paper, rates_of_counts
from her2net.report.pictures import Picture, _table_pictures, make_pictures
from her2net.report.render import keep_together, render_page
from her2net.report.results import comparison_matrix, methods_of, threshold_note
from her2net.report.stage import ReportRecord
from her2net.report.tabular import _choose_chances, clinical_scales, fusion_scales
from her2net.report.thumbnails import OUTLINE, SIDE_PX, draw_thumbnail
from her2net.tabular.record import TableExplanation, TermWeight
from her2net.tabular.stage import ensemble_table

EVIL = '<script>alert("x")</script>'
TABLES = {
    "flow", "plan", "fusion", "results", "confusion", "certainty", "subgroups", "all_subgroups", "mistakes", "openings",
    "software", "digests", "all_metrics", "comparisons", "decisions", "table1_training_test", "table1_classes",
    "comparison_matrix_oof", "comparison_matrix_test", "tripod_ai", "claim", "explanations",
    "discrimination", "calibration", "rule_in_out", "impact", "added_value", "weights_CLIN", "importance_CLIN",
}  # fmt: skip
FIGURES = {
    "flow", "training", "subgroups", "importance_CLIN", "nomogram_CLIN", "nomogram_fusion",
    *(f"{kind}_{cohort}" for cohort in ("oof", "test")
      for kind in ("roc", "precision_recall", "calibration", "decision_curve", "confusion")),
}  # fmt: skip


@pytest.fixture(scope="module")
def material(small_run: DatasetPaths) -> Material:
    """What the report of the small run is made from, read without leaving a record of it."""
    project = load_project(small_run)
    labels = {case_id: label for case_id, label in read_all_labels(small_run).items()
              if case_id in {case.case_id for case in project.dataset.test}}  # fmt: skip
    return collect(project, status.model_names(project), test_labels=lambda: labels, paper=False)


@pytest.fixture(scope="module")
def pictures(material: Material, tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Its figures."""
    return make_pictures(material, tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def page(small_run: DatasetPaths) -> Page:
    return Page(small_run.report.read_text(encoding="utf-8"))


@pytest.fixture
def copied(small_run: DatasetPaths, tmp_path: Path) -> DatasetPaths:
    """A copy of the finished run without its weights, which no report reads."""
    return copy_run(small_run, tmp_path / "copy", without="*.pt")


def read_all_labels(paths: DatasetPaths) -> dict[str, int]:
    """Read the labels of all cases from the raw table."""
    names = json.loads((paths.raw / "dataset.json").read_text())["labels"]
    with (paths.raw / "cases.csv").open() as file:
        return {row["case_id"]: names.get(row["label"], None) if row["label"] in names else int(row["label"])
                for row in csv.DictReader(file)}  # fmt: skip


def show(material: Material, pictures: list[Picture]) -> tuple[str, Page]:
    """Render material, with pictures that were drawn before."""
    html = render_page(make_page(material, {}, pictures).context)
    return html, Page(html)


def test_the_report_leaves_exactly_these_files(small_run: DatasetPaths) -> None:
    folder = small_run.report.parent
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {"report.html", "report.json"}
    expected |= {f"tables/{key}.{kind}" for key in TABLES for kind in ("csv", "html")}
    expected |= {f"figures/{key}.{kind}" for key in FIGURES for kind in ("svg", "pdf", "png")}
    assert found == expected
    assert small_run.report.stat().st_size < 2 << 20


def test_nothing_in_the_page_comes_from_elsewhere(small_run: DatasetPaths, page: Page) -> None:
    for element in page.elements:
        for name in ("src", "srcset", "data", "poster", "action", "background", "xlink:href"):
            assert element.attributes.get(name, "data:").startswith("data:"), element
        assert not [name for name in element.attributes if name.startswith("on")], element
        if "href" in element.attributes:
            assert element.tag == "a"
            assert element.attributes["href"].startswith("#")
    assert not page.all("link", "iframe", "object", "embed", "base", "form")
    assert len(page.all("script")) == len(page.all("style")) == 1
    html = small_run.report.read_text(encoding="utf-8")
    assert "://" not in re.sub(r"data:[\w/+-]+;base64,[\w+/=]+", "", html)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", html)
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy.attributes["content"]


def test_the_page_can_be_read_without_seeing_it(page: Page) -> None:
    assert page.faults == []
    assert page.all("html")[0].attributes["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer", "h1")] == [1, 1, 1, 1, 1]
    levels = [int(h.tag[1]) for h in page.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert {a.attributes["href"][1:] for a in page.all("a")} <= set(ids)
    for image in page.all("img"):
        assert len(image.attributes["alt"]) > 10
        assert int(image.attributes["width"]) > 0
        assert int(image.attributes["height"]) > 0
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in ids
    for cell in page.all("th"):
        assert cell.attributes["scope"] in ("row", "col")
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(caption.text for caption in page.all("caption"))
    for scroll in (e for e in page.elements if "scroll" in e.attributes.get("class", "").split()):
        assert scroll.attributes["tabindex"] == "0"
        assert scroll.attributes["aria-label"]


def test_every_section_is_there_in_order(page: Page) -> None:
    wanted = [key for key in SECTIONS if key != "paper"]
    assert [s.attributes["aria-labelledby"] for s in page.all("section")] == wanted
    assert [a.attributes["href"][1:] for a in page.all("a") if "nav" in a.parents] == wanted
    alts = " ".join(image.attributes["alt"] for image in page.all("img"))
    for kind in ("Flow diagram", "Training curves", "ROC curves", "Precision-recall", "Calibration curves", "Decision curves",
                 "Confusion matrices", "Forest plot"):  # fmt: skip
        assert kind in alts


def test_figures_are_those_of_the_evaluation(small_run: DatasetPaths, page: Page) -> None:
    evaluation = Evaluation.load(small_run.evaluation / "metrics.json")
    shown = page.table("results")
    assert shown[0][:4] == ["Model", "Cohort", "n (positive)", "AUC"]
    cohorts = {"test": "test", "out-of-fold": "oof", "test, by patient": "test-patients", "out-of-fold, by patient": "oof-patients"}
    evaluated = {(m.model, m.cohort) for m in evaluation.metrics}
    assert [row[:2] for row in shown[1:]] == [
        [m, label] for label, c in cohorts.items() for m in ("US", "MRI", "CLIN", "fusion") if (m, c) in evaluated
    ]
    assert {("fusion", "oof-patients"), ("CLIN", "oof"), ("CLIN", "test")} <= evaluated
    for row in shown[1:]:
        cohort = cohorts[row[1]]
        found = {m.metric: m for m in evaluation.metrics if (m.model, m.cohort) == (row[0], cohort)}
        assert row[2] == f"{found['auc'].n} ({found['auc'].n_positive})"
        for cell, name in zip(row[3:10], ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"), strict=True):
            assert cell == words.estimate(found[name]), (row, name)
    assert len(page.table("all_metrics")) == len(evaluation.metrics) + 1
    answer = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "answer").text
    auc = next(m for m in evaluation.metrics if (m.model, m.cohort, m.metric) == ("fusion", "test", "auc"))
    assert f"AUC {auc.value:.3f} 95 % confidence interval {auc.ci_low:.3f} to {auc.ci_high:.3f}" in answer
    assert "8 cases of" in answer
    assert "not a medical device" in answer


def test_tables_beside_the_page_say_the_same(small_run: DatasetPaths, page: Page) -> None:
    for key in ("results", "flow", "table1_training_test", "tripod_ai"):
        text = (small_run.report.parent / "tables" / f"{key}.csv").read_text(encoding="utf-8")
        rows = [[" ".join(cell.split()) for cell in row] for row in csv.reader(text.splitlines())]
        assert rows == page.table(key)
        pasted = Page((small_run.report.parent / "tables" / f"{key}.html").read_text(encoding="utf-8"))
        assert len(pasted.all("tr")) == len(rows)
        assert pasted.all("caption")[0].text == next(
            c.text for c, t in zip(page.all("caption"), page.all("table"), strict=True) if t.attributes["id"] == f"table-{key}"
        )


def test_confusion_and_mistakes_agree_with_the_predictions(material: Material) -> None:
    found = mistakes.find_mistakes(material)
    model, cohort = material.headline
    assert (model, cohort) == ("fusion", "test")
    known, cut = material.known(model, cohort), material.thresholds[model].value
    wrong = {c for c, p, y in zip(known.case_ids, known.probs[:, 1], known.labels, strict=True) if (p >= cut) != (y == 1)}
    assert {m.case_id for m in found} == wrong
    assert [m.certainty for m in found] == sorted((m.certainty for m in found), reverse=True)
    surest, least = mistakes.split_shown(found)
    assert not {m.case_id for m in surest} & {m.case_id for m in least}
    assert all(m.pictures for m in (*surest, *least))


@given(n=st.integers(0, 40))
def test_shown_mistakes_never_overlap_and_show_both_ends(n: int) -> None:
    found = [mistakes.Mistake(str(i), "a", "b", 0.5, 1 - i / 100, {}) for i in range(n)]
    surest, least = mistakes.split_shown(found)
    assert len(surest) + len(least) == min(n, 2 * mistakes.N_SHOWN)
    assert [m.case_id for m in surest] == [str(i) for i in range(len(surest))]
    assert [m.case_id for m in least] == [str(n - 1 - i) for i in range(len(least))]


@given(probs=st.lists(st.floats(0, 1), min_size=1, max_size=30), threshold=st.floats(0, 1))
def test_certainty_is_a_share_that_is_0_on_the_threshold(probs: list[float], threshold: float) -> None:
    p = np.array([*probs, threshold])
    names = tuple(map(str, range(len(p))))
    table = Predictions(names, names, ("",) * len(p), np.zeros(len(p), int), np.column_stack([1 - p, p]))
    decided, certainty = mistakes.certainties(table, threshold)
    assert (decided == (p >= threshold)).all()
    assert ((certainty >= 0) & (certainty <= 1)).all()
    assert certainty[-1] == 0


def test_thumbnails_outline_the_mask_of_the_original(material: Material) -> None:
    for name in ("US", "MRI"):
        case = next(c for c in material.project.dataset.test if name in c.masks)
        drawn = draw_thumbnail(case, name, case.case_id)
        assert max(drawn.width, drawn.height) == SIDE_PX
        assert case.case_id in drawn.alt
        assert "outlined" in drawn.alt
        pixels = np.asarray(Image.open(BytesIO(drawn.data)), dtype=int)
        assert (np.abs(pixels - OUTLINE).max(axis=-1) < 60).sum() > 50
        bare = draw_thumbnail(replace(case, masks={}), name, case.case_id)
        pixels = np.asarray(Image.open(BytesIO(bare.data)), dtype=int)
        assert (np.abs(pixels - OUTLINE).max(axis=-1) < 60).sum() == 0
        assert "no mask" in bare.alt


def test_hostile_text_stays_text(material: Material, tmp_path: Path) -> None:
    """A dataset, class, covariate, site, channel or case may be called anything."""
    project = material.project
    spec = project.dataset.spec.model_copy(update={
        "name": EVIL, "description": EVIL, "reference": EVIL, "covariates": {EVIL: "categorical"},
    })  # fmt: skip
    rename = {case.case_id: f"{EVIL}{i}" for i, case in enumerate(project.dataset.cases)}
    cases = tuple(
        replace(c, case_id=rename[c.case_id], site=EVIL, covariates={EVIL: f"{EVIL}{i % 2}"})
        for i, c in enumerate(project.dataset.cases)
    )
    names = [EVIL + "0", EVIL + "1"]
    plan = project.plan.model_copy(update={"class_names": names})
    tables = {key: replace(t, case_ids=tuple(rename[c] for c in t.case_ids)) for key, t in material.tables.items()}
    subgroups = [
        row.model_copy(update={"covariate": EVIL, "level": f"{EVIL}{i % 2}"})
        for i, row in enumerate(material.evaluation.subgroups)
    ]
    hostile = replace(
        material, tables=tables, evaluation=material.evaluation.model_copy(update={"subgroups": subgroups}),
        labels={rename[c]: y for c, y in material.labels.items()},
        project=replace(project, plan=plan, dataset=replace(project.dataset, spec=spec, cases=cases)),
    )  # fmt: skip
    html, page = show(hostile, make_pictures(hostile, tmp_path))
    assert page.faults == []
    assert len(page.all("script")) == 1
    assert "alert(" not in page.all("script")[0].text
    assert EVIL not in html
    assert page.all("title")[0].text.startswith(EVIL)
    for section in ("answer", "patients", "subgroups", "mistakes", "methods", "checklists"):
        text = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == section).text
        assert EVIL in text, section
    assert any(EVIL in image.attributes["alt"] for image in page.all("img"))


def test_hostile_cells_of_the_raw_table_stay_text(copied: DatasetPaths, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, from the files a user has, through the command."""
    spec = json.loads((copied.raw / "dataset.json").read_text())
    kind = spec["covariates"].pop("grade")
    spec["name"], spec["covariates"]["<b>grade"] = EVIL, kind
    (copied.raw / "dataset.json").write_text(json.dumps(spec))
    table = (copied.raw / "cases.csv").read_text()
    (copied.raw / "cases.csv").write_text(table.replace("grade", "<b>grade", 1))
    plan, _ = plan_dataset(copied, plan_options(copied.roots.raw.parent))
    project = load_project(copied)
    for fold in range(plan.splits.n_folds):
        pipeline.train_table(project, "CLIN", fold, restart=True, quiet=True)
    ensemble_table(project, "CLIN", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"her2net_{name}", str(getattr(copied.roots, name)))
        assert report_command(["--paper"]) == 2, "the covariates have changed since the evaluation"
        assert "her2net_evaluate" in capsys.readouterr().err
        assert evaluate_command(["--quiet"]) == 0
        assert report_command(["--paper"]) == 0
    assert f"report: {copied.report}" in capsys.readouterr().out
    page = Page(copied.report.read_text(encoding="utf-8"))
    assert page.faults == []
    assert page.all("b") == [b for b in page.all("b") if b.text in ("Important.",) or "to" in b.text]
    assert any(cell.startswith("<b>grade") for row in page.table("table1_classes") for cell in row[:1])
    assert [s.attributes["aria-labelledby"] for s in page.all("section")] == list(SECTIONS)


def test_the_report_is_fresh_until_something_changes(copied: DatasetPaths) -> None:
    project = load_project(copied)
    assert status.report_state(project).state == "done"
    pipeline.report(project, paper=True)
    assert status.report_state(project).state == "done"
    assert ReportRecord.load(copied.report.parent / "report.json").paper
    openings = copied.test_openings.read_text().splitlines()
    assert [json.loads(line)["purpose"] for line in openings] == ["evaluate", "report", "report"]
    page = Page(copied.report.read_text(encoding="utf-8"))
    assert len(page.table("openings")) == 1 + len(openings)
    (copied.report.parent / "tables" / "of_an_earlier_report.csv").touch()
    pipeline.evaluate(project)
    found = status.report_state(project)
    assert (found.state, found.why) == ("stale", "changed since: openings")
    assert found.command.endswith("--paper")
    said: list[str] = []
    pipeline.run(copied, plan_options(copied.roots.raw.parent), TRAIN, say=said.append)
    assert said[-1].startswith("report: stale")
    text = copied.report.read_text(encoding="utf-8")
    assert "opened 2 times before this report, not counting reports." in text
    assert 'id="paper"' in text
    assert not (copied.report.parent / "tables" / "of_an_earlier_report.csv").exists()


def test_other_test_labels_than_those_evaluated_are_refused(copied: DatasetPaths) -> None:
    case_id = load_project(copied).dataset.test[0].case_id
    label = read_all_labels(copied)[case_id]
    names = json.loads((copied.raw / "dataset.json").read_text())["labels"]
    lines = (copied.raw / "cases.csv").read_text().splitlines()
    column = lines[0].split(",").index("label")
    for i, line in enumerate(lines):
        cells = line.split(",")
        if cells[0] == case_id:
            cells[column] = next(name for name, number in names.items() if number != label)
            lines[i] = ",".join(cells)
    (copied.raw / "cases.csv").write_text("\n".join(lines) + "\n")
    before = copied.report.read_bytes()
    with pytest.raises(StaleArtefactError, match="her2net_evaluate"):
        pipeline.report(load_project(copied))
    with pytest.raises(StaleArtefactError, match="made with other test labels"):  # changed since that was asked
        collect(load_project(copied), ["US"], test_labels=lambda: {case_id: 1 - label}, paper=False)
    assert copied.report.read_bytes() == before


def test_a_report_needs_a_fresh_evaluation(copied: DatasetPaths) -> None:
    table = copied.model("US") / "oof.csv"
    table.write_text(table.read_text() + "\n")
    with pytest.raises(StaleArtefactError, match=r"stale \(changed since: US/oof\.csv\)\. Run her2net_evaluate"):
        pipeline.report(load_project(copied))
    (copied.evaluation / "metrics.json").unlink()
    with pytest.raises(MissingArtefactError, match="her2net_evaluate"):
        pipeline.report(load_project(copied))


def test_optimistic_and_apparent_figures_say_so_everywhere(material: Material, pictures: list[Picture]) -> None:
    remark = {"oof": "optimistic: epoch chosen on the reported fold", "test": "apparent performance: fitted on the test cases"}
    of = lambda row: remark.get(row.cohort, "") if row.model == "fusion" else ""
    found = material.evaluation
    marked = {name: [row.model_copy(update={"remark": of(row)}) for row in getattr(found, name)]
              for name in ("metrics", "subgroups", "certainty")}  # fmt: skip
    marked["comparisons"] = [row | {"remark": remark[row["cohort"]] if row["model_b"] == "fusion" else ""} for row in found.comparisons]
    changed = replace(material, evaluation=found.model_copy(update=marked), paper=True)
    _, page = show(changed, pictures)
    answer = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "answer").text
    assert "Important. fusion, training cases, out-of-fold: optimistic: epoch chosen on the reported fold." in answer
    assert "Important. fusion, test cases: apparent performance: fitted on the test cases." in answer
    for key in ("results", "confusion", "discrimination", "calibration", "rule_in_out", "certainty", "all_subgroups"):
        header, *rows = page.table(key)
        assert header[-1] == "Read with", key
        model = header.index("Model")
        rows = [row for row in rows if "by patient" not in row[model + 1]]
        assert {row[-1] for row in rows if row[model] == "fusion"} == set(remark.values()), key
        assert not any(row[-1] for row in rows if row[model] != "fusion"), key
    assert {row[-1] for row in page.table("comparisons")[1:] if "minus fusion" in row[1]} == set(remark.values())
    assert [remark["test"] in row[1] for row in page.table("paper")[1:]] == [False] * 5 + [True]
    pairs = [row[2] for row in page.table("paper_tests")[1:]]
    assert [remark["test"] in pair for pair in pairs] == ["fusion" in pair.split(";")[0] for pair in pairs]
    for cohort, text in remark.items():
        matrix = comparison_matrix(changed, cohort)
        assert matrix is not None
        assert matrix.notes[-1] == f"Read with: {text}."


def test_captions_of_figures_say_who_is_optimistic(material: Material, tmp_path: Path) -> None:
    remarks = {"US": "optimistic: epoch chosen on the reported fold", "fusion": "apparent performance: fitted on the test cases"}
    changed = replace(material, evaluation=material.evaluation.model_copy(update={"remarks": remarks}))
    captions = {picture.key: picture.caption for picture in make_pictures(changed, tmp_path)}
    for kind in ("roc", "calibration", "decision_curve", "precision_recall", "confusion"):
        assert captions[f"{kind}_oof"].endswith(f" Read with: {remarks['US']} (US)."), kind
        assert captions[f"{kind}_test"].endswith(f" Read with: {remarks['fusion']} (fusion)."), kind


def test_what_was_asked_of_a_threshold_is_said(material: Material) -> None:
    asked = {
        ("sensitivity", 0.95): "sensitivity of at least 0.95, then largest specificity, n = 8",
        ("specificity", 0.9): "specificity of at least 0.9, then largest sensitivity, n = 8",
        ("cost", 5.0): "smallest expected cost, a missed positive costing 5 times a false alarm, n = 8",
    }
    for (rule, parameter), text in asked.items():
        chosen = Threshold.model_validate({"value": 0.3, "rule": rule, "chosen_on": "oof", "n": 8, "parameter": parameter})
        changed = replace(material, thresholds=dict.fromkeys(material.thresholds, chosen))
        assert f"fusion 0.300 ({text})" in threshold_note(changed)


def test_a_given_threshold_is_not_said_to_be_chosen(material: Material, pictures: list[Picture]) -> None:
    favourable, given = "a little favourable", "Given beforehand and used unchanged in all cohorts."
    assert favourable in threshold_note(material)
    assert given not in threshold_note(material)
    bare = Threshold(value=0.3, rule="given", chosen_on="nothing", n=0)
    changed = replace(material, thresholds=dict.fromkeys(material.thresholds, bare))
    assert "fusion 0.300 (given, not fitted)" in threshold_note(changed)
    html, page = show(changed, pictures)
    assert favourable not in html
    assert html.count(given) >= 4, "Tables 2 and 3, the confusion matrices, the methods"
    methods = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "methods").text
    assert given in methods


def test_methods_follow_the_plan(material: Material, pictures: list[Picture]) -> None:
    project = material.project
    us = project.plan.modalities["US"]
    changed = us.model_copy(update={
        "training": us.training.model_copy(update={
            "network": "resnet10t", "checkpoint": "best", "batch_size": 13, "weight_decay": 0.0777,
        }),
        "preprocessing": us.preprocessing.model_copy(update={"margin": 17.5, "margin_unit": "px"}),
    })  # fmt: skip
    plan = project.plan.model_copy(update={"modalities": project.plan.modalities | {"US": changed}})

    def methods(of: Material) -> str:
        _, page = show(of, pictures)
        return next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "methods").text

    before, after = methods(material), methods(replace(material, project=replace(project, plan=plan)))
    for text in ("batches of 13", "weight decay 0.0777", "17.5 px on each side", "best epoch on the held-out fold"):
        assert text in after
        assert text not in before
    assert "US (B-mode): " in before
    assert before.count("a support-vector machine") == after.count("a support-vector machine") + 1  # solved, not stepped
    train, test = project.dataset.train, project.dataset.test
    assert f"We analysed {len(train)} training cases" in before
    assert f"{len(test)} test cases" in before
    assert not re.search(r"[a-z,;)]\(|\s[,.;]|[a-z]\.[A-Z]|,[a-z]", before), "spaces around marks"


def test_the_cohort_flow_adds_up(material: Material) -> None:
    groups = count_groups(material)
    cases = material.project.dataset
    assert [(g.name, g.n_cases) for g in groups] == [("Training", len(cases.train)), ("Test", len(cases.test))]
    for group, part in zip(groups, (cases.train, cases.test), strict=True):
        assert sum(group.per_class.values()) + group.unlabelled == group.n_cases
        for name, n in group.lacking.items():
            assert n == sum(name not in case.images for case in part)
        assert group.described == {"CLIN": sum(any(map(case.covariates.get, material.plan.tables["CLIN"].columns)) for case in part)}
    _, *counts, _ = next(row for row in flow_table(material, groups).rows if row[0].text == "Used for the model CLIN")
    assert [cell.text for cell in counts] == [str(group.described["CLIN"]) for group in groups]
    first = table1s(material)[0]
    assert first.columns[1:3] == ("Training", "Test")
    assert [cell.text for cell in first.rows[0][:3]] == ["Cases", str(len(cases.train)), str(len(cases.test))]
    assert {"Class: negative", "Class: positive", "age"} <= {row[0].text for row in first.rows}


def test_a_model_without_a_say_has_no_scale_in_the_nomogram(material: Material, tmp_path: Path) -> None:
    def weigh(first: float) -> Material:
        assert material.fusion is not None
        models = [
            m.model_copy(update={"weights": [[first, *[1.0] * (len(row) - 1)] for row in m.weights]}) for m in material.fusion.models
        ]
        return replace(material, fusion=material.fusion.model_copy(update={"models": models}))

    captions = [
        next(p for p in _table_pictures(weigh(first), tmp_path) if p.key == "nomogram_fusion").caption for first in (0.0, 1.0)
    ]
    assert captions[0] == f"{captions[1]} Without a scale, for it has no weight in the model: {material.fused[0]}."
    assert [scale.name for scale in fusion_scales(weigh(0.0))[0]] == material.fused[1:]


def test_the_nomogram_of_covariates_has_round_values_and_the_sum_of_the_model() -> None:
    unknown = dict.fromkeys(("ci_low", "ci_high", "odds_ratio_per_unit", "unit_ci_low", "unit_ci_high"))
    grade = TermWeight(term="grade", class_name="positive", weight=-0.5, odds_ratio=0.6, n_folds_used=4, mean=2.02, sd=0.83, **unknown)
    found = TableExplanation(table="CLIN", learners=["elastic_net"], inner_log_losses={}, n_features=1, n_terms=1, weights=[grade],
                             intercepts=[-0.4])  # fmt: skip
    (scale,), origin = clinical_scales(found)
    assert scale.labels == ["1", "2", "3"]
    for value, log_odds in zip((1, 2, 3), scale.log_odds, strict=True):
        assert origin + log_odds == pytest.approx(-0.4 - 0.5 * (value - 2.02) / 0.83)


@pytest.mark.parametrize(("least", "most", "shown"), [(0.31, 0.49, [0.35, 0.4, 0.45]), (0.04, 0.35, [0.05, 0.1, 0.2, 0.3])])
def test_the_scale_of_probabilities_is_round_and_never_bare(least: float, most: float, shown: list[float]) -> None:
    assert _choose_chances(np.log(least / (1 - least)), np.log(most / (1 - most))) == pytest.approx(shown)


def test_checklists_are_whole_and_mark_what_is_left(page: Page) -> None:
    claim, tripod = page.table("claim")[1:], page.table("tripod_ai")[1:]
    assert [row[0] for row in claim] == [str(i) for i in range(1, 45)]
    assert len(tripod) == 52
    assert list(dict.fromkeys(re.match(r"\d+", row[0])[0] for row in tripod)) == [str(i) for i in range(1, 28)]  # type: ignore[index]
    for row in (*claim, *tripod):
        assert row[3] or row[4].startswith("for the author"), row
    for item in ("17", "18a", "19"):  # ethics, funding, involvement: nothing that software could know
        assert next(row for row in tripod if row[0] == item)[3:] == ["", "for the author"]


def test_the_published_figures_are_those_of_the_paper() -> None:
    printed = {
        "US": (0.833, 0.895, 0.793, 0.739, 0.920, 0.810), "MRI": (0.791, 0.789, 0.793, 0.714, 0.852, 0.750),
        "fusion": (0.854, 0.632, 1.0, 1.0, 0.806, 0.775),
    }  # fmt: skip
    paper = load_paper()
    for model, wanted in printed.items():
        counts = paper["models"][model]["confusion"]
        assert sum(counts.values()) == paper["n"]
        assert counts["tp"] + counts["fn"] == paper["n_positive"]
        found = [estimate.value for estimate in rates_of_counts(**counts).values()]
        assert np.abs(np.array(found) - wanted).max() < 0.0012
    assert "10.17305/bb.2025.12475" in paper["source"]


def test_the_comparison_with_the_paper_puts_like_beside_like(material: Material, pictures: list[Picture]) -> None:
    _, page = show(replace(material, paper=True), pictures)
    rows = page.table("paper")
    assert [row[0] for row in rows[1:]] == ["DL-US", "US", "DL-MRI", "MRI", "DL-US&MRI", "fusion"]
    assert rows[1][2:4] == ["48 (19)", "0.842 (0.708 to 0.931)"]
    binomial = next(
        m for m in material.evaluation.alternatives
        if (m.model, m.cohort, m.metric, m.ci_method) == ("US", "test", "auc", "binomial exact")
    )  # fmt: skip
    assert rows[2][3] == words.estimate(binomial)
    assert [row[1] for row in page.table("paper_tests")[1:]] == ["0.2746", "0.0538", "0.6595"]


def make_three_classes(material: Material) -> Material:
    """The same cases in three classes, without a test set."""
    rng = np.random.default_rng(3)
    names = ["zero", "low", "positive"]
    tables = {}
    for model in material.models:
        table = material.tables[model, "oof"]
        labels = np.arange(len(table)) % 3
        probs = rng.dirichlet([1, 1, 1], len(table)) + 0.4 * np.eye(3)[labels]
        tables[model, "oof"] = replace(table, labels=labels, probs=probs / probs.sum(axis=1, keepdims=True))
    labels = {c: int(y) for t in tables.values() for c, y in zip(t.case_ids, t.labels, strict=True)}
    project = material.project
    plan = project.plan.model_copy(update={"class_names": names})
    train = tuple(replace(c, label=labels.get(c.case_id)) for c in project.dataset.train)
    return replace(
        material, evaluation=evaluate_tables(tables, {}, {}, names), thresholds={}, tables=tables, labels=labels, openings=[],
        project=replace(project, plan=plan, dataset=replace(project.dataset, cases=train)),
    )  # fmt: skip


def test_three_classes_and_no_test_set(material: Material, tmp_path: Path) -> None:
    three = make_three_classes(material)
    html, page = show(three, make_pictures(three, tmp_path))
    assert page.faults == []
    text = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "answer").text
    assert "Can a network tell “zero”, “low” and “positive” apart" in text
    assert "no labelled test cases" in text
    curves = {f"{kind}_oof" for kind in ("roc", "precision_recall", "calibration", "decision_curve")}
    assert {p.stem for p in tmp_path.iterdir()} == {"flow", "training", "confusion_oof", "importance_CLIN"} | curves
    roc = next(i.attributes["alt"] for i in page.all("img") if i.attributes["alt"].startswith("ROC"))
    assert "fusion: AUC, zero against the rest 0." in roc
    for false in ("Dots: the op", "without both classes", "for want of variance", "metrics.json", "tuned on these", "specificity (MOV"):
        assert false not in html
    assert page.table("all_metrics")[0][8] == "Positive"
    assert "Positive: the cases of the class that a figure is of; of other figures those not zero." in html
    assert page.table("calibration") == page.table("impact") == []
    assert page.table("confusion")[0] == ["Model", "Cohort", "Truly", "Called zero", "Called low", "Called positive", "All"]
    assert page.table("table1_training_test") == []


def test_one_modality_and_nothing_to_compare(material: Material, pictures: list[Picture]) -> None:
    tables = {key: table for key, table in material.tables.items() if key[0] == "US"}
    metrics = [m for m in material.evaluation.metrics if m.model == "US"]
    evaluation = material.evaluation.model_copy(update={"metrics": metrics, "comparisons": []})
    modalities = {"US": material.plan.modalities["US"]}
    decisions = [d for d in material.plan.decisions if not d.path.startswith("modalities.MRI")]
    plan = material.plan.model_copy(update={"modalities": modalities, "decisions": decisions})
    project = replace(material.project, plan=plan)
    alone = replace(material, tables=tables, evaluation=evaluation, fusion=None, project=project, paper=True)
    _, page = show(alone, pictures)
    text = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "answer").text
    assert "Can a network tell “positive” from “negative” on US?" in text
    assert "Beside it" not in text
    assert page.table("fusion") == page.table("comparisons") == []
    assert [row[1] for row in page.table("paper")[1:]] == [
        "Fan et al., test", "here, test", "Fan et al., test", "here: no model of this name in test cases",
        "Fan et al., test", "here: no model of this name in test cases",
    ]  # fmt: skip


def test_methods_name_what_the_folds_did(material: Material, pictures: list[Picture]) -> None:
    used = zip(material.runs["US"], ([0.8, 1.2], [0.9, 1.1]), strict=False)
    runs = tuple(r.model_copy(update={"training": r.training.model_copy(update={"loss_weights": w})}) for r, w in used)
    found = material.fingerprint.modalities
    bare = found["US"].model_copy(update={"n_without_mask": found["US"].n_cases})
    fingerprint = material.fingerprint.model_copy(update={"modalities": found | {"US": bare}})
    text, page = show(replace(material, runs=material.runs | {"US": runs}, fingerprint=fingerprint), pictures)
    assert "(class weights 0.8 to 0.9 and 1.1 to 1.2)" in text
    assert {row[0]: row[1] for row in page.table("plan")[1:]}["Window"] == "the whole image, for want of masks"
    assert "modelled by an elastic-net logistic regression; its penalty was chosen" in text
    assert "stratified by class and, where a site has enough patients of a class, by site" in text
    one_site = material.fingerprint.model_copy(update={"n_sites": 1})
    assert "stratified by class;" in show(replace(material, fingerprint=one_site), pictures)[0]
    assert "randomised trees" not in next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "methods").text


def test_methods_tell_how_a_pretrained_network_learned(material: Material, pictures: list[Picture]) -> None:
    us = material.plan.modalities["US"]
    for layer_decay, told in ((1.0, False), (0.9, True)):
        training = us.training.model_copy(update={"network": "convnextv2_atto", "layer_decay": layer_decay})
        modalities = material.plan.modalities | {"US": us.model_copy(update={"training": training})}
        plan = material.plan.model_copy(update={"modalities": modalities})
        text, _ = show(replace(material, project=replace(material.project, plan=plan)), pictures)
        assert "AdamW (peak learning rate" in text
        assert (", each block at 0.9 of the rate of the next, weight decay" in text) is told


def test_a_modality_that_no_test_case_has_is_not_said_to_be_tested(material: Material) -> None:
    tables = {key: table for key, table in material.tables.items() if key != ("MRI", "test")}
    metrics = [m for m in material.evaluation.metrics if (m.model, m.cohort) != ("MRI", "test")]
    of = replace(material, tables=tables, evaluation=material.evaluation.model_copy(update={"metrics": metrics}))
    assert summary.summarise(of).question.endswith("on US?")
    assert any("No labelled test case has MRI" in c.text for c in cautions.find_cautions(of, count_groups(of)))


def test_cautions_know_few_cases_bad_calibration_and_chance(material: Material) -> None:
    def texts(of: Material) -> str:
        return " ".join(c.text for c in cautions.find_cautions(of, count_groups(of)) if c.level == "serious")

    known = material.known(*material.headline)
    for owners, unit in ((known.case_ids, "cases"), (tuple(f"p{i // 2}" for i in range(len(known))), "patients")):
        smallest = min(len({p for p, label in zip(owners, known.labels, strict=True) if label == c}) for c in range(2))
        of_these = replace(material, tables=material.tables | {material.headline: replace(known, patient_ids=owners)})
        assert f"Few {unit}: the smaller class has {smallest} of {len(set(owners))}; at least 100" in texts(of_these)
    splits = material.project.splits
    own = splits.partitions[material.plan.splits.name].model_copy(update={"scheme": "custom"})
    across = [[own.folds[0][0], own.folds[1][0]]]
    splits = splits.model_copy(update={"linked_patients": across, "partitions": {material.plan.splits.name: own}})
    assert "stand in different folds of those that were" in texts(replace(material, project=replace(material.project, splits=splits)))
    bad = [m.model_copy(update={"value": 0.2, "ci_low": 0.1, "ci_high": 0.3}) if m.metric == "calibration_slope" else m
           for m in material.evaluation.metrics]  # fmt: skip
    chance = [c.model_copy(update={"permutation_p": 0.4}) for c in material.evaluation.certainty]
    evaluation = material.evaluation.model_copy(update={"metrics": bad, "certainty": chance})
    found = texts(replace(material, evaluation=evaluation))
    assert "do not read them as risks" in found
    assert "chance is not ruled out" in found


def test_calibration_ruling_and_other_areas_are_those_of_the_evaluation(material: Material, page: Page) -> None:
    for key, names in (("discrimination", use.DISCRIMINATION[:7]), ("rule_in_out", use.RULED)):
        rows = page.table(key)[1:]
        assert [row[:2] for row in rows] == [[m, c] for c in ("test", "out-of-fold") for m in ("US", "MRI", "CLIN", "fusion")]
        for row in rows:
            cohort = {"test": "test", "out-of-fold": "oof"}[row[1]]
            assert row[3:] == [words.estimate(material.metric(row[0], cohort, name), 2) for name in names]
    calibration = page.table("calibration")[1:]
    kind = material.evaluation.recalibration["US"].kind
    assert [row[:3] for row in calibration[:2]] == [["US", "test", "as predicted"], ["US", "test", f"recalibrated: {kind}"]]
    assert calibration[1][4] == words.estimate(material.metric("US", "test", "brier_recalibrated"), 2)
    assert {row[2] for row in calibration if row[1] == "out-of-fold"} == {"as predicted"}


def test_impact_counts_what_acting_would_do(material: Material, page: Page) -> None:
    known, cut = material.known("fusion", "test"), material.thresholds["fusion"].value
    row = next(row for row in page.table("impact")[1:] if "the model's threshold" in row[0])
    called = known.probs[:, 1] >= cut
    n, hits = len(known), int((called & (known.labels == 1)).sum())
    assert row[2].split()[0] == f"{1000 * called.mean():.0f}"
    assert row[3].split()[0] == f"{1000 * hits / n:.0f}"
    assert int(row[4]) == pytest.approx(1000 * ((known.labels == 1).sum() - hits) / n, abs=1)
    benefit = (hits - cut / (1 - cut) * (called.sum() - hits)) / n
    assert row[5].split()[0] == words.number(1000 * benefit, 0)


def test_what_is_undefined_says_why(material: Material, pictures: list[Picture]) -> None:
    gone = {"value": None, "ci_low": None, "ci_high": None}
    metrics = [m.model_copy(update=gone | {"reason": "no case to count"}) if m.metric == "ppv" else m
               for m in material.evaluation.metrics]  # fmt: skip
    flat = gone | {"difference": 0.0, "reason": "no variance"}
    compared = [row | flat for row in material.evaluation.comparisons]
    subgroups = [r.model_copy(update=gone | {"reason": "one class only"}) for r in material.evaluation.subgroups]
    evaluation = material.evaluation.model_copy(update={"metrics": metrics, "comparisons": compared, "subgroups": subgroups})
    _, page = show(replace(material, evaluation=evaluation), pictures)
    assert {row[7] for row in page.table("results")[1:]} == {"undefined: no case to count"}
    assert page.table("comparison_matrix_test")[1][2].startswith("0.000 (no interval: no variance); p ")
    assert page.table("comparison_matrix_test")[1][2].endswith("; n 7")
    assert {row[2] for row in page.table("subgroups")[1:]} == {"undefined: one class only"}


def test_a_single_epoch_is_seen(material: Material) -> None:
    once = {name: tuple(fold[:1] for fold in folds) for name, folds in material.histories.items()}
    figure = draw_training(replace(material, histories=once))
    points = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(points) > 4
    assert {line.get_marker() for line in points} == {"o"}
    low, high = figure.axes[-1].get_xlim()
    assert [tick for tick in figure.axes[-1].get_xticks() if low <= tick <= high] == [1]


def test_intervals_are_named_in_words_once_and_exceptions_by_model(material: Material) -> None:
    metric = next(m for m in material.evaluation.metrics if m.metric == "auc")
    make = lambda model, how: metric.model_copy(update={"model": model, "cohort": "test", "ci_method": how})
    found = methods_of([make("US", "DeLong, logit, t"), make("fusion", "DeLong, logit, t, clustered by patient"),
                        make("MRI", "Newcombe score")], ["a", "b"])  # fmt: skip
    assert found == (
        "Intervals (95 %). AUC: DeLong's variance on the logit scale, Student's t; AUC of MRI (test): Newcombe's score interval. "
        "Where a patient has several cases, the intervals allow for it."
    )


def test_what_belongs_together_stays_on_one_line(page: Page) -> None:
    assert keep_together("0.812 (0.144 to 0.991)") == "0.812 (0.144\u00a0to\u00a00.991)"
    assert keep_together("55.8 ± 9.0; p 0.12; n 7") == "55.8\u00a0±\u00a09.0; p\u00a00.12; n\u00a07"
    assert all(("short" in cell.attributes.get("class", "").split()) == (len(cell.text) <= 16) for cell in page.all("td") if cell.text)


@pytest.mark.parametrize("name", ["words"])
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"her2net.report.{name}")).failed == 0
