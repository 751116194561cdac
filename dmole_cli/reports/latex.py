"""The table of a paper in LaTeX: Last and AVG of every method and task, with the packages booktabs and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dmole_cli.reports.collect import CEILING
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.experiments import Experiment, Source, Spread, spread
from dmole_cli.reports.tables import TITLES

SHOWN = ("last", "avg")
MISSING = "--"
MANY = 8  # tasks from which on the table is set in a smaller size
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
BOLD = "Bold: the best of the methods that train the tasks one after the other under their own routing."
NEEDS = "% Needs \\usepackage{booktabs}."

Group = Mapping[str, Sequence[Experiment]]


def escaped(text: str) -> str:
    """A text with the characters that LaTeX gives a meaning escaped; line breaks become spaces."""
    return "".join(ESCAPES.get(character, character) for character in re.sub(r"\s+", " ", text))


def latex_table(source: Source) -> str:
    """A table for each order; the values are rounded to one decimal."""
    return "\n".join([NEEDS, *(_table(order, group) for order, group in source.groups().items())])


def _table(order: str, group: Group) -> str:
    one = next(iter(group.values()))[0]
    bounded = all(e.report.is_bounded for experiments in group.values() for e in experiments)
    headings = ["Method", *map(escaped, one.tasks), "Mean", *([] if bounded else ["Mean of bounded"])]
    small = [r"\footnotesize", r"\setlength{\tabcolsep}{3pt}"] if len(one.tasks) >= MANY else []
    lines = [
        r"\begin{table}",
        r"\centering",
        *small,
        rf"\caption{{{_caption(order, group, bounded=bounded)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
    ]
    for quantity in SHOWN:
        lines += [r"\midrule", rf"\multicolumn{{{len(headings)}}}{{l}}{{\emph{{{TITLES[quantity]}}}}} \\"]
        lines += _block(group, quantity, bounded=bounded)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _caption(order: str, group: Group, *, bounded: bool) -> str:
    one = next(iter(group.values()))[0]
    seeds = sorted({len(experiments) for experiments in group.values()})
    of_order = f"Order {escaped(order)}. " if order else ""
    formulas = "; ".join(_formula(name) for name in SHOWN)
    text = f"{of_order}Scores in points on the {escaped(one.split)} split. {formulas}."
    if seeds[-1] > 1:
        numbers = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        text += f" Mean $\\pm$ sample standard deviation over {numbers} seeds."
    if not bounded:
        text += (
            f" Mean: over all tasks, each score capped at {CEILING:.0f}. Mean of bounded: over the tasks whose metric cannot "
            f"exceed {CEILING:.0f} (without CIDEr)."
        )
    return f"{text} {BOLD}"


def _formula(name: str) -> str:
    """What a quantity means, in words that LaTeX sets without a package."""
    words = {
        "last": "$R_{T,i}$, after the last task",
        "avg": r"$\frac{1}{T}\sum_{s=1}^{T} R_{s,i}$, the mean over all stages",
    }
    assert name in FORMULAS
    return f"{TITLES[name]}: {words[name]}"


def _block(group: Group, quantity: str, *, bounded: bool) -> list[str]:
    """A row per method that has a value."""
    rows = {method: _values(experiments, quantity, bounded=bounded) for method, experiments in group.items()}
    rows = {method: values for method, values in rows.items() if any(values)}
    rivals = [values for method, values in rows.items() if _competes(group[method][0])]
    best = [_best([values[column] for values in rivals]) for column in range(len(next(iter(rows.values()), [])))]
    return [
        " & ".join([escaped(method), *(_cell(value, top) for value, top in zip(values, best, strict=True))]) + r" \\"
        for method, values in rows.items()
    ]


def _competes(one: Experiment) -> bool:
    """Whether a method may be the best: bounds, and routings for diagnosis, may not."""
    return one.kind.protocol == "sequential" and not one.is_routing


def _values(experiments: Sequence[Experiment], quantity: str, *, bounded: bool) -> list[Spread | None]:
    """The values of the tasks, then the means."""
    reports = [one.report for one in experiments]
    by_task = [spread(report.quantities[quantity][task] for report in reports) for task in range(len(reports[0].tasks))]
    means = [spread(report.mean[quantity] for report in reports)]
    return [*by_task, *means, *([] if bounded else [spread(report.mean_of_bounded[quantity] for report in reports)])]


def _best(values: Sequence[Spread | None]) -> str | None:
    """The highest value as it is printed, so that equal texts are all bold; None where there is nothing to compare."""
    known = [value.mean for value in values if value is not None]
    return _number(max(known)) if len(known) > 1 else None


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"


def _cell(value: Spread | None, best: str | None) -> str:
    if value is None:
        return MISSING
    text = _number(value.mean)
    bold = text == best
    if value.deviation is None:
        return rf"\textbf{{{text}}}" if bold else text
    shown = rf"\mathbf{{{text}}}" if bold else text
    return rf"${shown} \pm {_number(value.deviation)}$"
