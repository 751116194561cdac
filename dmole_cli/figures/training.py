"""Training curves: the loss over the steps of each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.kinds import TRAINING_LOG
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.tables import read_table
from dmole_cli.figures._lines import ONCE, ONCE_LINE, OTHER, Panels, legend, line_styles, note_on_others
from dmole_cli.figures._naming import name_in, title_in
from dmole_cli.figures.base import Experiment, Figure, Source

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure as Canvas

READING = "Each panel is one task in the order of training; a curve that still falls at its right end would gain from more steps."
DEFINITION = (
    "Mean cross-entropy over the answer tokens of a step, in nats per token, without the term that a method adds to it. "
    "Smoothed: the mean over {window} neighbouring steps, a {share}th of a task's steps.{seed}"
)
POINTS = 100  # drawn of a curve
SHARE = 20  # a curve is smoothed over 1/SHARE of its steps


def figures(source: Source) -> Iterator[Figure]:
    """For every order with training logs: a panel per task, a line per method."""
    for order, group in source.groups().items():
        # A routing at evaluation does not train anything.
        trained = {method: found[0] for method, found in group.items() if not found[0].is_routing}
        curves = {
            (method, task): curve
            for method, one in trained.items()
            for task in one.tasks
            if (curve := smoothed(one, task)) is not None
        }
        if curves:
            yield _figure(order, trained, curves, line_styles(source))


def smoothed(one: Experiment, task: str) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Steps, smoothed losses, and the window of a task's training, at most `POINTS` of them; None without a log.

    Raises:
        ArtifactError: the log is damaged.
    """
    import numpy as np

    path = one.run.training_log(task, base_method(one.method))
    if not path.is_file():
        return None
    table, _ = read_table(path, TRAINING_LOG)
    steps, losses = (table.column(name).to_numpy() for name in ("step", "loss"))
    if not len(steps):
        return None
    window = max(1, len(steps) // SHARE)
    sums = np.convolve(losses, np.ones(window), "valid")
    middle = steps[window // 2 :][: len(sums)]
    chosen = np.unique(np.linspace(0, len(sums) - 1, min(POINTS, len(sums))).round().astype(int))
    return middle[chosen], sums[chosen] / window, window


Curves = Mapping[tuple[str, str], tuple["np.ndarray", "np.ndarray", int]]


def _figure(
    order: str, trained: Mapping[str, Experiment], curves: Curves, styles: Mapping[str, dict[str, Any]]
) -> Figure:
    methods = [method for method in trained if any((method, task) in curves for task in trained[method].tasks)]
    styles = {method: ONCE_LINE if styles[method] is ONCE else styles[method] for method in methods}
    first = trained[methods[0]]
    tasks = [task for task in first.tasks if any((method, task) in curves for method in methods)]
    panels = Panels(len(tasks), styles, "step", "loss, nats per token")
    rows = [
        (task, method, int(step), float(loss))
        for (method, task), (steps, losses, _) in curves.items()
        for step, loss in zip(steps, losses, strict=True)
    ]
    ends = [f"{task} {curves[methods[-1], task][1][-1]:.2f}" for task in tasks if (methods[-1], task) in curves]
    windows = sorted({window for _, _, window in curves.values()})
    seed = f" One seed ({first.seed})."
    spans = str(windows[0]) if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
    return Figure(
        name=name_in(order, "training"),
        title=title_in(order, "Training loss"),
        reading=READING,
        definition=DEFINITION.format(window=spans, share=SHARE, seed=seed),
        numbers=dict(zip(("task", "method", "step", "loss"), map(list, zip(*rows, strict=True)), strict=True)),
        alternative=f"Curves of {len(methods)} methods. Smoothed loss of {methods[-1]} at the end: {', '.join(ends)}.",
        draw=partial(_draw, curves=curves, tasks=tasks, styles=styles, panels=panels),
        size=panels.size,
        note=_note(styles, curves),
    )


def _note(styles: Mapping[str, dict[str, Any]], curves: Curves) -> str:
    is_thinned = any(len(steps) == POINTS for steps, _, _ in curves.values())
    thinned = f"Of each curve, {POINTS} steps are drawn." if is_thinned else ""
    return " ".join(text for text in (note_on_others(styles), thinned) if text)


def _draw(
    canvas: Canvas, *, curves: Curves, tasks: Sequence[str], styles: Mapping[str, dict[str, Any]], panels: Panels
) -> None:
    for task, axes in zip(tasks, panels.axes(canvas), strict=True):
        for method in sorted(styles, key=lambda method: styles[method] is not OTHER):
            if (method, task) in curves:
                steps, losses, _ = curves[method, task]
                style = styles[method]
                width = min(style.get("linewidth", 1.8), 2.0)
                axes.plot(steps, losses, **{**style, "markevery": max(1, len(steps) // 5), "linewidth": width})
        axes.set_title(task)
        axes.set_ylim(bottom=0)
    legend(canvas, styles)
