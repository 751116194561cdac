"""A table that is readable at any width: columns that do not fit beside the others follow in a further block below."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dmole_cli.reports.wrapping import columns_of, wrapped

# Smallest and largest width, in columns of text, of a table that is written to a file or a pipe of unknown width.
NARROWEST, WIDEST = 100, 10_000
# Smallest width of a column of sentences.
SENTENCE = 24


@dataclass
class Grid:
    """Cells under headings, drawn by rich as one table, or as several below each other that repeat the first columns.

    Attributes:
        title: above the table; empty for none.
        headings: of the columns; a line break starts a second line.
        keys: number of columns, from the left, that say what a row is; every block repeats them.
        caption: below the table, in lines.
        left: columns that are aligned to the left, beside the keys.
        sentences: columns whose text may be wrapped at spaces.
        rows: the cells.
        sections: numbers of rows that are followed by an empty line.
    """

    title: str
    headings: Sequence[str]
    keys: int = 1
    caption: str = ""
    left: frozenset[int] = frozenset()
    sentences: frozenset[int] = frozenset()
    rows: list[list[Text]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add_row(self, *cells: str | Text, end_section: bool = False) -> None:
        """Add a row, a cell per column; a text is shown as it is, and is no markup."""
        self.rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])
        if end_section:
            self.sections.add(len(self.rows) - 1)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The width that the table needs in one block."""
        needed = console.measure(self._table(range(len(self.headings))), options=_wide(options)).maximum
        texts = [cell_len(line) for line in (self.title, *self.caption.splitlines())]
        return Measurement(min(needed, options.max_width), max(needed, *texts))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw title, blocks and caption."""
        if self.title:
            yield Text(self.title, style="bold")
        yield from self._body(console, options)
        if self.caption:
            yield Text(self.caption, style="dim")

    def _body(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The blocks; where the keys alone leave no room, a table for each value of the first one, under that value."""
        blocks = self._blocks(console, options)
        fits = [self._needed(console, options, columns) <= options.max_width for columns in blocks]
        if self.keys > 1 and not all(fits):
            for name, rows in self._by_first_key():
                yield Text(f"\n{name}")
                yield from self._without_first_key(rows)._body(console, options)
            return
        for columns, in_one_piece in zip(blocks, fits, strict=True):
            yield self._table(columns, fold=not in_one_piece)

    def _by_first_key(self) -> list[tuple[str, list[list[Text]]]]:
        """Rows of each value of the first column; an empty cell stands for the value above it."""
        groups: list[tuple[str, list[list[Text]]]] = []
        for first, *rest in self.rows:
            if not groups or (first.plain and first.plain != groups[-1][0]):
                groups.append((first.plain, []))
            groups[-1][1].append(rest)
        return groups

    def _without_first_key(self, rows: list[list[Text]]) -> Grid:
        left, sentences = (frozenset(n - 1 for n in columns) for columns in (self.left, self.sentences))
        return Grid("", self.headings[1:], self.keys - 1, left=left, sentences=sentences, rows=rows)

    def _needed(self, console: Console, options: ConsoleOptions, columns: Sequence[int]) -> int:
        """The smallest width at which no word of these columns is broken."""
        return console.measure(self._table(columns), options=_wide(options)).minimum

    def _blocks(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Columns of each block: the keys, and as many others as fit beside them, at least one."""
        keys = list(range(self.keys))
        blocks: list[list[int]] = []
        for column in range(self.keys, len(self.headings)):
            wider = [*blocks[-1], column] if blocks else []
            if wider and self._needed(console, options, wider) <= options.max_width:
                blocks[-1] = wider
            else:
                blocks.append([*keys, column])
        return blocks or [keys]

    def _table(self, columns: Sequence[int], *, fold: bool = False) -> Table:
        """A table of some columns; with `fold`, every cell may be broken, so that nothing is lost at any width."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in columns:
            longest = max(map(cell_len, self._lines(column)), default=0)
            wraps = column in self.sentences and longest > SENTENCE
            table.add_column(
                Text(self.headings[column]),
                justify="left" if column < self.keys or column in self.left | self.sentences else "right",
                overflow="fold",
                no_wrap=not (wraps or fold),
                min_width=None if fold else SENTENCE if wraps else longest,
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(row[column] for column in columns), end_section=number in self.sections)
        return table

    def _lines(self, column: int) -> list[str]:
        texts = [self.headings[column], *(row[column].plain for row in self.rows)]
        return [line for text in texts for line in text.splitlines()]


def _wide(options: ConsoleOptions) -> ConsoleOptions:
    return options.update(width=WIDEST)


def show(grid: Grid) -> None:
    """Print a table on stdout: as wide as the terminal or COLUMNS; else, in a pipe, as wide as the table needs."""
    console = Console()
    if not console.is_terminal:
        needed = Console(width=WIDEST).measure(grid).maximum
        console = Console(width=columns_of(sys.stdout) or max(NARROWEST, needed))
    console.print(grid)


def show_line(text: str) -> None:
    """Print lines of text on stdout, wrapped at spaces where the width is known."""
    print(wrapped(text, sys.stdout))
