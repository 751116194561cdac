"""Tables of differences: of the plan's own rows to their rivals, of a study's rows to the first one, and of an ideal method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from _intervals import gain
from _results import MEAN, MEAN_WITHOUT
from _sheets import BEST, COUNTS, Sheet, Summary

from dmole_cli.reports.estimates import Estimate, estimate
from dmole_cli.reports.tables import MISSING, TITLES, points

COMPARED = ("last", "avg")  # means of which differences are shown


def interval_sheet(summary: Summary, order: str) -> Sheet:
    """The means with their confidence intervals."""
    names = ("last", "avg", "bwt")
    rows = []
    for label in summary.labels(order):
        found = [summary.values(order, label, MEAN, name) for name in names]
        rows.append([label, *(with_interval(estimate(values)) if values else MISSING for values in found)])
    return Sheet("Means with 95 % confidence intervals", ["method", *(TITLES[name] for name in names)], rows)


def gain_sheet(summary: Summary, order: str, plan: Mapping[str, Any]) -> Sheet | None:
    """Paired differences of the plan's own rows to the best rival and to the rows of `against`; None if there are none."""
    rows = []
    for label in plan.get("ours", ()):
        for name in COMPARED:
            for other in (BEST, *plan.get("against", ())):
                if (found := summary.gain(order, label, other, name, plan=plan)) is not None:
                    against = f"{found.other} ({BEST})" if other == BEST else other
                    relative = MISSING if found.relative is None else f"{found.relative:+.1f}"
                    seeds = str(found.difference.seeds)
                    rows.append(
                        [label, TITLES[name], against, with_interval(found.difference, sign=True), relative, seeds]
                    )
    heading = ["method", "mean", "compared with", "difference", "relative %", "seeds"]
    return Sheet("Differences over the same seeds, with 95 % confidence intervals", heading, rows) if rows else None


def study_sheet(summary: Summary, title: str, order: str, tasks: Sequence[str]) -> Sheet:
    """The table of a study: Last per task, means, and the mean Last relative to that of the first row, in two forms."""
    columns = {task: (task, "last") for task in tasks}
    columns |= {"Last": (MEAN, "last"), "Last w/o CIDEr": (MEAN_WITHOUT, "last"), "AVG": (MEAN, "avg")}
    columns |= {"BWT": (MEAN, "bwt"), "routed right %": (MEAN, "routed_right")}
    sheet = summary.sheet(title, order, columns, {"trained": COUNTS["trained"]})
    means = [summary.by_seed(order, row[0], MEAN, "last") for row in sheet.rows]
    rows = [
        [*row, *_change(own, means[0], first_label=sheet.rows[0][0])]
        for row, own in zip(sheet.rows, means, strict=True)
    ]
    return Sheet(title, [*sheet.heading, "Last, rel. %", "difference"], rows)


def _change(own: Mapping[int, float], first: Mapping[int, float], *, first_label: str) -> list[str]:
    """The relative change of the mean since the first row, and the difference to it, both over the seeds of both rows."""
    found = gain(own, first, other=first_label)
    if found is None or found.relative is None:
        return [MISSING, MISSING]
    return [f"{round(found.relative, 1) + 0.0:+.1f}", with_interval(found.difference, sign=True)]


def ceiling(summary: Summary, order: str, orders: Mapping[str, Sequence[str]], plan: Mapping[str, Any]) -> list[str]:
    """AVG of an ideal method, relative to that of the best rival.

    The ideal method has the score of the plan's `bound.before` on each task until its turn, and that of `bound.after` from then
    on. If the pretrained backbone already solves much of the tasks, even this is little more than what a method that hardly
    changes the backbone reaches. The scores of both rows do not depend on the order, so those of any order are used.
    """
    bound = plan.get("bound")
    rival = summary.best_rival(order, "avg", plan=plan)
    base = fmean(rival[1].values()) if rival else 0.0
    if not bound or base <= 0:
        return []
    before, after = bound["before"], bound["after"]
    scores = [
        [[v for name in orders for v in summary.values(name, label, task, "last")] for label in (before, after)]
        for task in orders[order]
    ]
    if not all(values for pair in scores for values in pair):
        return []
    known = [(fmean(low), fmean(high)) for low, high in scores]
    count = len(known)
    top = fmean((low * turn + high * (count - turn)) / count for turn, (low, high) in enumerate(known))
    floor, gain = fmean(low for low, _ in known), 100 * (top / base - 1)
    return [
        f"AVG of {before} is {points(floor)}. With the score of {before} on every task until its turn and that of {after} from "
        f"then on, AVG would be {points(top)}: {gain:+.1f} % relative to the best rival."
    ]


def with_interval(found: Estimate, *, sign: bool = False) -> str:
    """`59.6 [56.9, 62.3]`; without brackets for one seed."""
    texts = [_number(value, sign=sign) for value in (found.mean, *(found.ends or ()))]
    return texts[0] + (f" [{', '.join(texts[1:])}]" if found.ends else "")


def _number(value: float, *, sign: bool) -> str:
    """One decimal; more where the sign of a difference would not be seen otherwise."""
    if sign and value and not round(value, 1):
        return f"{value:+.1g}"
    return f"{round(value, 1) + 0.0:{'+' if sign else ''}.1f}"
