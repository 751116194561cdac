"""Turns figures into SVG and PNG: inks for light and dark pages, and palettes that colour-blind readers can tell apart.

Text stays text in SVG, so that it can be searched and copied. Drawings use the inks below instead of black, grey and white; a
page replaces them by its own variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dmole_cli.figures.base import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Text and axes, secondary text, lines of grids, and the background; as no other colour of a figure.
INK, FAINT, GRID, PAPER = "#1a1b1c", "#5b5c5d", "#d8d9da", "#fefdfc"
# Variables of a page, in their place.
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)", PAPER: "var(--paper)"}
# Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/, without black, and without yellow, which is too
# pale on white. Series beyond them repeat the colours with other line styles and markers.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P")
# Values from small to large, and differences around zero; both keep their order in grey and for colour-blind readers.
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
# Heat maps of more values than this, without texts, are images of a pixel per value: rectangles would need 250 bytes each.
DENSE = 200
TEXT = 11.5  # points, which are CSS pixels at the figure's own size


def series(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the n-th line of a plot."""
    turn = index // len(SERIES)
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": STYLES[turn % len(STYLES)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
    }


def on_colour(colour: Any) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = (float(part) for part in colour[:3])
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def heat_map(
    axes: Any, values: Any, *, rows: list[str], columns: list[str], text: str | None = None, **options: Any
) -> Any:
    """Draw a matrix as coloured rectangles, the first row at the top; missing values (nan) stay empty.

    Args:
        axes: of matplotlib.
        values: [rows, columns].
        rows, columns: their labels, empty for none.
        text: format of the value in each rectangle, such as `.1f`; None for no text.
        **options: of `pcolormesh` and `imshow`, such as `vmin`, `vmax`, `cmap`.
    """
    import numpy as np

    values = np.ma.masked_invalid(np.asarray(values, float))
    options = {"cmap": SEQUENTIAL, **options}
    if values.size > DENSE and text is None:
        height, width = values.shape
        mesh = axes.imshow(values, extent=(0, width, height, 0), aspect="auto", interpolation="none", **options)
    else:
        mesh = axes.pcolormesh(values, edgecolors=PAPER, linewidth=1, **options)
    axes.set(xlim=(0, values.shape[1]), ylim=(values.shape[0], 0))
    for set_ticks, labels in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        # No ticks without a label: their layout takes most of the time of large figures.
        places = [index for index, label in enumerate(labels) if label]
        set_ticks([index + 0.5 for index in places], [labels[index] for index in places])
    axes.tick_params(length=0)
    if text is not None:
        # Not part of the layout, which would measure every text several times.
        place = {"ha": "center", "va": "center", "in_layout": False}
        colours = mesh.cmap(mesh.norm(values))
        for (row, column), value in np.ma.ndenumerate(values):  # without missing ones
            axes.text(column + 0.5, row + 0.5, format(value, text), color=on_colour(colours[row, column]), **place)
    for side in axes.spines.values():
        side.set_visible(False)
    return mesh


@contextmanager
def drawn(figure: Figure) -> Iterator[Canvas]:
    """The canvas of a figure, drawn in the style of all figures.

    No window system is needed, and nothing of matplotlib's global state changes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": figure.name,
        "font.family": ["sans-serif"],
        "font.size": TEXT,
        "axes.titlesize": TEXT,
        "axes.labelsize": TEXT,
        "xtick.labelsize": TEXT,
        "ytick.labelsize": TEXT,
        "legend.fontsize": TEXT,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": FAINT,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
    }
    with mpl.rc_context(style):
        canvas = Canvas(figsize=figure.size, layout="constrained", facecolor="none")
        FigureCanvasAgg(canvas)
        figure.draw(canvas)
        yield canvas


def svg(figure: Figure, *, inline: bool = False) -> str:
    """The figure as SVG; the same figure gives the same text.

    Args:
        figure: what to draw.
        inline: for a page: without the XML declaration, with the page's variables instead of inks, and with ids that no other
            figure of the page has.
    """
    file = io.StringIO()
    with drawn(figure) as canvas:
        canvas.savefig(file, format="svg", metadata={"Date": None, "Title": figure.title, "Creator": "dmole"})
    text = file.getvalue()
    if not inline:
        return text
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", text)
    for ink, variable in VARIABLES.items():
        text = text.replace(ink, variable)
    return text


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, with twice the pixels of its size."""
    file = io.BytesIO()
    with drawn(figure) as canvas:
        canvas.savefig(file, format="png", dpi=144, facecolor=PAPER, metadata={"Software": None})
    return file.getvalue()
