"""How well routers tell tasks apart: confusion, losses with their thresholds, and the threshold sweep (D-MoLE, section 4.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.labels import base_method
from dmole_cli.figures._drawing import FAINT, INK, series
from dmole_cli.figures._naming import named, titled
from dmole_cli.figures._panels import HeatMaps, Panel, arrange, draw_panels
from dmole_cli.figures.base import Experiment, Figure, Source

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure as Canvas

READING_CONFUSION = (
    "Read a row: where the task's samples go. The diagonal is right; samples of unseen tasks should go to 'none', the "
    "pretrained backbone."
)
DEFINITION_CONFUSION = (
    "Percent of a task's {split} samples by their first active expert, the one whose router has the lowest reconstruction loss "
    "below its threshold, after {after} tasks."
)
READING_LOSSES = (
    "The upper bar of a router should lie left of its threshold (accepted), the lower bar right of it (rejected)."
)
DEFINITION_LOSSES = (
    "m_t(x), the mean squared error of the reconstruction of x's routing feature by the autoencoder of task t, over {split} "
    "samples of task t and of all other tasks. Thin line: 5 % to 95 % of the samples; thick: 25 % to 75 %; marker: median; "
    "vertical line: threshold of router t. Right: percent of the samples below the threshold."
)
READING_SWEEP = "A factor above 1 makes routers accept more samples; read where the score is highest."
DEFINITION_SWEEP = (
    "Left: Last, the mean over tasks of the score after the last stage, in points, with every threshold multiplied by the "
    "factor in evaluation. Right: mean over tasks of the percent of samples whose active experts include their own task's. "
    "A line is the mean over seeds, a marker one seed."
)
NONE = "none"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Losses:
    """Reconstruction losses under one router.

    Attributes:
        task: of the router.
        threshold: of the router.
        own, others: losses of the samples of its task, and of all other tasks [samples].
    """

    task: str
    threshold: float
    own: np.ndarray
    others: np.ndarray


def figures(source: Source) -> Iterator[Figure]:
    """For each example with routers: confusion and losses after the last stage, and the sweep of thresholds."""
    for one in source.examples:
        if not one.kind.uses_routers:
            continue
        after = max((stage for stage in one.report.stages if stage > 0), default=0)
        if shares := confusion(one, after):
            yield _confusion(one, after, shares)
        if found := losses(one, after):
            yield _losses(one, found)
        swept = sweep(source.experiments, one)
        if len({row[0] for row in swept}) > 1:
            yield _sweep(one, swept)


def confusion(one: Experiment, after: int) -> dict[str, dict[str, float]]:
    """Task -> first active expert, or `none` -> share (0..1) of the task's samples; tasks without an evaluation are left out."""
    import pyarrow.compute as pc

    found = {}
    for task in (*one.tasks, *one.report.unseen):
        table = one.answers(after, task, ["active"]) if after else None
        if table is not None:
            active = table["active"]
            filled = active.filter(pc.greater(pc.list_value_length(active), 0))
            counts = Counter(pc.list_element(filled, 0).to_pylist() if len(filled) else [])
            counts[NONE] = len(active) - len(filled)
            found[task] = {name: count / len(active) for name, count in counts.items()}
    return found


def losses(one: Experiment, after: int) -> list[Losses]:
    """Losses under every router that exists, in the order of the stream.

    Raises:
        ArtifactError: an evaluation or a router is damaged.
    """
    import numpy as np

    learned = one.tasks[:after]
    rows: dict[str, np.ndarray] = {}
    for task in (*one.tasks, *one.report.unseen):
        table = one.answers(after, task, ["losses"]) if after else None
        if table is not None:
            values = np.concatenate([chunk.flatten().to_numpy() for chunk in table["losses"].chunks])
            if len(values) == len(table) * len(learned):
                rows[task] = values.reshape(len(table), len(learned))
    found = []
    for index, task in enumerate(learned):
        header = header_of(one.run.router(task), ROUTER)
        if header is not None and rows:
            own = rows[task][:, index] if task in rows else np.empty(0)
            others = [matrix[:, index] for name, matrix in rows.items() if name != task]
            threshold = float(header.facts["threshold"])
            found.append(Losses(task, threshold, own, np.concatenate(others) if others else np.empty(0)))
    return found


def sweep(experiments: Sequence[Experiment], one: Experiment) -> list[tuple[float, int, float, float | None]]:
    """(factor, seed, Last, share of samples with their own expert) of a method's evaluations with scaled thresholds, sorted."""
    found = []
    for other in experiments:
        factor, last = _factor(other.method), other.report.mean["last"]
        if base_method(other.method) != one.method or other.order != one.order or factor is None or last is None:
            continue
        routed = [share for share in other.report.routing.values() if share is not None]
        found.append((factor, other.seed, last, fmean(routed) if routed else None))
    return sorted(found)


def _factor(label: str) -> float | None:
    """The factor of the thresholds that a label names, 1 for the method alone; None where it names something else, too."""
    options = label.split("@")[1:]
    try:
        return float(options[0]) if len(options) == 1 else None if options else 1.0
    except ValueError:
        return None


def _confusion(one: Experiment, after: int, shares: Mapping[str, Mapping[str, float]]) -> Figure:
    names = [*one.tasks[:after], NONE]
    rows = [task if task in one.tasks[:after] else f"{task} (unseen)" for task in shares]
    values = [[round(100 * row.get(name, 0.0), 2) for name in names] for row in shares.values()]
    placed = arrange([Panel("", values, rows, names)], cell=(1.0, 0.3), least=0.3, every=True)
    right = [row.get(task if task in one.tasks[:after] else NONE, 0.0) for task, row in shares.items()]
    worst = min(zip(right, rows, strict=True))
    return Figure(
        name=named(one, "routing-confusion"),
        title=titled(one, "Confusion of tasks and experts"),
        reading=READING_CONFUSION,
        definition=DEFINITION_CONFUSION.format(split=one.split, after=after),
        numbers={"task": rows, **{name: [row[i] for row in values] for i, name in enumerate(names)}},
        alternative=f"Heat map of {len(rows)} tasks by experts. On average {100 * fmean(right):.1f} % of a task's samples go "
        f"where they should, least of {worst[1]} ({100 * worst[0]:.0f} %).",
        draw=partial(_draw_confusion, placed=placed),
        size=placed.size,
    )


def _draw_confusion(canvas: Canvas, *, placed: HeatMaps) -> None:
    draw_panels(
        canvas, placed, below="first active expert", beside="task of the samples", scale="% of samples", text=".0f",
        every=True, vmin=0, vmax=100,
    )  # fmt: skip


def _losses(one: Experiment, found: Sequence[Losses]) -> Figure:
    import numpy as np

    numbers: dict[str, list[Any]] = {name: [] for name in ("router", "samples of", "samples")}
    numbers |= {f"{100 * q:g} %": [] for q in QUANTILES} | {"threshold": [], "percent accepted": []}
    shares = dict[str, list[float]]()
    for entry in found:
        for name, values in (("own task", entry.own), ("other tasks", entry.others)):
            if len(values):
                quantiles = [float(f"{value:.6g}") for value in np.quantile(values, QUANTILES)]
                accepted = round(100 * float(np.mean(values < entry.threshold)), 2)
                shares.setdefault(name, []).append(accepted)
                row = [entry.task, name, len(values), *quantiles, float(f"{entry.threshold:.6g}"), accepted]
                for column, value in zip(numbers.values(), row, strict=True):
                    column.append(value)
    return Figure(
        name=named(one, "routing-losses"),
        title=titled(one, "Reconstruction losses and thresholds"),
        reading=READING_LOSSES,
        definition=DEFINITION_LOSSES.format(split=one.split),
        numbers=numbers,
        alternative=f"Quantiles of losses under {len(found)} routers. Accepted on average: "
        + ", ".join(f"{fmean(values):.1f} % of samples of the {name}" for name, values in shares.items())
        + ".",
        draw=partial(_draw_losses, numbers=numbers, tasks=[entry.task for entry in found]),
        size=(9.5, round(1.3 + 0.52 * len(found), 2)),
    )


def _draw_losses(canvas: Canvas, *, numbers: Mapping[str, Sequence[Any]], tasks: Sequence[str]) -> None:
    axes, seen = canvas.subplots(), set[str]()
    for router, name, quantiles, threshold, accepted in zip(
        numbers["router"],
        numbers["samples of"],
        zip(*(numbers[f"{100 * q:g} %"] for q in QUANTILES), strict=True),
        numbers["threshold"],
        numbers["percent accepted"],
        strict=True,
    ):
        own, index = name == "own task", tasks.index(router)
        height, style = index + (-0.2 if own else 0.2), series(0 if own else 1)
        axes.plot([quantiles[0], quantiles[4]], [height] * 2, color=style["color"], linewidth=1.5)
        axes.plot([quantiles[1], quantiles[3]], [height] * 2, color=style["color"], linewidth=6, solid_capstyle="butt")
        axes.plot(
            quantiles[2], height, marker=style["marker"], color=style["color"], markeredgecolor=INK, markersize=7,
            linestyle="", label=None if name in seen else name,
        )  # fmt: skip
        label = "" if seen else "threshold"
        axes.vlines(threshold, index - 0.42, index + 0.42, color=INK, linewidth=2, label=label)
        seen.add(name)
        axes.text(1.01, height, f"{accepted:.1f}", transform=axes.get_yaxis_transform(), va="center")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.3g}")  # an exponent above the line would be smaller than other text
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    for index in range(1, len(tasks)):
        axes.axhline(index - 0.5, color=FAINT, linewidth=0.4)
    axes.set(xlabel="reconstruction loss (mean squared error)", ylabel="router")
    axes.text(1.01, 1.02, "% accepted", transform=axes.transAxes)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "threshold")
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="lower left", bbox_to_anchor=(0, 1), ncols=3,
        borderaxespad=0.2, handletextpad=0.4,
    )  # fmt: skip


def _sweep(one: Experiment, swept: Sequence[tuple[float, int, float, float | None]]) -> Figure:
    means = {
        f: fmean(last for factor, _, last, _ in swept if factor == f) for f in dict.fromkeys(row[0] for row in swept)
    }
    best = max(means, key=lambda factor: means[factor])
    owned = [None if own is None else round(100 * own, 2) for *_, own in swept]
    return Figure(
        name=named(one, "routing-sweep"),
        title=titled(one, "Score by factor of the thresholds"),
        reading=READING_SWEEP,
        definition=DEFINITION_SWEEP,
        numbers={
            "factor": [row[0] for row in swept],
            "seed": [row[1] for row in swept],
            "last": [round(row[2], 3) for row in swept],
            "percent with own expert": owned,
        },
        alternative=f"Last over {len(means)} factors: "
        + ", ".join(f"{value:.1f} at {factor:g}" for factor, value in means.items())
        + f"; highest at {best:g}.",
        draw=partial(_draw_sweep, swept=swept, owned=owned),
        size=(10.0, 3.8),
    )


def _draw_sweep(
    canvas: Canvas, *, swept: Sequence[tuple[float, int, float, float | None]], owned: Sequence[float | None]
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    factors = list(dict.fromkeys(row[0] for row in swept))
    columns = [("Last in points", [row[2] for row in swept]), ("% of samples with their own expert", owned)]
    grid = canvas.subplots(1, len(columns))
    for index, (axes, (label, values)) in enumerate(zip(grid, columns, strict=True)):
        pairs = [(row[0], value) for row, value in zip(swept, values, strict=True) if value is not None]
        style = series(index)
        line = [fmean(value for factor, value in pairs if factor == f) if pairs else math.nan for f in factors]
        axes.plot(factors, line, color=style["color"], linestyle=style["linestyle"])
        if pairs:
            axes.plot(*zip(*pairs, strict=True), color=style["color"], marker=style["marker"], linestyle="")
        axes.set_xscale("log", base=2)
        axes.axvline(1, color=FAINT, linewidth=1, linestyle=":")
        axes.xaxis.set_major_locator(FixedLocator(factors))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="factor of the thresholds", ylabel=label)
        axes.grid(axis="y")
