"""Several heat maps side by side, in as many lines as their width needs, with one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Inches: the widest figure, a letter of a label, a line of labels, and the scale of colours with its own labels.
WIDEST, LETTER, LINE, SCALE = 12.4, 0.09, 0.24, 1.1
LOWEST = 1.1  # of all panels together, for the labels beside them
HIGHEST = 4.5  # of the scale of colours
GAP = 0.22  # between panels
TITLE = 0.34  # of a panel, with the space above it


@dataclass(frozen=True)
class Panel:
    """One heat map.

    Attributes:
        title: above it.
        values: [rows, columns], nan for none.
        rows, columns: labels.
    """

    title: str
    values: Any
    rows: Sequence[str]
    columns: Sequence[str]


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps with their places.

    Attributes:
        panels: in reading order; all have the same number of rows.
        across: panels of a line.
        cell: width and height of a value, inches.
        size: of the figure, inches.
        upright: whether the labels of columns are written upwards.
    """

    panels: Sequence[Panel]
    across: int
    cell: tuple[float, float]
    size: tuple[float, float]
    upright: bool

    @property
    def lines(self) -> int:
        """Lines of panels."""
        return math.ceil(len(self.panels) / self.across)


def arrange(
    panels: Sequence[Panel],
    *,
    cell: tuple[float, float],
    least: float = 0.09,
    every: bool = False,
    scale: float = SCALE,
) -> HeatMaps:
    """Give panels their places, as wide as `cell` where there is room.

    Args:
        panels: at least one.
        cell: greatest width, and height of a value, inches.
        least: width below which a further line is started instead.
        every: whether every column has its label, upright where it is wider than the column; otherwise labels are thinned.
        scale: width of the scale of colours, inches; 0 for none.
    """
    columns = max(len(panel.columns) for panel in panels)
    names = 0.35 + LETTER * max(len(name) for panel in panels for name in panel.rows)
    room = WIDEST - names - scale
    least = max(least, LETTER * max(len(panel.title) for panel in panels) / columns)
    across = max(1, min(len(panels), int(room / (columns * least + GAP))))
    across = math.ceil(len(panels) / math.ceil(len(panels) / across))
    width = min(max(cell[0], least), (room - across * GAP) / (across * columns))
    letters = max(len(name) for panel in panels for name in panel.columns)
    upright = every and letters * LETTER > width
    below = LETTER * letters if upright else LINE
    lines = math.ceil(len(panels) / across)
    tall = max(cell[1], LOWEST / (lines * len(panels[0].rows)))
    height = lines * (len(panels[0].rows) * tall + TITLE) + below + 0.5
    total = names + scale + across * (columns * width + GAP)
    return HeatMaps(panels, across, (width, tall), (round(min(total, 12.5), 2), round(height, 2)), upright)


def draw_panels(
    canvas: Canvas,
    placed: HeatMaps,
    *,
    below: str,
    beside: str,
    scale: str = "",
    text: str | None = None,
    background: str = "none",
    every: bool = False,
    **options: Any,
) -> Any:
    """Draw heat maps; returns the axes of the scale of colours, None without one.

    Args:
        canvas: of the figure.
        placed: the panels.
        below, beside: what columns and rows are.
        scale: what the colours are, beside the scale; empty for no scale.
        text: format of the values; None for no texts.
        background: colour of missing values.
        every: as for `arrange`.
        **options: of `heat_map`.
    """
    grid = canvas.subplots(placed.lines, placed.across, squeeze=False)
    mesh: Any = None
    for index, axes in enumerate(grid.flat):
        if index >= len(placed.panels):
            axes.set_axis_off()
            continue
        panel, first = placed.panels[index], index % placed.across == 0
        last = index + placed.across >= len(placed.panels)
        letters = max(len(name) for name in panel.columns)
        step = 1 if every else math.ceil(max(letters * LETTER + 0.06, LINE) / placed.cell[0])
        columns = thinned(panel.columns, step if last else 0)
        rows = thinned(panel.rows, math.ceil(LINE / placed.cell[1] - 1e-6) if first else 0)
        mesh = heat_map(axes, panel.values, rows=rows, columns=columns, text=text, **options)
        axes.set_facecolor(background)
        axes.set_title(panel.title, loc="left")
        if placed.upright:
            axes.tick_params(axis="x", rotation=90)
    canvas.supxlabel(below, fontsize="medium")
    canvas.supylabel(beside, fontsize="medium")
    if not scale:
        return None
    # Beside the uppermost panels: as high as the figure, it would be a scale to scroll along.
    shrink = min(1.0, HIGHEST / placed.size[1])
    aspect = max(8.0, 4 * shrink * placed.size[1])
    bar = canvas.colorbar(mesh, ax=list(grid.flat), label=scale, aspect=aspect, pad=0.01, shrink=shrink, anchor=(0, 1))
    return bar.ax


def thinned(labels: Sequence[str], step: int) -> list[str]:
    """Every `step`-th label, the others empty; 0 for none. The last label among numbers that is none stays."""
    last = len(labels) - 1
    kept = step > 0 and not labels[last].isdecimal()
    shown = {index for index in range(0, last + 1, step) if not kept or index + step <= last} if step else set()
    return [label if index in shown or (kept and index == last) else "" for index, label in enumerate(labels)]
