"""The score matrix of each method as a heat map."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import heat_map
from dmole_cli.figures.base import Experiment, Figure, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

READING = (
    "Read a column from top to bottom: a task's score rises at its own row, and every loss below it is forgetting."
)
DEFINITION = (
    "R[s,i], in points: score of task i on its {split} split after the first s tasks were trained; "
    "row 0 is the pretrained backbone."
)


def figures(source: Source) -> Iterator[Figure]:
    """A heat map for each example."""
    for one in source.examples:
        if any(value is not None for row in one.report.matrix for value in row):
            yield _matrix(one)


def _matrix(one: Experiment) -> Figure:
    matrix = one.report.matrix
    rows = [f"{stage} {name}" for stage, name in enumerate(("backbone", *one.tasks))]
    numbers: dict[str, list[Any]] = {"after": rows}
    numbers |= {task: [row[index] for row in matrix] for index, task in enumerate(one.tasks)}
    last, bwt = one.report.mean["last"], one.report.mean["bwt"]
    means = ", ".join(f"{name} {value:.1f}" for name, value in (("Last", last), ("BWT", bwt)) if value is not None)
    return Figure(
        name=f"scores-matrix{'-' if one.order else ''}{one.order}",
        title=f"Score matrix of {one.method}" + (f", order {one.order}" if one.order else ""),
        reading=READING,
        definition=DEFINITION.format(split=one.split),
        numbers=numbers,
        alternative=f"Heat map of {len(one.tasks)} tasks over {len(matrix)} stages; means: {means or 'incomplete'}.",
        draw=partial(_draw, matrix=matrix, rows=rows, tasks=list(one.tasks)),
        size=(2.2 + 0.85 * len(one.tasks), 1.1 + 0.38 * len(matrix)),
    )


def _draw(canvas: Canvas, *, matrix: Any, rows: list[str], tasks: list[str]) -> None:
    axes = canvas.subplots()
    values = [[float("nan") if value is None else value for value in row] for row in matrix]
    mesh = heat_map(axes, values, rows=rows, columns=tasks, text=".1f", vmin=0, vmax=100)
    axes.xaxis.tick_top()
    axes.set_ylabel("after training")
    canvas.colorbar(mesh, ax=axes, label="points", shrink=0.8)
