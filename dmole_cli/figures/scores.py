"""The score matrix of each method as a heat map, and the scores of all methods over the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import INK, heat_map
from dmole_cli.figures._lines import (
    BOUND,
    Panels,
    at_least,
    legend,
    line_styles,
    note_on_others,
    shown_methods,
    stage_ticks,
    step_of,
)
from dmole_cli.figures._naming import name_in, title_in
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.experiments import Spread, matrix_over_seeds, seeds_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Group = Mapping[str, Sequence[Experiment]]
Means = list[list[float | None]]

READING = "Read a column from top to bottom: a task's score rises at its own row (outlined), and a loss below it is forgetting."
SMALL_READING = (
    "Each small matrix is read as the large one: a column that turns dark below the outlined diagonal was forgotten."
)
DEFINITION = (
    "R[s,i], in points: score of task i on its {split} split after the first s tasks were trained; "
    "row 0 is the pretrained backbone{seeds}."
)
NUMBERED = " Tasks by number: {tasks}."
CLIPPED = "Scores above 100 points have the colour of 100."
LINES_READING = (
    "Each panel is one task; the vertical line marks the stage after which it was trained. A line that falls to the right of it "
    "shows forgetting. Panels have their own scale, which covers at least 20 points."
)
LINES_DEFINITION = "R[s,i], in points, of task i on its {split} split over the stages s (0 is the pretrained backbone)."
LINES_BOUND = " The dashed line is R[i,i] of {bound}, which trains the task alone from the pretrained backbone."
LINES_SEEDS = " Lines are means over the seeds, bands reach from the lowest to the highest seed."
WRITTEN = 6  # small matrices with their values as text; more would be a wall of numbers
SPAN = 20.0  # points that an axis covers at least


def figures(source: Source) -> Iterator[Figure]:
    """For every order: the main method's matrix, those of the other sequential methods, and the scores over the stages."""
    for order, group in source.groups().items():
        main = next((one.name for one in source.examples if one.order == order), "")
        scored = {method: found for method, found in group.items() if _has_scores(found)}
        if main in scored:
            yield _matrix(order, main, scored[main])
        others = [
            method
            for method, experiments in scored.items()
            if method != main and experiments[0].kind.protocol == "sequential"
        ]
        if others:
            yield _matrices(order, {method: scored[method] for method in others})
        if scored:
            yield _over_stages(order, scored, line_styles(source))


def means(matrix: Sequence[Sequence[Spread | None]]) -> Means:
    """The means of a matrix over seeds."""
    return [[None if entry is None else entry.mean for entry in row] for row in matrix]


def curves_of(experiments: Sequence[Experiment]) -> list[list[Spread | None]]:
    """Each task's scores over the stages.

    Of a method that trains each task alone, its own score at every stage; of one that trains all at once, the last stage only.

    Args:
        experiments: the seeds of one method.
    """
    matrix = matrix_over_seeds(experiments)
    stages, columns = len(matrix), range(len(matrix) - 1)
    protocol = experiments[0].kind.protocol
    if protocol == "per-task":
        return [[matrix[column + 1][column]] * stages for column in columns]
    if protocol == "joint":
        return [[*([None] * (stages - 1)), matrix[-1][column]] for column in columns]
    return [[row[column] for row in matrix] for column in columns]


def _has_scores(experiments: Sequence[Experiment]) -> bool:
    return any(value is not None for one in experiments for row in one.report.matrix for value in row)


def _title(text: str, order: str, experiments: Sequence[Experiment] = ()) -> str:
    return title_in(order, text) + seeds_text(experiments)


# ------------------------------------------------------------------------------------------------ heat maps


def _matrix(order: str, method: str, experiments: Sequence[Experiment]) -> Figure:
    one, matrix = experiments[0], means(matrix_over_seeds(experiments))
    rows = [f"{stage} {name}" for stage, name in enumerate(("backbone", *one.tasks))]
    numbers: dict[str, list[Any]] = {"after": rows}
    numbers |= {task: [row[index] for row in matrix] for index, task in enumerate(one.tasks)}
    last, bwt = one.report.mean["last"], one.report.mean["bwt"]
    shown = ", ".join(f"{name} {value:.1f}" for name, value in (("Last", last), ("BWT", bwt)) if value is not None)
    of = f" of seed {one.seed}" if len(experiments) > 1 else ""
    count, longest = len(one.tasks), max(map(len, one.tasks))
    width = max(0.62, min(0.1 * longest + 0.15, 1.3)) if count <= 10 else 0.46
    return Figure(
        name=name_in(order, "scores-matrix"),
        title=_title(f"Score matrix of {method}", order, experiments),
        reading=READING,
        definition=DEFINITION.format(split=one.split, seeds=seeds_text(experiments)),
        numbers=numbers,
        alternative=f"Heat map of {count} tasks over {len(matrix)} stages; means{of}: {shown or 'incomplete'}.",
        draw=partial(_draw_matrix, matrix=matrix, rows=rows, tasks=list(one.tasks), slanted=0.1 * longest > width),
        size=(min(12.5, 2.1 + 0.09 * longest + width * count), 1.2 + 0.34 * len(matrix) + 0.05 * longest),
        note=CLIPPED if _exceeds(matrix) else "",
    )


def _exceeds(matrix: Means) -> bool:
    return any(value is not None and value > 100 for row in matrix for value in row)


def _draw_matrix(canvas: Canvas, *, matrix: Means, rows: list[str], tasks: list[str], slanted: bool) -> None:
    axes = canvas.subplots()
    text = ".1f" if len(tasks) <= 12 else ".0f"
    mesh = _draw_values(axes, matrix, rows=rows, columns=tasks, text=text)
    axes.xaxis.tick_top()
    if slanted:
        axes.set_xticks(axes.get_xticks(), tasks, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_ylabel("after training")
    canvas.colorbar(mesh, ax=axes, label="points", shrink=0.8)


def _draw_values(axes: Any, matrix: Means, *, rows: list[str], columns: list[str], text: str | None) -> Any:
    """The matrix, with an outline around the score of each task right after its training."""
    from matplotlib.patches import Rectangle

    values = [[float("nan") if value is None else value for value in row] for row in matrix]
    mesh = heat_map(axes, values, rows=rows, columns=columns, text=text, vmin=0, vmax=100)
    for index in range(len(columns)):
        axes.add_patch(Rectangle((index, index + 1), 1, 1, fill=False, edgecolor=INK, linewidth=1.6, clip_on=False))
    return mesh


def _matrices(order: str, group: Group) -> Figure:
    matrices = {method: means(matrix_over_seeds(experiments)) for method, experiments in group.items()}
    first = next(iter(group.values()))
    tasks, split = first[0].tasks, first[0].split
    entries = [
        (method, after, task, row[column])
        for method, matrix in matrices.items()
        for after, row in enumerate(matrix)
        for column, task in enumerate(tasks)
    ]
    last = {method: experiments[0].report.mean["last"] for method, experiments in group.items()}
    shown = ", ".join(f"{method} {value:.1f}" for method, value in last.items() if value is not None)
    columns = min(len(matrices), 4 if len(tasks) <= 6 else 3)
    rows = ceil(len(matrices) / columns)
    height = 3.4 if len(tasks) > 6 else 2.6 if len(matrices) <= WRITTEN else 2.1
    numbered = NUMBERED.format(tasks=", ".join(f"{index} {task}" for index, task in enumerate(tasks, 1)))
    return Figure(
        name=name_in(order, "scores-matrices"),
        title=_title("Score matrices of the other methods", order, first),
        reading=SMALL_READING,
        definition=DEFINITION.format(split=split, seeds=seeds_text(first)) + numbered,
        numbers=dict(zip(("method", "after", "task", "points"), map(list, zip(*entries, strict=True)), strict=True)),
        alternative=f"Heat maps of {len(matrices)} methods. Mean Last: {shown or 'incomplete'}.",
        draw=partial(_draw_matrices, matrices=matrices, columns=columns),
        size=(12.4 if columns > 2 else 1.3 + 2.8 * columns, 0.7 + rows * height),
        note=CLIPPED if any(map(_exceeds, matrices.values())) else "",
    )


def _draw_matrices(canvas: Canvas, *, matrices: Mapping[str, Means], columns: int) -> None:
    count = len(next(iter(matrices.values()))[0])
    grid = canvas.subplots(ceil(len(matrices) / columns), columns, squeeze=False, sharex=True, sharey=True)
    step = step_of(count)
    text = ".0f" if count <= 6 and len(matrices) <= WRITTEN else None
    labels = ["" if number % step else str(number) for number in range(count + 1)]
    panels = list(grid.flat)
    for axes in panels[len(matrices) :]:
        axes.set_visible(False)
    for axes, (method, matrix) in zip(panels[: len(matrices)], matrices.items(), strict=True):
        mesh = _draw_values(axes, matrix, rows=labels, columns=labels[1:], text=text)
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.set_title(method)
    for axes in grid[:, 0]:
        axes.set_ylabel("after so many tasks")
    for column, used in enumerate(grid.T):
        used[(len(matrices) - 1 - column) // columns].set_xlabel("task")
    canvas.colorbar(mesh, ax=grid, label="points", shrink=min(1.0, 2.0 / grid.shape[0]), aspect=25)


# ------------------------------------------------------------------------------------------------ over the stages


def _over_stages(order: str, group: Group, styles: Mapping[str, dict[str, Any]]) -> Figure:
    styles = {method: styles[method] for method in group}
    first = next(iter(group.values()))[0]
    curves = {
        (method, column): curve
        for method, experiments in group.items()
        for column, curve in enumerate(curves_of(experiments))
    }
    rows = [
        (first.tasks[column], method, after, point.mean, point.low, point.high, point.seeds)
        for (method, column), points in curves.items()
        for after, point in enumerate(points)
        if point is not None
    ]
    names = ("task", "method", "after", "points", "lowest seed", "highest seed", "seeds")
    bounds = [method for method, found in group.items() if found[0].kind.protocol == "per-task"]
    seeds = max(len(experiments) for experiments in group.values())
    panels = Panels(len(first.tasks), styles, "after so many trained tasks", "points")
    definition = LINES_DEFINITION.format(split=first.split)
    definition += LINES_BOUND.format(bound=", ".join(bounds)) if bounds else ""
    return Figure(
        name=name_in(order, "scores-stages"),
        title=_title("Scores over the stages", order),
        reading=LINES_READING,
        definition=definition + (LINES_SEEDS if seeds > 1 else ""),
        numbers=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        alternative=_lines_alternative(first.tasks, group, curves),
        draw=partial(_draw_stages, first=first, curves=curves, styles=styles, group=group, panels=panels),
        size=panels.size,
        note=note_on_others(styles),
    )


def _lines_alternative(
    tasks: Sequence[str], group: Group, curves: Mapping[tuple[str, int], list[Spread | None]]
) -> str:
    ends = []
    for method in group:
        last = [points[-1] for column in range(len(tasks)) if (points := curves[method, column])]
        known = [point.mean for point in last if point is not None]
        if len(known) == len(tasks):
            ends.append(f"{method} {sum(known) / len(known):.1f}")
    text = f"Lines of {len(group)} methods in {len(tasks)} panels, one per task."
    return text + (f" Mean over the tasks at the right end, in points: {', '.join(ends)}." if ends else "")


def _draw_stages(
    canvas: Canvas,
    *,
    first: Experiment,
    curves: Mapping[tuple[str, int], list[Spread | None]],
    styles: Mapping[str, dict[str, Any]],
    group: Group,
    panels: Panels,
) -> None:
    for column, (task, axes) in enumerate(zip(first.tasks, panels.axes(canvas), strict=True)):
        for method in shown_methods(styles, group):
            known = [(after, point) for after, point in enumerate(curves[method, column]) if point is not None]
            _draw_line(axes, known, styles[method])
        axes.axvline(column + 1, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.set_title(f"{column + 1} {task}")
        stage_ticks(axes, len(first.tasks))
        at_least(axes, SPAN)
    legend(canvas, styles)


def _draw_line(axes: Any, known: Sequence[tuple[int, Spread]], style: Mapping[str, Any]) -> None:
    stages = [after for after, _ in known]
    axes.plot(stages, [point.mean for _, point in known], **style)
    coloured = style["marker"] or style is BOUND
    if coloured and any(point.seeds > 1 for _, point in known):
        low, high = [point.low for _, point in known], [point.high for _, point in known]
        axes.fill_between(stages, low, high, color=style["color"], alpha=0.18, linewidth=0)
