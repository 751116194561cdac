"""One HTML file with tables, figures and case studies; it needs no other file, and contacts no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from dmole_cli.artifacts.files import write_text
from dmole_cli.figures import _drawing
from dmole_cli.figures.base import Figure, Source, all_figures
from dmole_cli.pages.cases import PER_KIND, ShownCase, shown_cases
from dmole_cli.pages.grids import PageTable, of_numbers
from dmole_cli.pages.overview import citations, overview
from dmole_cli.progress import Track
from dmole_cli.reports.cases import KINDS

# File of the figures' shelf -> heading of its section.
HEADINGS = {
    "scores": "Scores",
    "methods": "Methods against each other",
    "sensitivity": "Sensitivity of the layers",
    "architecture": "Where experts go",
    "activation": "When experts fire",
    "routing": "Routing",
    "features": "Features and their reconstructions",
    "knowledge": "Knowledge against format",
    "training": "Training",
    "costs": "Costs",
}
PROOF = (
    "This page was made from stored artifacts alone. Every artifact states the digests of what it was made from; "
    "dmole verify checks them all, and scores the predictions again."
)


@dataclass(frozen=True)
class Drawn:
    """A figure as a page has it.

    Attributes:
        figure: what it is.
        svg: its drawing.
        width: in CSS pixels at its own size.
        numbers: the drawn numbers.
    """

    figure: Figure
    svg: str
    width: int
    numbers: PageTable


@dataclass(frozen=True)
class PageSection:
    """A part of a page.

    Attributes:
        anchor: for links.
        title: heading.
        tables: first.
        figures: below them.
    """

    anchor: str
    title: str
    tables: Sequence[PageTable] = ()
    figures: Sequence[Drawn] = ()


@dataclass(frozen=True)
class Page:
    """The contents of a page.

    Attributes:
        title: of the page.
        summary: a sentence: methods, tasks, seeds and split.
        sections: tables and figures.
        cases: case studies.
        citation: what a paper needs.
        split: the evaluated split.
        seed: with which cases are drawn.
        per_kind: number of cases of a kind at most.
        proof: how the page can be checked.
        kind_meanings: kind of case -> its definition.
    """

    title: str
    summary: str
    sections: Sequence[PageSection]
    cases: Sequence[ShownCase]
    citation: str
    split: str
    seed: int
    per_kind: int = PER_KIND
    proof: str = PROOF
    kind_meanings: Mapping[str, str] = field(default_factory=lambda: KINDS)

    @property
    def case_tasks(self) -> list[str]:
        """Tasks with a case, in order."""
        return list(dict.fromkeys(case.task for case in self.cases))

    @property
    def case_kinds(self) -> list[str]:
        """Kinds with a case."""
        return [kind for kind in self.kind_meanings if any(kind in case.kinds for case in self.cases)]


def write_page(path: Path, source: Source, *, track: Track) -> None:
    """Write a page; an existing file is replaced once the page is complete.

    Args:
        path: the HTML file.
        source: what it shows.
        track: shows progress.

    Raises:
        DmoleError: an artifact is damaged, or the file cannot be written.
    """
    write_text(path, rendered(_page(source, track)))


def rendered(page: Page) -> str:
    """The HTML of a page."""
    from jinja2 import Environment
    from markupsafe import Markup

    folder = files("dmole_cli.pages")
    style, script, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("style.css", "script.js", "page.jinja")
    )
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(page=page, style=Markup(style), script=Markup(script))


def _page(source: Source, track: Track) -> Page:
    first = source.experiments[0]
    return Page(
        title=source.title,
        summary=_summary(source),
        sections=[PageSection("overview", "Overview", overview(source)), *_sections(source, track)],
        cases=shown_cases(source),
        citation=citations(source),
        split=first.split,
        seed=source.seed,
    )


def _summary(source: Source) -> str:
    methods = list(dict.fromkeys(one.name for one in source.experiments))
    seeds = sorted({one.seed for one in source.experiments})
    orders = list(dict.fromkeys(one.order for one in source.experiments if one.order))
    tasks = source.experiments[0].tasks
    parts = [
        f"{len(methods)} method{'s' * (len(methods) > 1)} ({', '.join(methods)})",
        f"{len(tasks)} tasks ({' → '.join(tasks)})",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        *([f"orders {', '.join(orders)}"] if orders else []),
        f"{source.experiments[0].split} split",
    ]
    return "; ".join(parts) + "."


def _sections(source: Source, track: Track) -> Iterator[PageSection]:
    for name, figures in all_figures(source, track):
        yield PageSection(name, HEADINGS.get(name, name.capitalize()), figures=[_drawn(figure) for figure in figures])


def _drawn(figure: Figure) -> Drawn:
    from markupsafe import Markup

    width = round(72 * figure.size[0])
    return Drawn(figure, Markup(_drawing.svg(figure, inline=True)), width, of_numbers(figure.numbers))
