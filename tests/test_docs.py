"""The documentation says what the code does: its commands parse, its links lead somewhere, nothing is left out."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from keyword import iskeyword
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
BASH_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def read_commands() -> list[str]:
    """Return the console scripts of setup.py, without their prefix."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    return re.findall(r'"(\w+)"', text.split("COMMANDS = (")[1].split(")")[0])


def examples() -> Iterator[tuple[str, str]]:
    """Return (page, line) of every her2net command in a bash block."""
    for page in PAGES:
        for block in BASH_BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("her2net_"):
                    yield page.relative_to(ROOT).as_posix(), line


def build_parser(command: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"her2net.cli.{command}{'_' * iskeyword(command)}").build_parser()


def section_of(command: str) -> str:
    """Return what the reference says under the heading of one command."""
    found = re.search(rf"^## her2net_{command}\b.*?(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


@pytest.mark.parametrize(("page", "line"), list(examples()))
def test_every_example_parses(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = name.removeprefix("her2net_")
    assert command in read_commands(), f"{page}: {name} is no command"
    try:
        build_parser(command).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: {line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [link.split("#")[0] for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert not [target for target in targets if target and not (page.parent / target).exists()]


@pytest.mark.parametrize("command", read_commands())
def test_every_command_and_option_is_in_the_reference(command: str) -> None:
    general, own = REFERENCE.split("\n## ")[0], section_of(command)
    assert own, f"her2net_{command} has no section"
    for action in build_parser(command)._actions:
        for option in action.option_strings:
            word = re.compile(rf"(?<![\w-]){re.escape(option)}(?![\w-])")
            assert word.search(own) or word.search(general), f"her2net_{command} {option}"


def test_the_reference_names_no_option_that_is_not_there() -> None:
    known = {o for c in read_commands() for action in build_parser(c)._actions for o in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", REFERENCE)) <= known


def test_every_field_of_the_plan_is_in_the_reference() -> None:
    from her2net.plan import augmentation, machine, schema, table_schema

    text = (ROOT / "docs/reference/plan.md").read_text(encoding="utf-8")
    models = (schema.Plan, schema.ModalityPlan, schema.PreprocessingPlan, schema.TrainingPlan, schema.InferencePlan,
              schema.SplitsPlan, schema.FusionPlan, schema.Decision, table_schema.TablePlan, table_schema.TableModelPlan,
              table_schema.RadiomicsPlan, machine.Machine, augmentation.AugmentationPlan)  # fmt: skip
    assert not {f"{model.__name__}.{name}" for model in models for name in model.model_fields if f"`{name}`" not in text}


def test_every_test_that_is_named_exists() -> None:
    named = [(page, *match) for page in PAGES for match in TEST_NAME.findall(page.read_text(encoding="utf-8"))]
    assert named
    for page, file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file}::{test}"
