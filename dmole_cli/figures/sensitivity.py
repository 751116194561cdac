"""Sensitivity of every candidate site by task, a heat map for each tower (D-MoLE, arXiv 2506.11672, Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dmole_cli.artifacts.profile import SiteProfile
from dmole_cli.figures._drawing import DIVERGING, GRID
from dmole_cli.figures._naming import title_in
from dmole_cli.figures._panels import HeatMaps, Panel, arrange, draw_panels
from dmole_cli.figures.base import Columns, Experiment, Figure, Source
from dmole_cli.reports.towers import Tower, read_profiles, relative_sensitivity, towers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

READING = (
    "Orange sites change the task's loss more than the average site of their tower, purple ones less; compare rows to see "
    "whether tasks need experts at the same places."
)
DEFINITION = (
    "S(site, task) over its mean across the candidate sites of the {modality} tower, where S is the norm of the loss gradient "
    "with respect to the site's weights, accumulated over the profiled batches and divided by their number. The ratio makes "
    "tasks with large gradients comparable with others, and its logarithm keeps norms that differ by orders of magnitude "
    "apart; colours end at a quarter and four times the mean. Sites of the same kind in one block are added; grey: no site, "
    "or no gradient."
)
EXTREME = 2  # log2 of the ratio at which colours end, the same for all towers and runs


def figures(source: Source) -> Iterator[Figure]:
    """A heat map for each tower. Orders of the tasks that share their profiles have one in common."""
    distinct = {
        tuple(sorted(one.run.profile(task).resolve() for task in one.tasks)): one for one in reversed(source.examples)
    }
    for one in reversed(distinct.values()):
        profiles = read_profiles(one.run, one.tasks)
        for tower in towers(profiles.values()):
            yield _figure(one, tower, profiles, order=one.order if len(distinct) > 1 else "")


def sensitivities(tower: Tower, profiles: Mapping[str, Sequence[SiteProfile]]) -> Columns:
    """The drawn numbers in long form: task, kind, block, ratio to the tower's mean."""
    columns: dict[str, list] = {"task": [], "kind": [], "block": [], "sensitivity / mean": []}
    for task, profile in profiles.items():
        for kind, values in tower.grid(relative_sensitivity(profile, tower)).items():
            for block, value in zip(tower.blocks, values, strict=True):
                if value is not None:
                    for column, entry in zip(columns.values(), (task, kind, block, round(value, 4)), strict=True):
                        column.append(entry)
    return columns


def _figure(one: Experiment, tower: Tower, profiles: Mapping[str, Sequence[SiteProfile]], *, order: str) -> Figure:
    grids = {task: tower.grid(relative_sensitivity(profile, tower)) for task, profile in profiles.items()}
    panels = [
        Panel(
            kind,
            [[math.log2(value) if value else math.nan for value in grids[task][kind]] for task in profiles],
            list(profiles),
            [str(block) for block in tower.blocks],
        )
        for kind in tower.kinds
    ]
    placed = arrange(panels, cell=(0.34, 0.3))
    return Figure(
        name="-".join(["sensitivity", tower.modality, *([order] if order else [])]),
        title=title_in(order, f"Sensitivity of the {tower.modality} tower's sites"),
        reading=READING,
        definition=DEFINITION.format(modality=tower.modality),
        numbers=sensitivities(tower, profiles),
        alternative=f"Heat maps of {len(profiles)} tasks over {len(tower.blocks)} blocks, one for each kind of site. "
        + _largest(tower, grids),
        draw=partial(_draw, placed=placed),
        size=placed.size,
    )


def _largest(tower: Tower, grids: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """The most sensitive site of each task, in words."""
    found = []
    for task, grid in grids.items():
        values = [(v, kind, b) for kind in tower.kinds for b, v in zip(tower.blocks, grid[kind], strict=True) if v]
        if values:
            value, kind, block = max(values, key=lambda entry: entry[0])
            found.append(f"{task} {kind} of block {block} ({value:.1f} times the mean)")
    return f"Most sensitive: {'; '.join(found)}." if found else "No gradient reached this tower."


def _draw(canvas: Canvas, *, placed: HeatMaps) -> None:
    bar = draw_panels(
        canvas, placed, below="block", beside="task", scale="times the mean", background=GRID, cmap=f"{DIVERGING}_r",
        vmin=-EXTREME, vmax=EXTREME,
    )  # fmt: skip
    bar.set_yticks(range(-EXTREME, EXTREME + 1), ["\u2264 1/4", "1/2", "1", "2", "\u2265 4"])
