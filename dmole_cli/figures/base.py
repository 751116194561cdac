"""What a figure is, and what figures are drawn from.

A file of `figures/` has a function `figures(source)` that yields the figures of its kind; none where the artifacts for it are
missing. The file's name is the figure's anchor in a page and the beginning of the names of its files. Files import matplotlib
and other heavy packages inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmole_cli import catalog
from dmole_cli.progress import Track, quiet
from dmole_cli.reports.experiments import Experiment as Experiment
from dmole_cli.reports.experiments import Source as Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Order of the figures in a page.
ORDER = (
    "scores", "methods", "sensitivity", "architecture", "activation", "routing", "features", "knowledge", "training", "costs",
)  # fmt: skip

# column -> values; the numbers of a figure.
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """One figure with everything that a reader needs.

    Attributes:
        name: of its files and its anchor, unique in a page: the name of the module, and where it yields several figures a
            suffix, `sensitivity-vision`.
        title: heading.
        reading: a sentence that says how to read it.
        definition: what is drawn, with formulas.
        numbers: the drawn numbers.
        alternative: text for those who do not see it: what it shows, and the main result in numbers.
        draw: draws on an empty canvas, in the inks of `_drawing.py`.
        size: width and height in inches; at most 12.5 wide. 72 units of an inch are CSS pixels.
        note: what was left out or sampled; empty for nothing.
    """

    name: str
    title: str
    reading: str
    definition: str
    numbers: Columns
    alternative: str
    draw: Callable[[Canvas], None]
    size: tuple[float, float] = (9.0, 4.5)
    note: str = ""


def all_figures(source: Source, track: Track = quiet) -> Iterator[tuple[str, list[Figure]]]:
    """(file, its figures) of this shelf, in the order of a page; without files that have nothing to draw.

    Args:
        source: what they are drawn from.
        track: shows progress.

    Raises:
        DmoleError: an artifact is damaged.
    """
    files = catalog.names("figures")
    files.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    for name in track(files, "figures", len(files)):
        if found := list(catalog.load("figures", name).figures(source)):
            yield name, found
