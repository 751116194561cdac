"""Knowledge against format: scores, rank and log-likelihood of the right answers over the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import INK
from dmole_cli.figures._lines import (
    legend,
    legend_rows,
    line_styles,
    note_on_others,
    shown_methods,
    stage_ticks,
)
from dmole_cli.figures._naming import title_in
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.collect import KNOWLEDGE
from dmole_cli.reports.continual import Value
from dmole_cli.reports.evaluations import Likelihoods, read_likelihoods
from dmole_cli.reports.experiments import spread
from dmole_cli.reports.stream import of_stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# (method, quantity, task) -> mean over seeds at each stage
Curves = Mapping[tuple[str, str, str], list[Value]]

QUANTITIES = {
    "score": "score, points",
    "ranked_first": "ranked first, points",
    "log_likelihood": "log-likelihood, nats/token",
}
TASKS_EACH = 5  # rows of a figure
READING = (
    "Each row is one task. Where the score falls after the vertical line (the task's own training) and the other two do not, the "
    "model has lost the form of the answer, not the knowledge; where all three fall, it has forgotten."
)
DEFINITION = "Score: R[s,i] in points. Ranked first: {ranked_first}. Log-likelihood: {log_likelihood}. Means over samples{seeds}."
WIDTH, HEIGHT = 12.4, 1.75


def figures(source: Source) -> Iterator[Figure]:
    """For every order with likelihoods: three panels for each task, a figure for every five tasks."""
    for order, group in source.groups().items():
        backbone = next((_read(found) for found in group.values() if found[0].kind.protocol == "zero-shot"), [])
        curves = {
            key: values
            for method, found in group.items()
            for key, values in _curves(method, found, _read(found), backbone).items()
        }
        if not any(quantity != "score" for _, quantity, _ in curves):
            continue
        measured = {method for method, quantity, _ in curves if quantity != "score"}
        curves = {key: values for key, values in curves.items() if key[0] in measured}
        shown = {method: found for method, found in group.items() if method in measured}
        tasks = next(iter(group.values()))[0].tasks
        for number, start in enumerate(range(0, len(tasks), TASKS_EACH), 1):
            part = tasks[start : start + TASKS_EACH]
            suffix = "-".join([*([order] if order else []), *([str(number)] if len(tasks) > TASKS_EACH else [])])
            yield _figure(suffix, order, shown, curves, tasks=part, styles=line_styles(source))


def _read(experiments: Sequence[Experiment]) -> list[Likelihoods]:
    """The likelihoods of each seed that has some.

    Raises:
        DmoleError: a file of likelihoods is damaged.
    """
    found = (
        of_stream(one.method, read_likelihoods(one.run, one.method, one.split), one.tasks)[0]
        for one in experiments
        if one.run.likelihoods(one.split).is_dir()
    )
    return [entries for entries in found if entries]


def _curves(
    method: str, experiments: Sequence[Experiment], found: Sequence[Likelihoods], backbone: Sequence[Likelihoods]
) -> dict[tuple[str, str, str], list[Value]]:
    """The curves of a method that have a value.

    Args:
        method: its name.
        experiments: one per seed.
        found: its likelihoods, one per seed.
        backbone: likelihoods of the pretrained backbone, which every method starts from.
    """
    tasks, last = experiments[0].tasks, len(experiments[0].tasks)
    protocol = experiments[0].kind.protocol
    joint = protocol == "joint"
    curves: dict[tuple[str, str, str], list[Value]] = {}
    for column, task in enumerate(tasks):
        # The backbone is the same at every stage, a model of one task is not a stage of the stream.
        sources = {"zero-shot": [0] * (last + 1), "per-task": [column + 1] * (last + 1)}
        stages = sources.get(protocol, list(range(last + 1)))
        entries = [[one.report.matrix[stage][column] for one in experiments] for stage in stages]
        curves[method, "score", task] = [
            None if joint and at < last else _mean(values) for at, values in enumerate(entries)
        ]
        for name in ("ranked_first", "log_likelihood"):
            curves[method, name, task] = [
                _mean(getattr(entries[stage, task], name) for entries in known if (stage, task) in entries)
                for stage in stages
                # The backbone is the same for all; joint training has no stages before the last one.
                for known in [found if stage or joint or not found else [*found, *backbone]]
            ]
    return {key: values for key, values in curves.items() if any(value is not None for value in values)}


def _mean(values: Any) -> Value:
    found = spread(values)
    return found.mean if found else None


def _figure(
    suffix: str,
    order: str,
    group: Mapping[str, Sequence[Experiment]],
    curves: Curves,
    *,
    tasks: Sequence[str],
    styles: Mapping[str, dict[str, Any]],
) -> Figure:
    styles = {method: styles[method] for method in group}
    stages = len(next(iter(curves.values())))
    keys = [(task, method, stage) for task in tasks for method in group for stage in range(stages)]
    found = [(*key, *(_value(curves, key, name) for name in QUANTITIES)) for key in keys]
    rows = [row for row in found if any(value is not None for value in row[3:])]
    names = ("task", "method", "after", *QUANTITIES.values())
    several = any(len(experiments) > 1 for experiments in group.values())
    title = title_in(order, "Knowledge against format")
    if suffix != order:
        title += f": {tasks[0]} to {tasks[-1]}"
    return Figure(
        name="knowledge" + (f"-{suffix}" if suffix else ""),
        title=title,
        reading=READING,
        definition=DEFINITION.format(**KNOWLEDGE, seeds=" and seeds" if several else ""),
        numbers=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        alternative=_alternative(curves, tasks, list(group)),
        draw=partial(_draw, curves=curves, tasks=tasks, styles=styles, group=group, stages=stages),
        size=(WIDTH, 0.7 + HEIGHT * len(tasks) + 0.26 * legend_rows(styles, WIDTH)),
        note=note_on_others(styles),
    )


def _value(curves: Curves, key: tuple[str, str, int], name: str) -> Value:
    task, method, stage = key
    values = curves.get((method, name, task))
    return values[stage] if values else None


def _alternative(curves: Curves, tasks: Sequence[str], methods: Sequence[str]) -> str:
    """The change of each quantity from a task's own stage to the last one, of the last method, which is the main one."""
    texts = []
    for task in tasks:
        changes = []
        for name, label in QUANTITIES.items():
            values = curves.get((methods[-1], name, task))
            known = [value for value in values or () if value is not None]
            if known:
                changes.append(f"{label.partition(',')[0]} {known[-1]:.2f}")
        texts.append(f"{task}: {', '.join(changes)}")
    return f"Lines of {len(methods)} methods. At the last stage, {methods[-1]} has: {'; '.join(texts)}."


def _draw(
    canvas: Canvas,
    *,
    curves: Curves,
    tasks: Sequence[str],
    styles: Mapping[str, dict[str, Any]],
    group: Mapping[str, Sequence[Experiment]],
    stages: int,
) -> None:
    grid = canvas.subplots(len(tasks), len(QUANTITIES), squeeze=False, sharex=True)
    order = next(iter(group.values()))[0].tasks
    for row, task in zip(grid, tasks, strict=True):
        for axes, name in zip(row, QUANTITIES, strict=True):
            drawn = False
            for method in shown_methods(styles, group):
                known = [
                    (at, value) for at, value in enumerate(curves.get((method, name, task), ())) if value is not None
                ]
                if known:
                    axes.plot(*zip(*known, strict=True), **styles[method])
                    drawn = True
            if not drawn:
                axes.text(0.5, 0.5, "open task: no set of answers", transform=axes.transAxes, ha="center", va="center")
                axes.set_axis_off()
                axes.set_title(f"{task}: {QUANTITIES[name]}")
                continue
            axes.axvline(order.index(task) + 1, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            axes.grid(axis="y", linewidth=0.8)
            stage_ticks(axes, stages - 1)
            axes.set_title(f"{task}: {QUANTITIES[name]}")
    for axes in grid[-1]:
        axes.set_xlabel("after so many trained tasks")
    legend(canvas, styles)
