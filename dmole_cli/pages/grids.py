"""Tables of a page: from the tables of the terminal, and from the numbers of figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from dmole_cli.reports.layout import Grid
from dmole_cli.reports.tables import MISSING

ROWS = 200  # of the numbers of a figure; the CSV files have all of them


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: as it is shown.
        sort: the number by which a column is sorted; None to sort by the text.
        number: whether it is aligned to the right.
        tag: `th` for what names a row.
    """

    text: str
    sort: float | None = None
    number: bool = False
    tag: str = "td"


@dataclass(frozen=True)
class PageTable:
    """A table that can be sorted.

    Attributes:
        headings: of the columns.
        rows: the cells.
        title: above it.
        notes: lines below it.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """(heading, whether the column holds numbers) of each column."""
        numbers = [all(row[index].number for row in self.rows) for index in range(len(self.headings))]
        return list(zip(self.headings, numbers, strict=True))


def of_grid(grid: Grid) -> PageTable:
    """A table of the terminal; an empty cell that stands for the value above it gets that value, so that rows can be sorted."""
    rows, above = list[list[Cell]](), [""] * grid.keys
    for row in grid.rows:
        texts = [cell.plain for cell in row]
        above = [text or before for text, before in zip(texts[: grid.keys], above, strict=True)]
        texts[: grid.keys] = above
        rows.append([_of_text(text, key=index < grid.keys) for index, text in enumerate(texts)])
    headings = [heading.replace("-\n", "").replace("\n", " ") or "quantity" for heading in grid.headings]
    return PageTable(headings, rows, grid.title, grid.caption.splitlines())


def of_numbers(numbers: Mapping[str, Sequence[Any]]) -> PageTable:
    """The numbers of a figure; the first rows where there are many."""
    columns = list(numbers.values())
    count = max(map(len, columns), default=0)
    rows = [[_of_value(column[index]) for column in columns] for index in range(min(count, ROWS))]
    notes = [f"The first {ROWS} of {count:,} rows; dmole report --figures writes all of them as CSV."]
    return PageTable(list(numbers), rows, notes=notes if count > ROWS else ())


def _of_text(text: str, *, key: bool) -> Cell:
    try:
        number = float(text.replace(",", "").replace("−", "-").removesuffix("%").strip())
    except ValueError:
        return Cell(text, number=text == MISSING, tag="th" if key else "td")
    return Cell(text, number if math.isfinite(number) else None, number=not key, tag="th" if key else "td")


def _of_value(value: Any) -> Cell:
    if value is None:
        return Cell(MISSING, number=True)
    if isinstance(value, Real) and not isinstance(value, bool):
        if not math.isfinite(value):
            return Cell(MISSING, number=True)
        text = f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"
        return Cell(text, float(value), number=True)
    return Cell(str(value))
