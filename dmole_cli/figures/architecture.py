"""How the architecture evolves: where each task's experts are, and how many each block holds (D-MoLE, Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dmole_cli.artifacts.allocation import ranks_of, read_allocation
from dmole_cli.figures._drawing import GRID, SERIES
from dmole_cli.figures._naming import named, titled
from dmole_cli.figures._panels import HeatMaps, Panel, arrange, draw_panels
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.towers import Tower, read_profiles, towers
from dmole_cli.settings.model import AUTO

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

READING_SITES = "A row is what one task added: each filled rectangle is a site that got an expert for it{ranks}."
BY_SENSITIVITY = (
    "The sites of the task's allocation: candidate sites of a tower in the order of their sensitivity, until the share of the "
    "budget that the curriculum gave the tower is spent."
)
BY_GAIN = (
    "The ranks of the task's allocation with rank auto: they start at 0, and the next one goes to the site of the tower where it "
    "gains most per parameter by the site's sensitivity, until the share of the budget that the curriculum gave the tower is "
    "spent; what both towers leave goes to further ranks of either. A site of rank 0 has no expert."
)
DEFINITION_SITES = "{rules} Several sites of the same kind in one block share a rectangle{sums}; grey: no expert."
READING_BLOCKS = "Read a column from top to bottom: a block's number grows whenever a task places experts in it."
DEFINITION_BLOCKS = (
    "Number of experts in a block after the first s tasks: its sites in the allocations of these tasks, summed over the tasks, "
    "because every task adds one expert at each of its sites."
)
DEFINITION_BLOCKS_OF_RANKS = (
    "Sum of the ranks of the experts in a block after the first s tasks: those of its sites in the allocations of these tasks, "
    "which give sites different ranks."
)
DIGIT, LEGIBLE = 0.1, 0.3  # inches: of a digit of a number, and the narrowest column with numbers
NUMBERS = 1000  # as many values have their numbers written on them: each of them needs 600 bytes
# Shades of blue from a rank of 1 on: darker than the background of sites without an expert, also in grey.
SHADES = ("Blues", 0.45, 1.0)


@dataclass(frozen=True)
class Places:
    """Where the experts of an example are.

    Attributes:
        ranks: task -> site -> rank of its expert, for the tasks that have an allocation.
        adaptive: tasks whose allocation has rank auto.
        differ: whether the sites of any task have different ranks.
        note: which of the tasks have no expert yet; empty for none.
    """

    ranks: Mapping[str, Mapping[str, int]]
    adaptive: frozenset[str]
    differ: bool
    note: str

    def by_block(self, tower: Tower) -> list[list[int]]:
        """Of each block of a tower after every task, the number of experts; the sum of their ranks where these differ.

        Returns:
            [tasks][blocks].
        """
        counts, rows = dict.fromkeys(tower.blocks, 0), []
        for ranks in self.ranks.values():
            for site, rank in ranks.items():
                if site in tower.places:
                    counts[tower.places[site][1]] += rank if self.differ else 1
            rows.append(list(counts.values()))
        return rows


def figures(source: Source) -> Iterator[Figure]:
    """Sites of each tower, and numbers of experts per block, for each example whose experts were allocated.

    Where the sites of a task have different ranks, ranks take the place of numbers of experts.
    """
    for one in source.examples:
        places = places_of(one)
        found = towers(read_profiles(one.run, places.ranks).values())
        if found:
            yield from _sites(one, found, places)
            yield _blocks(one, found, places)


def places_of(one: Experiment) -> Places:
    """The places of an example's experts, and their ranks.

    Raises:
        ArtifactError: an allocation is damaged.
    """
    paths = {task: one.run.allocation(task, one.method) for task in one.tasks} if one.kind.uses_allocation else {}
    documents = {task: read_allocation(path)[0] for task, path in paths.items() if path.is_file()}
    ranks = {task: ranks_of(document) for task, document in documents.items()}
    adaptive = frozenset(task for task, document in documents.items() if document["rank"] == AUTO)
    waiting = [task for task in documents if not one.run.expert(task, one.method).is_file()]
    note = f"Allocated, but not trained yet: {', '.join(waiting)}." if waiting else ""
    return Places(ranks, adaptive, any(len(set(own.values())) > 1 for own in ranks.values()), note)


def _sites(one: Experiment, found: Sequence[Tower], places: Places) -> Iterator[Figure]:
    shown = [_panels(tower, places) for tower in found]
    # The same shades in all towers, so that they can be compared.
    highest = max((value for panels in shown for value in _values(panels)), default=1)
    for tower, panels in zip(found, shown, strict=True):
        yield _sites_of_tower(one, tower, places, panels, highest)


def _panels(tower: Tower, places: Places) -> list[Panel]:
    """A panel for each kind of site [tasks, blocks]: 1 where there is an expert; where ranks differ, its rank."""
    # With one rank, several sites of a kind in one block look like one.
    grids = {
        task: tower.grid(ranks if places.differ else dict.fromkeys(ranks, 1.0)) for task, ranks in places.ranks.items()
    }
    return [
        Panel(
            kind,
            [
                [math.nan if value is None else value if places.differ else 1.0 for value in grid[kind]]
                for grid in grids.values()
            ],
            list(grids),
            [str(block) for block in tower.blocks],
        )
        for kind in tower.kinds
    ]


def _values(panels: Iterable[Panel]) -> list[int]:
    return [int(value) for panel in panels for row in panel.values for value in row if not math.isnan(value)]


def _sites_of_tower(one: Experiment, tower: Tower, places: Places, panels: Sequence[Panel], highest: int) -> Figure:
    own = {task: {s: rank for s, rank in sites.items() if s in tower.places} for task, sites in places.ranks.items()}
    numbers: dict[str, list] = {
        "task": [task for task, sites in own.items() for _ in sites],
        "site": [site for sites in own.values() for site in sites],
    }
    counts = ", ".join(f"{task} {_in_words(sites.values(), ranks=places.differ)}" for task, sites in own.items())
    title, ranks, sums = f"Sites of the {tower.modality} tower that got experts", "", ""
    if places.differ:
        numbers["rank"] = [rank for sites in own.values() for rank in sites.values()]
        title = f"Sites and ranks of the {tower.modality} tower's experts"
        ranks, sums = "; the darker, the higher its rank", ", and their ranks are added"
        placed = arrange(panels, cell=(0.34, 0.3), least=_width(highest))
        few = math.prod(map(len, (panels, own, tower.blocks))) <= NUMBERS
        if not (written := few and _fits(placed, highest)):
            placed = arrange(panels, cell=(0.34, 0.3))
        draw = partial(_draw_ranks, placed=placed, highest=highest, written=written)
    else:
        placed = arrange(panels, cell=(0.34, 0.3), scale=0.0)
        draw = partial(_draw_sites, placed=placed)
    return Figure(
        name=named(one, f"architecture-{tower.modality}"),
        title=titled(one, title),
        reading=READING_SITES.format(ranks=ranks),
        definition=DEFINITION_SITES.format(rules=_rules(places), sums=sums),
        numbers=numbers,
        alternative=f"Sites with a new expert, of {len(tower.places)} candidates: {counts}.",
        draw=draw,
        size=placed.size,
        note=places.note,
    )


def _rules(places: Places) -> str:
    """How sites were chosen, in words: two ways where only some of the tasks were allocated with rank auto."""
    if not places.adaptive:
        return BY_SENSITIVITY
    if places.adaptive == places.ranks.keys():
        return BY_GAIN
    return f"{', '.join(task for task in places.ranks if task in places.adaptive)}: {BY_GAIN} Other tasks: {BY_SENSITIVITY}"


def _in_words(own: Collection[int], *, ranks: bool) -> str:
    """The number of sites, and their ranks."""
    if not ranks or not own:
        return str(len(own))
    return f"{len(own)} (rank {min(own)})" if min(own) == max(own) else f"{len(own)} (ranks {min(own)} to {max(own)})"


def _width(highest: int) -> float:
    """Inches of a column with numbers up to this one."""
    return max(LEGIBLE, DIGIT * len(str(highest)))


def _fits(placed: HeatMaps, highest: int) -> bool:
    return placed.cell[0] >= _width(highest) - 0.01


def _draw_ranks(canvas: Canvas, *, placed: HeatMaps, highest: int, written: bool) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name, first, last = SHADES
    colours = ListedColormap(colormaps[name](np.linspace(first, last, 256)))
    text = "g" if written else None
    bar = draw_panels(
        canvas, placed, below="block", beside="task", scale="rank", text=text, background=GRID, cmap=colours, vmin=1, vmax=highest
    )  # fmt: skip
    bar.set_yticks(sorted({round(tick) for tick in np.linspace(1, highest, 5)}))


def _draw_sites(canvas: Canvas, *, placed: HeatMaps) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([SERIES[0]])
    draw_panels(canvas, placed, below="block", beside="task", background=GRID, cmap=colours, vmin=0, vmax=1)


def _blocks(one: Experiment, found: Sequence[Tower], places: Places) -> Figure:
    rows = [f"{stage} {task}" for stage, task in enumerate(places.ranks, start=1)]
    counts = {tower.modality: places.by_block(tower) for tower in found}
    panels = [
        Panel(tower.modality, counts[tower.modality], rows, [str(block) for block in tower.blocks]) for tower in found
    ]
    highest = max(_values(panels))
    placed = arrange(panels, cell=(0.42, 0.3), least=_width(highest))
    numbers: dict[str, list] = {"after": rows}
    for tower in found:
        for index, block in enumerate(tower.blocks):
            numbers[f"{tower.modality} {block}"] = [row[index] for row in counts[tower.modality]]
    most = [
        f"{tower.modality} block {block} ({number})"
        for tower in found
        for number, block in [max(zip(counts[tower.modality][-1], tower.blocks, strict=True))]
    ]
    what, most_of = (
        ("Sum of the experts' ranks", "highest sum of ranks") if places.differ else ("Experts", "most experts")
    )
    return Figure(
        name=named(one, "architecture-blocks"),
        title=titled(one, f"{what} in each block after every task"),
        reading=READING_BLOCKS,
        definition=DEFINITION_BLOCKS_OF_RANKS if places.differ else DEFINITION_BLOCKS,
        numbers=numbers,
        alternative=f"Heat maps of {len(rows)} stages over the blocks of each tower; {most_of} after the last: "
        f"{', '.join(most)}.",
        draw=partial(
            _draw_blocks, placed=placed, highest=highest, scale="sum of ranks" if places.differ else "experts"
        ),
        size=placed.size,
        note=places.note,
    )


def _draw_blocks(canvas: Canvas, *, placed: HeatMaps, highest: int, scale: str) -> None:
    from matplotlib.ticker import MaxNLocator

    text = "g" if _fits(placed, highest) else None
    bar = draw_panels(
        canvas, placed, below="block", beside="after training", scale=scale, text=text, vmin=0, vmax=max(highest, 1)
    )
    bar.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
