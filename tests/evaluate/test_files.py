"""What `her2net_evaluate` leaves behind, from a dataset and from bare tables: the exact files, and what stands in them."""

from __future__ import annotations

import csv
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from test_evaluation import make_table

from her2net.artefact import write_csv, write_json
from her2net.cli import evaluate as command
from her2net.evaluate import figures as figures_module
from her2net.evaluate.cohort_tables import compare_cohorts
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.evaluation import (
    Evaluation,
    Options,
    evaluate_dataset,
    evaluate_tables,
    fit_thresholds,
    recorded_options,
)
from her2net.evaluate.facts import CaseFacts, Facts, subgroup_levels
from her2net.evaluate.figures import DRAWERS, FORMATS, write_figures
from her2net.evaluate.labels import read_labels
from her2net.evaluate.thresholds import Thresholds
from her2net.evaluate.utility import decision_curve
from her2net.paths import DatasetPaths, Roots
from her2net.predictions import make_predictions, read_predictions, write_predictions

ALWAYS = {"metrics.csv", "metrics_detail.csv", "comparisons.csv", "comparisons_detail.csv", "certainty.csv",
          "decision_curve.csv", "thresholds.json", "metrics.json"}  # fmt: skip


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def figures(*cohorts: str) -> set[str]:
    return {f"figures/{kind}_{cohort}.{suffix}" for kind in DRAWERS for cohort in cohorts for suffix in FORMATS}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def make_facts(n_training: int, n_test: int) -> Facts:
    rng = np.random.default_rng(0)
    cases = [
        CaseFacts(
            f"{'c' if i < n_training else 't'}{i if i < n_training else i - n_training:03d}", f"p{i // 2}",
            "training" if i < n_training else "test", i % 2 if i < n_training else None,
            {"age": f"{50 + 10 * float(np.random.default_rng(i // 2).normal()):.1f}" if i != 3 else "",
             "grade": str(rng.integers(1, 4)), "site": "AB"[i // 4 % 2]},
        )
        for i in range(n_training + n_test)
    ]  # fmt: skip
    return Facts({"age": "continuous", "grade": "ordinal", "site": "categorical"}, tuple(cases))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """A dataset with covariates, evaluated."""
    root = tmp_path_factory.mktemp("cohort")
    paths = DatasetPaths(Roots(root / "raw", root / "pre", root / "res"), "Dataset001_Toy")
    for seed, model in enumerate(("US", "MRI")):
        oof = make_table(60, seed)
        oof = make_predictions(list(oof.case_ids), list(oof.patient_ids), oof.probs, labels=list(oof.labels),
                               folds=[str(i % 4 // 2 + 2 * (i % 8 // 4)) for i in range(60)])  # fmt: skip
        write_predictions(paths.model(model) / "oof.csv", oof)
        write_predictions(paths.model(model) / "test.csv", make_table(30, 10 + seed, prefix="t", fold="", with_labels=False))
    (paths.evaluation / "figures").mkdir(parents=True)
    (paths.evaluation / "figures" / "roc_test-without-resembling.svg").write_text("of an earlier evaluation")
    evaluate_dataset(
        paths, ["US", "MRI"], test_labels=lambda: {f"t{i:03d}": i % 2 for i in range(30)}, optimistic={},
        resembling_test_cases=(), class_names=["negative", "positive"], facts=make_facts(60, 30),
        options=Options(rule="sensitivity", parameter=0.8, prevalence=0.1),
    )  # fmt: skip
    return paths


def test_a_dataset_leaves_exactly_these_files(paths: DatasetPaths) -> None:
    tables = {"subgroups.csv", "table1_training_test.csv", "table1_negative_positive.csv"}
    assert list_files(paths.evaluation) == ALWAYS | tables | figures("oof", "test")


def test_every_covariate_is_a_subgroup_in_every_model_and_cohort(paths: DatasetPaths) -> None:
    rows = read(paths.evaluation / "subgroups.csv")
    assert {(r["model"], r["cohort"], r["covariate"]) for r in rows} == {
        (model, cohort, name) for model in ("US", "MRI") for cohort in ("oof", "test") for name in ("age", "grade", "site")
    }
    for cohort, n in (("oof", 60), ("test", 30)):
        for name in ("age", "grade", "site"):
            own = [r for r in rows if (r["model"], r["cohort"], r["covariate"]) == ("US", cohort, name)]
            assert sum(int(r["n"]) for r in own) == n
            assert all(0 <= float(r["interaction_p"]) <= 1 for r in own)
            assert all(float(r["ci_low"]) <= float(r["value"]) <= float(r["ci_high"]) for r in own if r["value"])


def test_a_continuous_covariate_is_cut_at_the_training_median() -> None:
    facts = make_facts(60, 30)
    ages = {case.case_id: case.values["age"] for case in facts.cases if case.values["age"]}
    cut = float(np.median([float(age) for case_id, age in ages.items() if case_id.startswith("c")]))
    levels = subgroup_levels(facts)["age"]
    assert levels["c003"] == ""
    assert set(levels.values()) == {"", f"< {cut:g}", f">= {cut:g}"}
    assert all((float(age) < cut) == levels[case_id].startswith("<") for case_id, age in ages.items())


def test_table_1_counts_patients_once_and_cases_where_they_differ(paths: DatasetPaths) -> None:
    rows = read(paths.evaluation / "table1_training_test.csv")
    assert [(r["variable"], r["unit"], r["training"], r["test"]) for r in rows[:2]] == [
        ("cases", "case", "60", "30"), ("patients", "patient", "30", "15"),
    ]  # fmt: skip
    first = {row["variable"]: row for row in reversed(rows)}
    assert first["class"]["unit"] == first["grade"]["unit"] == "case"
    assert first["age"]["unit"] == first["site"]["unit"] == "patient"
    assert {r["level"]: r["training"] for r in rows if r["variable"] == "class"} == {
        "negative": "30 (50.0)", "positive": "30 (50.0)",
    }  # fmt: skip
    both = read(paths.evaluation / "table1_negative_positive.csv")
    assert {row["cohort"] for row in both} == {"training", "test"}
    assert [row["negative"] for row in both if row["variable"] == "cases"] == ["30", "15"]


def test_table_1_of_patients_takes_the_value_they_have() -> None:
    make = lambda case_id, patient, age: CaseFacts(case_id, patient, "test", 0, {"age": age})
    first = [make("a", "p", ""), make("b", "p", "50"), make("c", "q", "60")]
    rows = compare_cohorts(first, [make("d", "r", "")], "one", "other", {"age": "continuous"})
    assert rows[1] == {"variable": "patients", "unit": "patient", "one": 2, "other": 1}
    assert (rows[2]["one_missing"], rows[2]["other_missing"]) == (0, 1)


def test_thresholds_follow_the_rule_that_was_asked_for_and_a_rerun_remembers_it(paths: DatasetPaths) -> None:
    rows = {(r["model"], r["cohort"], r["metric"]): r for r in read(paths.evaluation / "metrics.csv")}
    for model in ("US", "MRI"):
        chosen = Thresholds.load(paths.evaluation / "thresholds.json").models[model]
        assert (chosen.rule, chosen.parameter) == ("sensitivity", 0.8)
        assert float(rows[model, "oof", "sensitivity"]["value"]) >= 0.8
        assert float(rows[model, "oof", "rule_out_sensitivity"]["value"]) >= 0.95
        assert float(rows[model, "oof", "rule_in_specificity"]["value"]) >= 0.95
        assert float(rows[model, "test", "rule_out_npv"]["threshold"]) == chosen.rule_out
        shares = [float(rows[model, "test", f"{name}_share"]["value"]) for name in ("ruled_out", "grey_zone", "ruled_in")]
        assert sum(shares) == pytest.approx(1)
        brier = {name: float(rows[model, "test", f"brier{name}"]["value"])
                 for name in ("", "_reliability", "_resolution", "_uncertainty", "_within_bins")}  # fmt: skip
        total = brier["_reliability"] - brier["_resolution"] + brier["_uncertainty"] + brier["_within_bins"]
        assert brier[""] == pytest.approx(total)
        assert "prevalence 0.1" in rows[model, "test", "ppv_at_prevalence"]["ci_method"]
    assert recorded_options(paths) == Options(rule="sensitivity", parameter=0.8, prevalence=0.1)


def test_details_hold_every_reason_and_every_method(paths: DatasetPaths) -> None:
    metrics = read(paths.evaluation / "metrics_detail.csv")
    methods = {r["ci_method"].split(",")[0] for r in metrics if (r["model"], r["cohort"], r["metric"]) == ("US", "oof", "auc")}
    assert {"DeLong", "Newcombe score", "bootstrap BCa", "binomial exact"} <= methods
    assert all(row["reason"] for row in metrics if not row["value"] or not row["ci_low"])
    pairs = {(r["cohort"], r["metric"]): r for r in read(paths.evaluation / "comparisons_detail.csv")}
    assert float(pairs["test", "auc"]["detectable_difference"]) > 0
    assert float(pairs["oof", "auc_across_folds"]["p_bonferroni"]) > 0
    assert ("test", "auc_across_folds") not in pairs
    certainty = read(paths.evaluation / "certainty.csv")
    assert {(r["model"], r["cohort"]) for r in certainty} == {(m, c) for m in ("US", "MRI") for c in ("oof", "test")}
    assert all("an interval of about" in row["advice"] for row in certainty)


def test_decision_curve_and_clinical_impact_are_written_for_every_threshold(paths: DatasetPaths) -> None:
    rows = [r for r in read(paths.evaluation / "decision_curve.csv") if (r["model"], r["cohort"]) == ("US", "oof")]
    assert [float(row["threshold"]) for row in rows] == pytest.approx(np.arange(1, 100) / 100)
    table = read_predictions(paths.model("US") / "oof.csv")
    row, called = rows[39], table.probs[:, 1] >= 0.4
    hits = int((called & (table.labels == 1)).sum())
    assert float(row["net_benefit"]) == pytest.approx((hits - 0.4 / 0.6 * (called.sum() - hits)) / 60)
    assert float(row["called_per_1000"]) == pytest.approx(1000 * called.mean())
    assert float(row["true_positive_low"]) < 1000 * hits / 60 < float(row["true_positive_high"])


def write_tables(folder: Path, *, with_labels: bool, n: int = 40) -> list[str]:
    for name, seed in (("A", 0), ("B", 1)):
        write_predictions(folder / f"{name}.csv", make_table(n, seed, fold="", with_labels=with_labels))
    return [str(folder / "A.csv"), str(folder / "B.csv")]


def test_bare_tables_leave_exactly_these_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_tables(tmp_path, with_labels=False)
    write_csv(tmp_path / "cases.csv", ["case_id", "label"],
              [{"case_id": f"c{i:03d}", "label": ("negative", "positive")[i % 2]} for i in range(40)])  # fmt: skip
    out = tmp_path / "out"
    assert command.main(["--predictions", *files, "--labels", str(tmp_path / "cases.csv"), "-o", str(out)]) == 0
    assert list_files(out) == ALWAYS | figures("test")
    assert Evaluation.load(out / "metrics.json").class_names == ["negative", "positive"]
    printed = capsys.readouterr().out
    assert "A - B (test, n = 40): AUC difference" in printed
    assert "±0.05 needs about" in printed


def test_a_dataset_json_beside_the_labels_names_classes_patients_and_covariates(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {
        "name": "X", "labels": {"malignant": 1, "benign": 0}, "patient": "who", "site": "clinic",
        "modalities": {"US": {"channels": {"0": "B"}, "file_ending": ".png"}}, "covariates": {"age": "continuous"},
    })  # fmt: skip
    rows = [{"case_id": f"c{i:03d}", "label": ("benign", "Malignant", "")[i % 3], "who": f"p{i // 2}", "clinic": "AB"[i % 2],
             "age": 40 + i} for i in range(9)]  # fmt: skip
    write_csv(tmp_path / "labels.csv", ["case_id", "label", "who", "clinic", "age"], rows)
    found = read_labels(tmp_path / "labels.csv")
    assert list(found.labels.values()) == [0, 1, -1] * 3
    assert found.class_names == ["benign", "malignant"]
    assert found.patients["c003"] == "p1"
    assert subgroup_levels(found.facts)["age"]["c000"] == "< 44"
    assert set(found.facts.kinds) == {"age", "clinic"}
    write_csv(tmp_path / "labels.csv", ["case_id", "label"], rows)
    assert read_labels(tmp_path / "labels.csv").facts is None


def table_of(folder: Path, lines: list[str], name: str = "C.csv") -> str:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(("labels", "message"), [
    (["case_id,label", *(f"c{i:03d},{'low' if i % 2 else 'zero'}" for i in range(40))], "'low', 'zero' are not class numbers"),
    (["case_id,label", *(f"c{i:03d},{i % 2}" for i in range(30))], "10 of 40 cases are not in the labels"),
    (["case_id,label", *(f"x{i:03d},{i % 2}" for i in range(40))], "none of its cases is in --labels"),
    (["case_id,label", *(f"c{i:03d},{i % 2}" for i in range(40)), "c001,1"], "'c001' occurs twice"),
    (["case_id,label", *(f"c{i:03d},{i % 2 + 0.5}" for i in range(40))], "'0.5', '1.5' are not class numbers"),
    (["case_id,diagnosis", "c000,1"], "the column 'label' is absent"),
    (["case_id,label", *(f"c{i:03d},{i % 3}" for i in range(40))], "label 2 is not a class of this table"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], message: str
) -> None:
    files = write_tables(tmp_path, with_labels=False)
    cases = table_of(tmp_path, labels, "cases.csv")
    assert command.main(["--predictions", *files, "--labels", cases, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("Error") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--threshold", "sensitivity=0.9"], "no out-of-fold predictions to fit the threshold rule 'sensitivity' on"),
    (["--labels", "nowhere.csv"], "no such file"),
])  # fmt: skip
def test_a_call_that_cannot_be_answered_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    files = write_tables(tmp_path, with_labels=True)
    assert command.main(["--predictions", *files, "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", ["sensitivity=2", "cost=-1", "best", "sensitivity=high", "1.5", "nan"])
def test_an_impossible_threshold_rule_is_a_usage_error(rule: str) -> None:
    with pytest.raises(SystemExit) as stop:
        command.build_parser().parse_args(["--threshold", rule])
    assert stop.value.code == 2


def test_tables_that_contradict_each_other_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = table_of(tmp_path, ["case_id,patient_id,label,prob_0,prob_1", "a,p,0,0.5,0.5", "b,q,1,0.5,0.5"], "one.csv")
    two = table_of(tmp_path, ["case_id,patient_id,label,prob_0,prob_1", "a,p,1,0.5,0.5", "b,r,1,0.5,0.5"], "two.csv")
    assert command.main(["--predictions", one, two, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a: label 0 in one, 1 in two" in error
    assert "b: patient 'q' in one, 'r' in two" in error


def test_one_class_only_is_explained_in_the_files(tmp_path: Path) -> None:
    lines = [f"c{i},p{i},1,{1 - i / 10},{i / 10}" for i in range(1, 9)]
    file = table_of(tmp_path, ["case_id,patient_id,label,prob_0,prob_1", *lines], "A.csv")
    other = table_of(tmp_path, ["case_id,patient_id,label,prob_0,prob_1", *lines], "B.csv")
    assert command.main(["--predictions", file, other, "-o", str(tmp_path / "out"), "--threshold", "0.45"]) == 0
    assert list_files(tmp_path / "out") == ALWAYS
    rows = {row["metric"]: row for row in read(tmp_path / "out" / "metrics_detail.csv") if row["default"] == "yes"}
    assert rows["auc"]["value"] == rows["specificity"]["value"] == ""
    assert rows["auc"]["reason"] == "one class only"
    assert rows["sensitivity"]["value"] == "0.5"
    assert rows["sensitivity"]["threshold"] == "0.45"
    pairs = {row["metric"]: row for row in read(tmp_path / "out" / "comparisons_detail.csv")}
    assert pairs["auc"]["reason"] == "one class only"


def test_cases_without_a_label_are_left_out_and_that_is_said() -> None:
    table = make_table(40)
    labels = list(table.labels)
    labels[:7] = [None] * 7
    table = make_predictions(list(table.case_ids), list(table.patient_ids), table.probs, labels=labels, folds=["0"] * 40)
    found = evaluate_tables({("A", "oof"): table}, fit_thresholds({("A", "oof"): table}), {}, ["0", "1"])
    assert {m.remark for m in found.metrics} == {"7 of 40 cases have no label and are left out"}
    assert {m.n for m in found.metrics} == {33}
    one = make_predictions(list(table.case_ids), list(table.patient_ids), table.probs, labels=[None, *[0, 1] * 19, 1], folds=["0"] * 40)
    found = evaluate_tables({("A", "oof"): one}, fit_thresholds({("A", "oof"): one}), {}, ["0", "1"])
    assert {m.remark for m in found.metrics} == {"1 of 40 cases has no label and is left out"}


def test_a_table_out_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    rows = ["case_id;prob_0;prob_1;label", "b;0,25;0,75;1", "a;0,5;0,5;0"]
    (tmp_path / "A.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    table = read_predictions(tmp_path / "A.csv")
    assert table.case_ids == ("a", "b")
    assert table.probs.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert table.labels.tolist() == [0, 1]


def test_three_classes_are_drawn_against_the_rest_and_compared(tmp_path: Path) -> None:
    for name, seed in (("A", 0), ("B", 1)):
        write_predictions(tmp_path / f"{name}.csv", make_table(90, seed, n_classes=3))
    out = tmp_path / "out"
    assert command.main(["--predictions", str(tmp_path / "A.csv"), str(tmp_path / "B.csv"), "-o", str(out), "--ordinal"]) == 0
    assert list_files(out) == ALWAYS | figures("oof")
    svg = (out / "figures" / "roc_oof.svg").read_text(encoding="utf-8")
    own = next(row for row in read(out / "metrics.csv") if (row["model"], row["metric"]) == ("A", "auc_class_2"))
    assert f"A {float(own['value']):.2f} ({float(own['ci_low']):.2f} to {float(own['ci_high']):.2f}), n = 90" in svg
    assert svg.count("AUC (95 % interval)") == 3, "a panel for each class"
    assert "Training cases, out-of-fold" in svg
    pairs = {row["metric"]: row for row in read(out / "comparisons.csv")}
    assert set(pairs) == {"auc", "accuracy", "brier"}
    assert "weighted_kappa" in {row["metric"] for row in read(out / "metrics.csv")}


def test_models_of_other_cases_are_drawn_against_calling_all_of_their_own_positive(tmp_path: Path) -> None:
    every, some = make_table(80), make_table(80).take((np.arange(80) % 2 == 0) | (np.arange(80) < 20))
    legend = {"US": "US", "MRI": "MRI"}
    for models in ({"US": every, "MRI": every}, {"US": every, "MRI": some}):
        draw = lambda how, models=models: figures_module.draw_figure({"": partial(how, models=models, thresholds={}, legend=legend)})
        shares = {name: float((table.labels == 1).mean()) for name, table in models.items()}
        lines = {line.get_label(): line.get_ydata() for line in draw(figures_module.draw_decision).axes[0].lines}
        alike = len(set(shares.values())) == 1
        for name, table in models.items():
            found = lines["call all positive" if alike else f"call all positive: {name}"]
            np.testing.assert_allclose(found, decision_curve(table.labels, table.probs[:, 1]).treat_all)
        level = [line.get_ydata() for line in draw(figures_module.draw_precision_recall).axes[0].lines]
        assert {float(y[0]) for y in level if len(y) == 2 and y[0] == y[1]} == set(shares.values())


@pytest.mark.parametrize(
    ("n_classes", "arguments", "named"),
    [
        (3, ["--threshold", "cost=5"], ["--threshold"]),
        (3, ["--threshold", "0.3", "--prevalence", "0.1"], ["--threshold", "--prevalence"]),
        (2, ["--ordinal"], ["--ordinal"]),
    ],
)
def test_what_could_have_no_effect_is_refused(
    n_classes: int, arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_predictions(tmp_path / "A.csv", make_table(90, n_classes=n_classes))
    out = tmp_path / "out"
    assert command.main(["--predictions", str(tmp_path / "A.csv"), "-o", str(out), *arguments]) == 2
    said = capsys.readouterr().err
    assert all(f"{option}: " in said for option in named)
    assert said.count("Leave it out.") == len(named)
    assert not out.exists()


def test_legends_tell_all_cases_however_many_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "MAX_DRAWN", 20)
    table = make_table(60)
    write_figures(tmp_path, {("A", "oof"): table}, {})
    found = auc_interval(table.labels, table.probs[:, 1], patients=np.array(table.patient_ids))
    svg = (tmp_path / "roc_oof.svg").read_text(encoding="utf-8")
    assert f"A {found.value:.2f} ({found.ci_low:.2f} to {found.ci_high:.2f}), n = 60" in svg
    assert "A, n = 60" in (tmp_path / "decision_curve_oof.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("n_models", [1, 4, 5, 9])
def test_a_long_legend_stands_below_its_panel_and_nothing_is_cut_off(n_models: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def paint(axes: Axes) -> None:
        for k in range(n_models):
            axes.plot([0, 1], [0, 1], label=f"model {k}, 0.50 (0.40 to 0.60), n = 100")
        axes.set(xlabel="1 - specificity", ylabel="Sensitivity", aspect="equal")

    figure = figures_module.draw_figure(dict.fromkeys(("one", "other", "third"), paint), "AUC (95 % interval)")
    FigureCanvasAgg(figure).draw()
    assert figure.get_size_inches()[0] == 2 * figures_module.WIDTH_IN, "several panels do not stand in one narrow column"
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    for axes in panels:
        legend = axes.get_legend().get_window_extent()
        assert legend.overlaps(axes.get_window_extent()) == (n_models <= figures_module.MOST_INSIDE)
        for box in (legend, axes.title.get_window_extent(), axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()):
            assert figure.bbox.x0 <= box.x0, "cut off on the left"
            assert figure.bbox.y0 - 1 <= box.y0, "cut off below"
            assert box.x1 <= figure.bbox.x1, "cut off on the right"
            assert box.y1 <= figure.bbox.y1 + 1, "cut off above"
    boxes = [axes.get_tightbbox() for axes in panels]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)), "a panel runs into the next"


def test_a_test_table_is_read_at_the_threshold_of_the_out_of_fold_table_of_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, seed, fold, prefix in (("oof", 0, "0", "c"), ("test", 1, "", "t"), ("same", 2, "", "c")):
        (tmp_path / part).mkdir()
        write_predictions(tmp_path / part / "US.csv", make_table(40, seed, fold=fold, prefix=prefix))
    oof, test, same = (str(tmp_path / part / "US.csv") for part in ("oof", "test", "same"))
    out = tmp_path / "out"
    assert command.main(["--predictions", oof, test, "-o", str(out), "--threshold", "sensitivity=0.9"]) == 0
    rows = {(r["cohort"], r["metric"]): r for r in read(out / "metrics.csv")}
    chosen = Thresholds.load(out / "thresholds.json").models["US"]
    assert (chosen.rule, chosen.chosen_on, chosen.n) == ("sensitivity", "oof", 40)
    assert float(rows["test", "sensitivity"]["threshold"]) == float(rows["oof", "sensitivity"]["threshold"]) == chosen.value
    assert float(rows["oof", "sensitivity"]["value"]) >= 0.9
    assert ("test", "brier_recalibrated") in rows
    assert "threshold 0.5" not in capsys.readouterr().out
    assert command.main(["--predictions", oof, same, "-o", str(tmp_path / "other")]) == 2
    assert "patients of its test table are in its out-of-fold table" in capsys.readouterr().err
    assert command.main(["--predictions", oof, oof, "-o", str(tmp_path / "other")]) == 2
    assert "US occurs twice" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_table_that_a_spreadsheet_saved_with_decimal_commas_keeps_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "A.csv"
    rows = ["case_id;patient_id;fold;label;prob_0;prob_1", "1,5;P1;;1,0;1,0E-05;0,99999", "b;P2;;;,25;0,75"]
    path.write_text("\r\n".join(rows), encoding="utf-8")
    table = read_predictions(path)
    assert table.case_ids == ("1,5", "b")
    assert table.labels.tolist() == [1, -1]
    np.testing.assert_allclose(table.probs[:, 1], [0.99999, 0.75], atol=1e-9)
