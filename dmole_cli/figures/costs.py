"""What the methods cost: seconds by stage, profiling and routers as a share of training, and the runtime by rank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.errors import DmoleError
from dmole_cli.figures._drawing import FAINT, INK, PAPER, SERIES, series
from dmole_cli.figures._naming import name_in, title_in
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.costs import seconds_by_stage
from dmole_cli.reports.experiments import seeds_text, spread
from dmole_cli.settings.documents import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

STAGES = ("profile", "train-router", "train-task", "evaluate")
HATCHES = ("", "//", "..", "xx")
UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
READING = "Each bar is one method on the machine that ran it, from left to right what precedes training, training, evaluation."
DEFINITION = (
    "Wall time of each stage, summed over the tasks{seeds}, without starting processes and loading the backbone. Profiles and "
    "routers count only for methods that use them. The share is that of profile and train-router in the time of train-task."
)
BENCH_READING = (
    "Each point is the time at one rank over that at the rank at the left end; in a flat line, rank is free."
)
BENCH_DEFINITION = "Median of the ratio over rounds, with quartiles, from {file}."
BY_RANK = re.compile(r"(?P<what>.+): rank (?P<rank>\d+) over rank (?P<base>\d+)")


def figures(source: Source) -> Iterator[Figure]:
    """For every order with costs, the seconds by stage; and the runtime by rank where it was measured."""
    for order, methods in source.groups().items():
        # Another routing at evaluation shares its training with the method.
        group = {method: experiments for method, experiments in methods.items() if not experiments[0].is_routing}
        found = {
            method: costs for method, experiments in group.items() if any((costs := over_seeds(experiments)).values())
        }
        if found:
            yield _figure(order, group, found)
    if source.benchmarks is not None and (rows := by_rank(source.benchmarks)):
        yield _by_rank(source.benchmarks, rows)


def over_seeds(experiments: Sequence[Experiment]) -> dict[str, float | None]:
    """Stage of `STAGES` -> seconds, the mean over the seeds.

    Raises:
        DmoleError: a cost file is damaged.
    """
    each = [seconds_by_stage(one.run, one.method, split=one.split) for one in experiments]
    means = {stage: spread(seconds.get(stage) for seconds in each) for stage in STAGES}
    return {stage: found.mean if found else None for stage, found in means.items()}


def _share(costs: Mapping[str, float | None]) -> float | None:
    """Preparation over training, in percent."""
    training = costs["train-task"]
    return 100 * ((costs["profile"] or 0.0) + (costs["train-router"] or 0.0)) / training if training else None


def _figure(
    order: str, group: Mapping[str, Sequence[Experiment]], found: Mapping[str, Mapping[str, float | None]]
) -> Figure:
    longest = max(sum(seconds or 0.0 for seconds in costs.values()) for costs in found.values())
    unit, scale = next(((unit, scale) for unit, scale in UNITS if longest >= 2 * scale), UNITS[-1])
    numbers: dict[str, list[Any]] = {"method": list(found)}
    numbers |= {f"{stage}, seconds": [costs[stage] for costs in found.values()] for stage in STAGES}
    numbers["preparation, % of training"] = [_share(costs) for costs in found.values()]
    texts = []
    for method, costs in found.items():
        share = _share(costs)
        extra = f" (preparation {share:.1f} % of it)" if share else ""
        if costs["train-task"]:
            texts.append(f"{method} {costs['train-task']:.0f} s{extra}")
    experiments = next(iter(group.values()))
    return Figure(
        name=name_in(order, "costs"),
        title=title_in(order, "Cost by stage and method"),
        reading=READING,
        definition=DEFINITION.format(seeds=seeds_text(experiments)),
        numbers=numbers,
        alternative=f"Bars of {len(found)} methods. Training: {'; '.join(texts) or 'not measured'}.",
        draw=partial(_draw, found=found, unit=unit, scale=scale),
        size=(11.0, 1.3 + 0.34 * len(found)),
    )


def _draw(canvas: Canvas, *, found: Mapping[str, Mapping[str, float | None]], unit: str, scale: float) -> None:
    axes = canvas.subplots()
    for row, costs in enumerate(found.values()):
        left = 0.0
        for index, stage in enumerate(STAGES):
            width = (costs[stage] or 0.0) / scale
            style: dict[str, Any] = {
                "color": SERIES[index],
                "hatch": HATCHES[index],
                "edgecolor": PAPER,
                "linewidth": 0.5,
            }
            axes.barh(row, width, 0.7, left, label=stage if row == 0 else None, **style)
            left += width
        for place, text in zip((1.01, 1.13), _row_texts(costs, scale), strict=True):
            axes.text(place, row, text, transform=axes.get_yaxis_transform(), va="center")
    for place, text in ((1.01, "training"), (1.13, "before it")):
        axes.text(place, -0.9, text, transform=axes.get_yaxis_transform(), va="center", color=FAINT)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.grid(axis="x", linewidth=0.8)
    axes.set_axisbelow(True)
    canvas.legend(loc="outside upper center", ncols=len(STAGES))


def _row_texts(costs: Mapping[str, float | None], scale: float) -> tuple[str, str]:
    """The time of training, and the share of what precedes it."""
    training, share = costs["train-task"], _share(costs)
    return "–" if training is None else f"{training / scale:.1f}", f"+ {share:.1f} %" if share else ""


# ------------------------------------------------------------------------------------------------ runtime by rank


def by_rank(path: Path) -> list[dict[str, Any]]:
    """The rows of `bench.json` that compare ranks: `what`, `rank`, `base`, `ratio`, `low`, `high`.

    Raises:
        DmoleError: the file is not one of `pipelines/bench/run.py`.
    """
    try:
        rows = [(BY_RANK.fullmatch(row["name"]), row) for row in read_json(path)]
        found = [(match, row) for match, row in rows if match and "ratio" in row]
        return [
            {
                "what": match["what"],
                "rank": int(match["rank"]),
                "base": int(match["base"]),
                **{name: None if row.get(name) is None else float(row[name]) for name in ("ratio", "low", "high")},
            }
            for match, row in found
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DmoleError(
            f"{path} does not hold the results of benchmarks: {error!r}",
            "pass the file that pipelines/bench/run.py wrote",
        ) from error


def _by_rank(path: Path, rows: Sequence[Mapping[str, Any]]) -> Figure:
    texts = [f"{row['what']}, rank {row['rank']}: {row['ratio']:.2f}" for row in rows]
    return Figure(
        name="costs-rank",
        title="Runtime by rank",
        reading=BENCH_READING,
        definition=BENCH_DEFINITION.format(file=path.name),
        numbers={name: [row[name] for row in rows] for name in rows[0]},
        alternative=f"Lines of the time over that at the smallest rank. {'; '.join(texts)}.",
        draw=partial(_draw_by_rank, rows=rows),
        size=(8.0, 3.6),
    )


def _draw_by_rank(canvas: Canvas, *, rows: Sequence[Mapping[str, Any]]) -> None:
    axes = canvas.subplots()
    ranks = sorted({rank for row in rows for rank in (row["rank"], row["base"])})
    for index, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        own = sorted((row for row in rows if row["what"] == what), key=lambda row: row["rank"])
        points = [(own[0]["base"], 1.0, 1.0, 1.0)]
        points += [(r["rank"], r["ratio"], r["low"] or r["ratio"], r["high"] or r["ratio"]) for r in own]
        places = [ranks.index(rank) for rank, *_ in points]
        errors = [[ratio - low for _, ratio, low, _ in points], [high - ratio for _, ratio, _, high in points]]
        axes.errorbar(places, [ratio for _, ratio, *_ in points], yerr=errors, label=what, capsize=3, **series(index))
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(ranks)), list(map(str, ranks)))
    axes.set(xlabel="rank of the experts", ylabel="time over the smallest rank")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.8)
    canvas.legend(loc="outside upper center", ncols=2)
