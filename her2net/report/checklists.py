"""Reporting checklists: what her2net knows is filled in, the rest is marked for the author."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment

from her2net.report.cohort import AUTHOR
from her2net.report.table import Cell, Table, make_table

FILES = ("tripod_ai", "claim")


def fill_checklist(file: str, environment: Environment, context: Mapping[str, Any]) -> Table:
    """Return a checklist as a table.

    Args:
        file: one of `FILES`.
        environment: without escaping: the cells are text, and are escaped where they are shown.
        context: what the answers may name.
    """
    found = json.loads(resources.files("her2net.report").joinpath(f"{file}.json").read_text(encoding="utf-8"))
    rows: list[list[str | Cell]] = []
    n_filled = 0
    for item in found["items"]:
        answer, todo = (environment.from_string(item[key]).render(context).strip() for key in ("answer", "todo"))
        n_filled += bool(answer)
        author = Cell(f"{AUTHOR}: {todo}" if todo else "" if answer else AUTHOR, mark="author" if todo or not answer else "")
        rows.append([item["item"], item["topic"], item["asks"], answer, author])
    caption = f"{found['name']}: {n_filled} of {len(rows)} items filled in, in whole or in part"
    return make_table(file, caption, ["Item", "Topic", "Asks for", "From her2net", "Left to you"], rows, sortable=False,
                      notes=(found["source"],))  # fmt: skip
