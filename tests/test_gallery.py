"""The gallery of explanations in the report, and the explanations that a run makes for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import copy_run
from report_page import Page
from small_run import TRAIN

from her2net import pipeline, status
from her2net.errors import MissingArtefactError
from her2net.explain.record import MeanFigure, read_galleries
from her2net.explain.subjects import ExplainOptions, evenly_spaced
from her2net.paths import DatasetPaths
from her2net.project import load_project
from her2net.report import gallery
from her2net.report.gallery import collect_galleries, judge

QUIET = ExplainOptions(quiet=True)


def read_page(paths: DatasetPaths) -> Page:
    return Page(paths.report.read_text(encoding="utf-8"))


def test_a_run_shows_explanations_that_work_without_a_script(done: DatasetPaths) -> None:
    page = read_page(done)
    assert not page.faults
    pictures = [e for e in page.all("img") if "places that speak for" in e.attributes["alt"]]
    volumes = read_galleries(load_project(done), "MRI")[0]
    flat = read_galleries(load_project(done), "US")[0]
    assert len(flat.items) == len(volumes.items) == pipeline.N_EXPLAINED
    assert all(len(item.slices) == 2 for item in flat.items)
    assert all(len(item.slices) > 2 for item in volumes.items)
    assert len(pictures) == sum(len(item.slices) for g in (flat, volumes) for item in g.items)
    assert all(e.attributes["src"].startswith("data:image/jpeg;base64,") for e in pictures)
    assert any("axial, " in e.attributes["alt"] for e in pictures)
    assert not any("hidden" in e.attributes for e in page.all("figure"))  # without a script all slices are seen
    sliders = [e for e in page.all("input") if e.attributes.get("type") == "range"]
    assert len(sliders) == len(volumes.items)
    assert all("hidden" in e.attributes and e.attributes["aria-label"].startswith("Slice of ") for e in sliders)
    assert not any("tabindex" in e.attributes for e in sliders)  # a range input takes focus and arrow keys by itself
    assert "input:focus-visible" in done.report.read_text(encoding="utf-8")


def test_the_measures_stand_beside_the_maps_with_words(done: DatasetPaths) -> None:
    rows = read_page(done).table("explanations")
    assert [row[0].split(":")[0] for row in rows[1:]] == ["US", "MRI"]
    assert "Energy inside the mask" in rows[0]
    assert "Insertion AUC" in rows[0]
    text = done.report.read_text(encoding="utf-8")
    assert "How far to believe them" in text
    assert f"Few: {pipeline.N_EXPLAINED} cases" in text


def test_stale_explanations_are_named_and_not_shown(small_run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(small_run, tmp_path / "run")
    record = next(paths.explain("US").glob("*/explain.json"))
    record.write_text(record.read_text().replace('"version": "', '"version": "0'))
    project = load_project(paths)
    assert status.report_state(project).state == "stale"
    pipeline.report(project)
    text = paths.report.read_text(encoding="utf-8")
    assert "US/oof-gradcam-predicted is not shown: version changed since" in text
    assert "Run her2net_explain US -d Dataset001_Small again" in text
    assert [row[0].split(":")[0] for row in read_page(paths).table("explanations")[1:]] == ["MRI"]


def test_a_stale_set_is_told_with_the_command_that_makes_it(small_run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(small_run, tmp_path / "run")
    options = ExplainOptions(method="occlusion", target=0, cohort="test", fold=1, device="cpu", quiet=True)
    pipeline.explain(load_project(paths), "MRI", options)
    for record in paths.explain("MRI").parent.glob("*/*/explain.json"):
        record.write_text(record.read_text().replace('"version": "', '"version": "0'))
    shown, told = collect_galleries(load_project(paths))
    assert (shown, len(told)) == ([], 3)
    command = "her2net_explain MRI --cohort test --method occlusion --class 0 --fold 1 -d Dataset001_Small"
    assert told[-1] == f"MRI/test-occlusion-class0-fold1 is not shown: version changed since. Run {command} again."
    assert "No explanations yet" not in pipeline.report(load_project(paths)).read_text(encoding="utf-8")


def test_the_command_that_explains_all_names_the_dataset(small_run: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several datasets exist, it does not work without."""
    monkeypatch.setattr(pipeline, "read_galleries", lambda *_: [])
    monkeypatch.setattr(pipeline, "explain", lambda *_: None)
    said: list[str] = []
    pipeline.explain_some(load_project(small_run), TRAIN, said.append)
    assert said[0].endswith("; her2net_explain US -d Dataset001_Small explains all")


def test_a_lost_picture_is_told_with_the_command_that_makes_it(small_run: DatasetPaths, tmp_path: Path) -> None:
    paths = copy_run(small_run, tmp_path / "run")
    read_galleries(load_project(paths), "US")[0].items[0].overlay.unlink()
    with pytest.raises(MissingArtefactError, match="Run her2net_explain US -d Dataset001_Small again"):
        read_galleries(load_project(paths), "US")


def test_the_page_stays_small(done: DatasetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cases are explained, the pictures take no more than the budget; what has no room is counted."""
    galleries = [g for name in ("US", "MRI") for g in read_galleries(load_project(done), name)]
    sizes = [[sum(p.stat().st_size for p, _ in item.slices) for item in g.items] for g in galleries]
    assert max(map(max, sizes)) < 60_000
    monkeypatch.setattr(gallery, "MAX_BYTES", 2 * (min(map(sum, sizes)) - 1))
    shown = gallery.embed_galleries(galleries, done.results)
    assert all(0 < len(s.cases) < pipeline.N_EXPLAINED == len(s.cases) + s.left_out for s in shown)


def test_words_follow_the_figures() -> None:
    def summary(**values: float) -> dict[str, MeanFigure]:
        names = ("energy_inside", "mask_share", "energy_centre", "deletion_auc", "insertion_auc", "randomised_abs_rho")
        return {name: MeanFigure(value=values[name], ci_low=values[name] - 0.05, ci_high=values[name] + 0.05, ci_method="", n=40)
                for name in names}  # fmt: skip

    good = {"energy_inside": 0.6, "mask_share": 0.2, "energy_centre": 0.5, "deletion_auc": 0.3, "insertion_auc": 0.7,
            "randomised_abs_rho": 0.1}  # fmt: skip
    assert [text.split(":")[0] for text in judge(summary(**good))] == [
        "On the lesion", "The networks need what the maps show", "They depend on what was learned"]  # fmt: skip
    assert "no more than a mere blob" in judge(summary(**good | {"energy_inside": 0.4}))[0]
    assert judge(summary(**good | {"energy_inside": 0.22}))[0].startswith("Not shown to lie on the lesion")
    assert judge(summary(**good | {"insertion_auc": 0.35}))[1].startswith("Not shown that the networks need")
    assert "do not believe" in judge(summary(**good | {"insertion_auc": 0.2}))[1]
    assert "untrained networks: they show the image" in judge(summary(**good | {"randomised_abs_rho": 0.8}))[2]


def test_cases_are_evenly_spaced() -> None:
    assert evenly_spaced(100, 3) == [0, 50, 99] or evenly_spaced(100, 3) == [0, 49, 99]
    assert evenly_spaced(2, 12) == [0, 1]
    assert evenly_spaced(1, 12) == [0]
