"""The methods against each other: means over seeds, and paired differences of the main method to every other one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dmole_cli.figures._drawing import FAINT, INK, SERIES
from dmole_cli.figures._naming import name_in, title_in
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.differences import LEVEL, RESAMPLES, SHOWN, Difference, conclusion, differences, over_seeds
from dmole_cli.reports.experiments import Spread
from dmole_cli.reports.tables import CAPPED, TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Overview = Mapping[str, Mapping[str, Spread | None]]

READING = "Each row is a method, further right is better; the bar is the deviation over seeds, the circles below are the seeds."
ONE_SEED = "Each row is a method, further right is better."
DEFINITION = (
    "Mean over the tasks, then mean ± sample standard deviation over the seeds, in points. {formulas}. "
    "AVG and BWT are not defined for methods that do not train the tasks one after the other."
)
PAIRED_READING = (
    "A row right of the line at 0: {main} has higher scores than that method. If the thick bar (other test samples{both}) "
    "crosses the line, the difference may be chance."
)
BOTH = "), or the thin one (other samples and other seeds"
PAIRED_DEFINITION = (
    "d = (1/T) Σ_i (1/n_i) Σ_j ({main}'s score - the other's score of sample j of task i), in points, at the stage of each "
    "method's Last score{seeds}. {level:.0f} % percentile intervals of {resamples:,} bootstrap resamples of the samples of "
    "every task, the same samples for both methods{hierarchy}; scores are not capped."
)
HIERARCHY = ", and of the seeds, whose samples are the same"


def figures(source: Source) -> Iterator[Figure]:
    """For every order with several methods: their means, and the differences of the main method to the others."""
    for order, group in source.groups().items():
        if len(group) < 2:
            continue
        found = over_seeds(group)
        if any(value for values in found.values() for value in values.values()):
            yield _means(order, group, found)
        if (main := _main_of(group)) and (paired := differences(group, main=main, seed=source.seed)):
            yield _differences(order, paired)


def _height(rows: int) -> float:
    return 1.0 + 0.32 * rows


# ------------------------------------------------------------------------------------------------ means


def _means(order: str, group: Mapping[str, Sequence[Experiment]], found: Overview) -> Figure:
    numbers: dict[str, list[Any]] = {"method": list(found)}
    for name in SHOWN:
        values = [spreads[name] for spreads in found.values()]
        numbers[TITLES[name]] = [value and value.mean for value in values]
        numbers[f"{TITLES[name]} deviation"] = [value and value.deviation for value in values]
    numbers["seeds"] = [len(experiments) for experiments in group.values()]
    last = {method: spreads["last"] for method, spreads in found.items()}
    texts = [f"{method} {_plus_minus(value)}" for method, value in last.items() if value is not None]
    singles = {method: [one.report.mean for one in experiments] for method, experiments in group.items()}
    several = any(len(experiments) > 1 for experiments in group.values())
    bounded = all(one.report.is_bounded for experiments in group.values() for one in experiments)
    formulas = "; ".join(FORMULAS[name] for name in SHOWN)
    return Figure(
        name=name_in(order, "methods-means"),
        title=title_in(order, "Last, AVG and BWT of the methods"),
        reading=READING if several else ONE_SEED,
        definition=DEFINITION.format(formulas=formulas) + ("" if bounded else f" {CAPPED}"),
        numbers=numbers,
        alternative=f"Dots of {len(found)} methods in three panels. Mean Last in points: {', '.join(texts)}.",
        draw=partial(_draw_means, found=found, singles=singles, main=_main_of(group)),
        size=(12.4, _height(len(found))),
    )


def _main_of(group: Mapping[str, Sequence[Experiment]]) -> str:
    return next((method for method, experiments in group.items() if experiments[0].is_main), "")


def _plus_minus(value: Spread) -> str:
    return f"{value.mean:.1f}" + ("" if value.deviation is None else f" ± {value.deviation:.1f}")


def _draw_means(canvas: Canvas, *, found: Overview, singles: Mapping[str, Any], main: str) -> None:
    grid = canvas.subplots(1, len(SHOWN), sharey=True)
    for axes, name in zip(grid, SHOWN, strict=True):
        for row, (method, spreads) in enumerate(found.items()):
            if (value := spreads[name]) is None:
                continue
            colour = SERIES[0] if method == main else INK
            axes.errorbar(
                value.mean, row, xerr=value.deviation, fmt="D" if method == main else "o", color=colour, capsize=3
            )
            if value.seeds > 1:
                points = [mean[name] for mean in singles[method] if mean[name] is not None]
                axes.plot(
                    points, [row + 0.28] * len(points), "o", markerfacecolor="none", color=FAINT, markersize=4, zorder=1
                )
        axes.set_title(TITLES[name])
        axes.set_xlabel("points")
        axes.grid(axis="both", linewidth=0.8)
        axes.set_axisbelow(True)
    _rows(grid[0], list(found), main)


def _rows(axes: Any, names: Sequence[str], main: str = "") -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels():
        if label.get_text() == main:
            label.set_fontweight("bold")


# ------------------------------------------------------------------------------------------------ differences


def _differences(order: str, found: Sequence[Difference]) -> Figure:
    main, several = found[0].method, any(one.over_both for one in found)
    numbers: dict[str, list[Any]] = {
        "other method": [one.other for one in found],
        "difference": [one.mean for one in found],
        "low (samples)": [one.over_samples[0] for one in found],
        "high (samples)": [one.over_samples[1] for one in found],
    }
    if several:
        both = [one.over_both or (None, None) for one in found]
        numbers |= {
            "low (samples, seeds)": [low for low, _ in both],
            "high (samples, seeds)": [high for _, high in both],
        }
    numbers |= {task: [one.by_task[task] for one in found] for task in found[0].by_task}
    numbers |= {"seeds": [len(one.seeds) for one in found], "samples": [one.samples for one in found]}
    texts = [f"{one.other} {one.mean:+.1f} [{one.interval[0]:+.1f}, {one.interval[1]:+.1f}]" for one in found]
    definition = PAIRED_DEFINITION.format(
        main=main,
        seeds=", mean over the seeds that both have" if several else "",
        level=100 * LEVEL,
        resamples=RESAMPLES,
        hierarchy=HIERARCHY if several else "",
    )
    return Figure(
        name=name_in(order, "methods-differences"),
        title=title_in(order, f"{main} minus every other method"),
        reading=PAIRED_READING.format(main=main, both=BOTH if several else ""),
        definition=definition,
        numbers=numbers,
        alternative=f"Differences of Last in points with intervals: {'; '.join(texts)}. {conclusion(found)}",
        draw=partial(_draw_differences, found=found),
        size=(9.5, _height(len(found))),
        note=conclusion(found),
    )


def _draw_differences(canvas: Canvas, *, found: Sequence[Difference]) -> None:
    axes = canvas.subplots()
    axes.axvline(0, color=INK, linewidth=1.2)
    for row, one in enumerate(found):
        colour = FAINT if not one.excludes_zero else SERIES[0] if one.mean > 0 else SERIES[1]
        if one.over_both:
            axes.plot(one.over_both, [row, row], color=colour, linewidth=1.4, marker="|", markersize=9)
        axes.plot(one.over_samples, [row, row], color=colour, linewidth=5, alpha=0.55, solid_capstyle="butt")
        marker = "o" if not one.excludes_zero else ">" if one.mean > 0 else "<"
        axes.plot(one.mean, row, marker, color=colour, markersize=8, zorder=5)
        text = f"{one.mean:+6.1f} [{one.interval[0]:+6.1f}, {one.interval[1]:+6.1f}]"
        axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va="center", family="monospace")
    axes.set_xlabel(f"Last of {found[0].method} minus Last of the other method, in points")
    axes.grid(axis="x", linewidth=0.8)
    axes.set_axisbelow(True)
    _rows(axes, [one.other for one in found])
