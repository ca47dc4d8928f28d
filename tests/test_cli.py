"""Commands: help without heavy imports, exit codes, one clear message for a bad call."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from keyword import iskeyword
from pathlib import Path

import pytest

from her2net.archive.licence import Licence
from her2net.archive.write import WrittenArchive
from her2net.paths import Roots, find_roots
from her2net.raw.synthetic import make_synthetic_dataset

COMMANDS = ("verify", "plan", "train", "ensemble", "fuse", "predict", "evaluate", "report", "explain", "selftest", "run",
            "demo", "status", "export", "import")
HEAVY = ("torch", "numpy", "scipy", "sklearn", "pydantic", "h5py", "SimpleITK", "matplotlib", "monai", "timm", "jinja2")


def call(command: str, *arguments: str) -> int:
    return importlib.import_module(f"her2net.cli.{command}{'_' * iskeyword(command)}").main(list(arguments))


def test_no_help_imports_anything_heavy() -> None:
    code = (
        "import sys, importlib, keyword\n"
        f"for c in {COMMANDS!r}:\n"
        "    parser = importlib.import_module('her2net.cli.' + c + '_' * keyword.iskeyword(c)).build_parser()\n"
        "    assert parser.prog == 'her2net_' + c and parser.format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_dataset_is_named_with_those_there_are(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    (roots.raw / "Dataset007_Here").mkdir(parents=True)
    assert call("status", "-d", "9") == 2
    assert "Dataset007_Here" in capsys.readouterr().err


def test_a_missing_raw_root_says_what_to_do(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify") == 2
    assert "her2net_raw" in capsys.readouterr().err


def test_a_relative_root_is_told_with_the_folder_that_it_starts_from(
    roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (roots.raw / "Dataset007_Here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("her2net_results", "my results")
    assert call("status") == 0
    assert f"her2net_results set to a relative path, which is taken from {tmp_path}" in capsys.readouterr().err
    assert find_roots().results == tmp_path / "my results"


def test_training_before_planning_names_the_command(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    make_synthetic_dataset(roots.raw / "Dataset001_S", n_train=8, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    assert call("train", "US", "0") == 2
    assert "her2net_plan" in capsys.readouterr().err


def test_a_bad_label_stops_planning_and_writes_nothing(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    folder = roots.raw / "Dataset001_S"
    make_synthetic_dataset(folder, n_train=8, n_test=0, us_size=(96, 112), mri_size=(8, 40, 40))
    lines = (folder / "cases.csv").read_text().splitlines()
    column = lines[0].split(",").index("label")
    cells = lines[1].split(",")
    cells[column] = "maybe"
    (folder / "cases.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    assert call("plan", "--quiet") == 2
    message = capsys.readouterr().err
    assert "'maybe'" in message
    assert "row 2" in message
    assert not [p for p in roots.preprocessed.rglob("*") if p.is_file()]


@pytest.mark.parametrize("arguments", [("US", "x"), ("US",), ("US", "-1")])
def test_a_bad_fold_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("train", *arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(("text", "hours"), [("2h", 2.0), ("30m", 0.5), ("90s", 0.025), ("1.5", 1.5)])
def test_durations(text: str, hours: float) -> None:
    from her2net.cli.common import parse_hours

    assert parse_hours(text) == pytest.approx(hours)


def test_options_of_every_command_are_frozen(request: pytest.FixtureRequest) -> None:
    """A new option is a decision: it shows up as a change of this file."""
    golden = Path(__file__).parent / "golden" / "cli_options.txt"
    lines = []
    for command in COMMANDS:
        parser = importlib.import_module(f"her2net.cli.{command}{'_' * iskeyword(command)}").build_parser()
        options = sorted(o for action in parser._actions for o in (action.option_strings or [action.dest.upper()]))
        lines.append(f"her2net_{command} {' '.join(options)}")
    found = "\n".join(lines) + "\n"
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found)
    assert golden.read_text() == found


def test_help_names_each_default_once_and_only_those_that_say_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # one line for each option
    texts = {c: importlib.import_module(f"her2net.cli.{c}{'_' * iskeyword(c)}").build_parser().format_help() for c in COMMANDS}
    for command, text in texts.items():
        assert not [nothing for nothing in ("None", "False", "()", "[]") if f"(default: {nothing}" in text], command
        assert all(line.count("default:") <= 1 for line in text.splitlines()), command
    assert "of the cohort (default: 0)" in texts["demo"]


def test_options_that_would_be_ignored_beside_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from her2net.cli import evaluate, explain

    with pytest.raises(SystemExit) as refused:
        explain.build_parser().parse_args(["US", "--features", "--contours"])
    assert refused.value.code == 2
    assert evaluate.main(["--predictions", "a.csv", "-d", "7", "-o", "out"]) == 2
    assert "Leave -d out" in capsys.readouterr().err
    assert evaluate.main(["--predictions", "a.csv", "-p", "auto", "-o", "out"]) == 2
    assert "Leave -p out" in capsys.readouterr().err


def test_suggested_commands_can_be_pasted(
    roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (roots.raw / "Dataset007_My Clinic").mkdir(parents=True)
    assert call("status") == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2:] == ["-d", "Dataset007_My Clinic"]
    written = WrittenArchive(tmp_path / "out of here" / "m.her2net", n_bytes=1, sha256="0", licence=Licence("", ""))
    monkeypatch.setattr("her2net.pipeline.export", lambda *_: written)
    assert call("export") == 0
    assert str(written.path) in shlex.split(capsys.readouterr().out.splitlines()[-1])


def test_all_and_all_folds_are_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from her2net import pipeline, project
    from her2net.cli import train

    jobs: list = []
    plan = SimpleNamespace(splits=SimpleNamespace(n_folds=3), tables={})
    monkeypatch.setattr(train, "resolve_paths", lambda args: None)
    monkeypatch.setattr(project, "load_project", lambda paths: SimpleNamespace(plan=plan))
    monkeypatch.setattr(pipeline, "train_folds", lambda _, given: jobs.extend(given) or [])
    assert train.main(["US", "all", "all-folds", "1", "--device", "cpu"]) == 0
    assert [fold for _, fold, _ in jobs] == ["all", 0, 1, 2]
