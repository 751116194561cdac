"""Panels of lines, one line per method: the same method looks the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import FAINT, INK, SERIES, series
from dmole_cli.reports.experiments import Experiment, Source, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# More coloured lines would look alike in a small panel.
COLOURED = len(SERIES)
BOUND = {"color": INK, "linestyle": "--", "marker": "", "linewidth": 1.4}
BACKBONE = {"color": FAINT, "linestyle": ":", "marker": "", "linewidth": 1.6}
# All tasks at once: a point, and where there are steps, a line.
ONCE = {"color": INK, "linestyle": "", "marker": "*", "markersize": 9}
ONCE_LINE = {"color": INK, "linestyle": "-.", "marker": "", "linewidth": 1.4}
OTHER = {"color": FAINT, "alpha": 0.45, "linestyle": "-", "marker": "", "linewidth": 0.9, "zorder": 1}
OTHERS = "every other method"


def line_styles(source: Source) -> dict[str, dict[str, Any]]:
    """Name of a method -> style of its line, for all methods.

    The main method and the best others by their mean Last have colours and markers, the others share one thin style. A method
    that trains each task alone is a bound, and dashed; the backbone is dotted; all tasks at once are a star, the last stage only.
    """
    methods: dict[str, list[Experiment]] = {}
    for one in source.experiments:
        methods.setdefault(one.name, []).append(one)
    fixed = {"per-task": BOUND, "zero-shot": BACKBONE, "joint": ONCE}
    protocols = {name: experiments[0].kind.protocol for name, experiments in methods.items()}

    def rank(name: str) -> tuple[bool, float]:
        last = spread(one.report.mean["last"] for one in methods[name])
        return not methods[name][0].is_main, -(last.mean if last else 0.0)

    coloured = sorted((name for name in methods if protocols[name] not in fixed), key=rank)[:COLOURED]
    styles = {name: series(index) for index, name in enumerate(coloured)}
    if coloured:
        styles[coloured[0]] |= {"linewidth": 2.6, "zorder": 4}
    return {name: styles.get(name) or fixed.get(protocols[name], OTHER) for name in methods}


def note_on_others(styles: Mapping[str, dict[str, Any]]) -> str:
    """Which methods share the thin style; empty for none."""
    names = [method for method, style in styles.items() if style is OTHER]
    if not names:
        return ""
    text = f"The {COLOURED} methods with the highest mean Last have colours, the main method included."
    return f"{text} Thin lines: {', '.join(names)}. The table has the numbers of all methods."


@dataclass(frozen=True)
class Panels:
    """A grid of small panels.

    Attributes:
        count: of panels.
        styles: of the methods in the legend above.
        horizontal, vertical: labels of the outer axes.
        columns: at most.
        height: of a row in inches.
    """

    count: int
    styles: Mapping[str, dict[str, Any]]
    horizontal: str
    vertical: str
    columns: int = 4
    height: float = 2.1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; 5 and 6 panels have three columns."""
        columns = min(self.count, self.columns if self.count > 6 else 3)
        return ceil(self.count / columns), columns

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        rows, columns = self.shape
        width = {1: 7.0, 2: 9.5}.get(columns, 12.4)
        return width, self.height * rows + 0.35 + 0.26 * legend_rows(self.styles, width)

    def axes(self, canvas: Canvas) -> list[Any]:
        """The axes of the panels, row by row."""
        rows, columns = self.shape
        grid = canvas.subplots(rows, columns, squeeze=False)
        found = list(grid.flat)
        for axes in found[self.count :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(self.vertical)
        for axes in found[(rows - 1) * columns : self.count]:
            axes.set_xlabel(self.horizontal)
        for axes in found[: self.count]:
            axes.grid(axis="y", linewidth=0.8)
            axes.set_axisbelow(True)
        return found[: self.count]


def legend(canvas: Canvas, styles: Mapping[str, dict[str, Any]]) -> None:
    """A legend of the methods above the panels."""
    from matplotlib.lines import Line2D

    entries = _entries(styles)
    handles = [Line2D([], [], label=name, **style) for name, style in entries.items()]
    columns = _legend_columns(list(entries), canvas.get_figwidth())
    canvas.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def legend_rows(styles: Mapping[str, dict[str, Any]], width: float) -> int:
    """How many rows the legend has in a figure of this width in inches."""
    names = list(_entries(styles))
    return ceil(len(names) / _legend_columns(names, width))


def _entries(styles: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Text -> style; methods that share the thin style are one entry, the last one."""
    entries = {name + _meaning(style): style for name, style in styles.items() if style is not OTHER}
    return entries | ({OTHERS: OTHER} if any(style is OTHER for style in styles.values()) else {})


def _meaning(style: Mapping[str, Any]) -> str:
    if style is BOUND:
        return " (each task alone)"
    return " (all tasks at once)" if style is ONCE or style is ONCE_LINE else ""


def _legend_columns(names: Sequence[str], width: float) -> int:
    """How many columns fit beside each other; as matplotlib fills them, the first columns have one row more."""
    for columns in range(len(names), 1, -1):
        least, longer = divmod(len(names), columns)
        starts = [column * least + min(column, longer) for column in range(columns + 1)]
        widest = [max(map(len, names[start:end])) for start, end in pairwise(starts)]
        if sum(66 + 7.2 * longest for longest in widest) < 72 * width - 20:
            return columns
    return 1


def step_of(count: int) -> int:
    """Of so many whole numbers, every how many an axis of a small panel shows: few enough not to touch."""
    return next((step for step in (1, 2, 5, 10) if count <= 7 * step), 20)


def stage_ticks(axes: Any, stages: int) -> None:
    """Whole numbers on the axis of stages 0 to `stages`, few enough not to touch."""
    axes.set_xticks(range(0, stages + 1, step_of(stages)))
    axes.set_xlim(-0.3, stages + 0.3)


def at_least(axes: Any, span: float, *, low: float | None = 0.0) -> None:
    """Widen the vertical axis to a span, so that noise does not look like a difference."""
    bottom, top = axes.get_ylim()
    if top - bottom < span:
        middle = fmean((bottom, top))
        bottom, top = middle - span / 2, middle + span / 2
    if low is not None and bottom < low:
        bottom, top = low - 0.03 * span, max(top, low + span)
    axes.set_ylim(bottom, top)


def shown_methods(styles: Mapping[str, dict[str, Any]], group: Mapping[str, Sequence[Experiment]]) -> list[str]:
    """The methods of a group, thin lines first, so that the others lie above them."""
    return sorted(group, key=lambda method: styles[method] is not OTHER)
