"""Text out of templates: the page, with nothing in it that a browser would fetch, and tables that paste into a document."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from her2net.report import words
from her2net.report.table import Table

BRACKETS = re.compile(r"\([^()]{1,28}\)|\d ± \d|[pn] (?=[\d<])")
"""What stays on one line: brackets behind a number, mean ± SD, and n and p with their numbers."""


def make_environment(*, autoescape: bool = True) -> Environment:
    """Return the environment; an unknown name in a template is an error, never an empty string."""
    environment = Environment(
        loader=PackageLoader("her2net.report"), autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["words"] = words
    environment.filters["keep"] = keep_together
    return environment


def keep_together(text: str) -> str:
    """Return the text with spaces that a browser does not break at."""
    return BRACKETS.sub(lambda found: found[0].replace(" ", "\u00a0"), text)


def render_page(context: Mapping[str, Any]) -> str:
    """Render the report.

    The page carries a content security policy that allows its own style and script, by their digests, and pictures that
    are part of it: a browser then runs and fetches nothing else, whatever a case or a dataset is called.
    """
    style, script = (_read(name) for name in ("style.css", "sort.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = make_environment().get_template("report.html")
    return template.render({**context, "style": style, "script": script, "policy": policy})


def render_table(table: Table, title: str) -> str:
    """Render one table as a page of its own, styled so that a word processor keeps its lines when it is pasted."""
    return make_environment().get_template("table.html").render(table=table, title=title)


def _read(name: str) -> str:
    return resources.files("her2net.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
