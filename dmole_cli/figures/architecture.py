"""How the architecture evolves: where each task's experts are, and how many each block holds (D-MoLE, Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.figures._drawing import GRID, SERIES
from dmole_cli.figures._naming import named, titled
from dmole_cli.figures._panels import HeatMaps, Panel, arrange, draw_panels
from dmole_cli.figures.base import Columns, Experiment, Figure, Source
from dmole_cli.reports.towers import Tower, read_profiles, towers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

READING_SITES = "A row is what one task added: each filled rectangle is a site that got an expert for it."
DEFINITION_SITES = (
    "The sites of the task's allocation: candidate sites of a tower in the order of their sensitivity, until the share of the "
    "budget that the curriculum gave the tower is spent. Several sites of the same kind in one block share a rectangle; "
    "grey: no expert."
)
READING_BLOCKS = "Read a column from top to bottom: a block's number grows whenever a task places experts in it."
DEFINITION_BLOCKS = (
    "Number of experts in a block after the first s tasks: its sites in the allocations of these tasks, summed over the tasks, "
    "because every task adds one expert at each of its sites."
)
LEGIBLE = 0.3  # inches of a column with texts


def figures(source: Source) -> Iterator[Figure]:
    """Sites of each tower, and numbers of experts per block, for each example whose experts were allocated."""
    for one in source.examples:
        places = allocated_sites(one) if one.kind.uses_allocation else {}
        found = towers(read_profiles(one.run, places).values())
        if found:
            waiting = [task for task in places if not one.run.expert(task, one.method).is_file()]
            note = f"Allocated, but not trained yet: {', '.join(waiting)}." if waiting else ""
            yield from (_sites(one, tower, places, note) for tower in found)
            yield _blocks(one, found, places, note)


def allocated_sites(one: Experiment) -> dict[str, list[str]]:
    """Task -> sites of its experts, for the tasks that have an allocation.

    Raises:
        ArtifactError: an allocation is damaged.
    """
    paths = {task: one.run.allocation(task, one.method) for task in one.tasks}
    return {task: read_allocation(path)[0]["sites"] for task, path in paths.items() if path.is_file()}


def experts_by_block(tower: Tower, places: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Number of experts in each block of a tower after every task [tasks][blocks]."""
    counts, rows = dict.fromkeys(tower.blocks, 0), []
    for sites in places.values():
        for site in sites:
            if site in tower.places:
                counts[tower.places[site][1]] += 1
        rows.append(list(counts.values()))
    return rows


def _sites(one: Experiment, tower: Tower, places: Mapping[str, Sequence[str]], note: str) -> Figure:
    grids = {task: tower.grid(dict.fromkeys(sites, 1.0)) for task, sites in places.items()}
    panels = [
        Panel(
            kind,
            [[math.nan if value is None else 1.0 for value in grids[task][kind]] for task in places],
            list(places),
            [str(block) for block in tower.blocks],
        )
        for kind in tower.kinds
    ]
    own = {task: [site for site in sites if site in tower.places] for task, sites in places.items()}
    total = len(tower.places)
    numbers: Columns = {
        "task": [task for task, sites in own.items() for _ in sites],
        "site": [site for sites in own.values() for site in sites],
    }
    placed = arrange(panels, cell=(0.34, 0.3), scale=0.0)
    counts = ", ".join(f"{task} {len(sites)}" for task, sites in own.items())
    return Figure(
        name=named(one, f"architecture-{tower.modality}"),
        title=titled(one, f"Sites of the {tower.modality} tower that got experts"),
        reading=READING_SITES,
        definition=DEFINITION_SITES,
        numbers=numbers,
        alternative=f"Sites with a new expert, of {total} candidates: {counts}.",
        draw=partial(_draw_sites, placed=placed),
        size=placed.size,
        note=note,
    )


def _draw_sites(canvas: Canvas, *, placed: HeatMaps) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([SERIES[0]])
    draw_panels(canvas, placed, below="block", beside="task", background=GRID, cmap=colours, vmin=0, vmax=1)


def _blocks(one: Experiment, found: Sequence[Tower], places: Mapping[str, Sequence[str]], note: str) -> Figure:
    rows = [f"{stage} {task}" for stage, task in enumerate(places, start=1)]
    counts = {tower.modality: experts_by_block(tower, places) for tower in found}
    panels = [
        Panel(tower.modality, counts[tower.modality], rows, [str(block) for block in tower.blocks]) for tower in found
    ]
    placed = arrange(panels, cell=(0.42, 0.3), least=LEGIBLE)
    numbers: dict[str, list] = {"after": rows}
    for tower in found:
        for index, block in enumerate(tower.blocks):
            numbers[f"{tower.modality} {block}"] = [row[index] for row in counts[tower.modality]]
    most = [
        f"{tower.modality} block {block} ({number})"
        for tower in found
        for number, block in [max(zip(counts[tower.modality][-1], tower.blocks, strict=True))]
    ]
    return Figure(
        name=named(one, "architecture-blocks"),
        title=titled(one, "Experts in each block after every task"),
        reading=READING_BLOCKS,
        definition=DEFINITION_BLOCKS,
        numbers=numbers,
        alternative=f"Heat maps of {len(rows)} stages over the blocks of each tower; most experts after the last: "
        f"{', '.join(most)}.",
        draw=partial(_draw_blocks, placed=placed),
        size=placed.size,
        note=note,
    )


def _draw_blocks(canvas: Canvas, *, placed: HeatMaps) -> None:
    from matplotlib.ticker import MaxNLocator

    most = max(value for panel in placed.panels for row in panel.values for value in row)
    text = "g" if placed.cell[0] >= LEGIBLE - 0.01 else None
    bar = draw_panels(
        canvas, placed, below="block", beside="after training", scale="experts", text=text, vmin=0, vmax=max(most, 1)
    )
    bar.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
