"""One form for every table of a report: shown in the page, saved as CSV, and as HTML that pastes into a document."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and what it sorts by if that is not the text.

    Attributes:
        mark: class of the cell's look, such as `author` for what the author has to fill in.
    """

    text: str
    sort: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Attributes:
        key: its file name in `tables/`, without ending.
        caption: what it shows, of whom.
        columns: headers.
        numeric: indices of the columns that are set flush right.
        notes: how its numbers were made.
        sortable: whether its rows may be put into another order; not where they belong together.
    """

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    sortable: bool = True

    def to_csv(self) -> str:
        """Return the table as CSV: what the page shows, without caption and notes."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([cell.text for cell in row] for row in self.rows)
        return buffer.getvalue()


def make_table(
    key: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str | Cell]], *,
    numeric: Sequence[int] = (), notes: Sequence[str] = (), sortable: bool = True,
) -> Table:  # fmt: skip
    """Build a table; plain text becomes a cell."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    wrong = [row for row in cells if len(row) != len(columns)]
    if wrong:
        raise ValueError(f"table {key}: a row has {len(wrong[0])} cells under {len(columns)} columns")
    kept = tuple(note for note in notes if note)
    return Table(key, caption, tuple(columns), cells, frozenset(numeric), kept, sortable and len(cells) > 1)
