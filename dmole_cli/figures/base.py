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
from dmole_cli.artifacts.kinds import EVALUATION
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tables import read_table
from dmole_cli.methods.base import Method
from dmole_cli.progress import Track, quiet
from dmole_cli.reports.collect import MethodReport
from dmole_cli.reports.evaluations import method_of

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure as Canvas

    from dmole_cli.data.tasks import Tasks

# Order of the figures in a page.
ORDER = (
    "scores", "methods", "sensitivity", "architecture", "activation", "routing", "features", "knowledge", "training", "costs",
)  # fmt: skip

# column -> values; the numbers of a figure.
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Experiment:
    """One method with one order of the tasks and one seed.

    Attributes:
        method: its label, `d-mole@oracle` for another routing.
        order: name of the order in a comparison; empty for a run directory.
        seed: of the run.
        run: the run directory.
        report: scores, routing and parameters.
        split: the evaluated split.
        variant: name of the row in a comparison, where it is not the method's.
    """

    method: str
    order: str
    seed: int
    run: Run
    report: MethodReport
    split: str = "test"
    variant: str = ""

    @property
    def name(self) -> str:
        """What it is called in tables and legends."""
        return self.variant or self.method

    @property
    def tasks(self) -> tuple[str, ...]:
        """The stream, in order."""
        return self.report.tasks

    @property
    def kind(self) -> Method:
        """The method itself."""
        return method_of(self.method)

    def answers(self, after: int, task: str, columns: Sequence[str]) -> pa.Table | None:
        """Columns of the evaluation of a task after so many trained tasks; None where there is none of this stream.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.run.evaluation(self.method, after, task, self.split)
        if not path.is_file():
            return None
        table, header = read_table(path, EVALUATION)
        current = header.settings.get("learned") == self.kind.learned(self.tasks, after, task)
        return table.select(list(columns)) if current else None


@dataclass(frozen=True)
class Source:
    """What a page and its figures are made from.

    Attributes:
        title: of the page.
        experiments: all methods, orders and seeds; in a run directory, those that were evaluated there.
        seed: of samples that are drawn for figures.
        data: the tasks, whose images are shown where they can be read; None if there is no configuration.
    """

    title: str
    experiments: Sequence[Experiment]
    seed: int = 0
    data: Tasks | None = None

    @property
    def examples(self) -> list[Experiment]:
        """What is shown of one run alone: of every order the main method with the lowest seed, else a method with routers.

        Empty where nothing was evaluated.
        """
        found = dict[str, Experiment]()
        for one in sorted(
            self.experiments, key=lambda one: (not one.kind.is_main, not one.kind.uses_routers, one.seed)
        ):
            if "@" not in one.method:
                found.setdefault(one.order, one)
        return [found[order] for order in sorted(found)]


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
        draw: draws on an empty canvas, in the inks of `drawing.py`.
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
