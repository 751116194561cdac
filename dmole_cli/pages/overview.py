"""The first section of a page: the tables of `dmole report`, and the means over seeds of a comparison."""

from __future__ import annotations

from collections.abc import Iterator

from dmole_cli.figures.base import Experiment, Source
from dmole_cli.pages.grids import Cell, PageTable, of_grid
from dmole_cli.reports.continual import AVERAGES, FORMULAS
from dmole_cli.reports.experiments import spread
from dmole_cli.reports.tables import MISSING, TITLES, for_report

SHOWN = TITLES | {"mft": "MFT", "maa": "MAA"}


def overview(source: Source) -> list[PageTable]:
    """The tables: of a comparison, one per order; of a run, those of its reports that have a value."""
    if any(one.order for one in source.experiments):
        return list(_means(source))
    reports = [one.report for one in source.experiments]
    grids = for_report(reports, "overview") if any(report.stages for report in reports) else []
    return [of_grid(grid) for grid in grids]


def _means(source: Source) -> Iterator[PageTable]:
    """Means over seeds ± their sample standard deviation, an order at a time: orders are never averaged."""
    rows = source.groups()
    notes = [
        "Mean over the seeds ± the sample standard deviation, in points.",
        *(text for name, text in (FORMULAS | AVERAGES).items() if name in SHOWN),
    ]
    for order, methods in rows.items():
        cells = [
            [Cell(name, tag="th"), Cell(str(len(found)), len(found), number=True)]
            + [_mean(quantity, found) for quantity in SHOWN]
            for name, found in methods.items()
        ]
        tasks = next(iter(methods.values()))[0].tasks
        title, below = f"Order {order}: {' → '.join(tasks)}", notes if order == list(rows)[-1] else ()
        yield PageTable(["method", "seeds", *SHOWN.values()], cells, title, below)


def _mean(quantity: str, experiments: list[Experiment]) -> Cell:
    found = spread(one.report.mean[quantity] for one in experiments)
    if found is None or found.seeds < len(experiments):
        return Cell(MISSING, number=True)
    deviation = "" if found.deviation is None else f" ± {found.deviation:.1f}"
    return Cell(f"{found.mean:.1f}{deviation}", found.mean, number=True)


def citations(source: Source) -> str:
    """What a paper needs to say about the runs of a source: of a comparison, about the example of every order."""
    from dmole_cli.reports.citations import citation_text

    texts = [citation_text(one.run, one.tasks) for one in source.examples]
    named = [f"Order {one.order}, seed {one.seed}\n\n" if one.order else "" for one in source.examples]
    return "\n\n".join(name + text for name, text in zip(named, texts, strict=True))
