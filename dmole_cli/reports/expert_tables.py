"""The tables of `dmole experts list` and `show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.artifacts.usage import Activation
from dmole_cli.reports.experts import ExpertRow
from dmole_cli.reports.layout import Grid, show, show_line

HEADINGS = (
    "", "expert", "sites\nv + l", "ranks", "parameters", "size", "score", "training\ntransfer", "active", "state",
)  # fmt: skip
RANKS = HEADINGS.index("ranks")


def show_experts(rows: Sequence[ExpertRow], usage: Activation) -> None:
    """Print a line per expert, and what is wrong with those that are unusable; ranks if they differ within any expert."""
    columns = list(range(len(HEADINGS)))
    if all(row.ranks is None or row.ranks[0] == row.ranks[1] for row in rows):
        columns.remove(RANKS)
    grid = Grid("", [HEADINGS[column] for column in columns], keys=2, left=frozenset({len(columns) - 1}))
    for row in rows:
        cells = (str(row.position or "–"), row.task, *_cells(row), _state(row))
        grid.add_row(*(cells[column] for column in columns))
    show(grid)
    for row in rows:
        if row.why:
            show_line(f"{row.task}: {row.why}")
    if usage.requests:
        show_line(
            f"active: share of the latest {usage.requests:,} requests; {_percent(usage.without_expert / usage.requests)} of them "
            "had no expert"
        )


def _cells(row: ExpertRow) -> list[str]:
    if row.parameters is None or row.bytes is None:
        return ["–"] * (len(HEADINGS) - 3)
    sites = f"{row.sites.get('vision', 0)} + {row.sites.get('language', 0)}"
    ranks = "–".join(map(str, dict.fromkeys(row.ranks or ()))) or "–"
    return [
        sites,
        ranks,
        f"{row.parameters:,}",
        size(row.bytes),
        "–" if row.score is None else f"{row.score:.1f}",
        "–" if not row.transfer else _percent(sum(row.transfer.values())),
        "–" if row.activation is None else _percent(row.activation),
    ]


def _state(row: ExpertRow) -> str:
    if row.state != "in the stream":
        return row.state
    return "in stream" if row.origin == "trained" else "imported"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def show_details(details: Mapping[str, Any]) -> None:
    """Print the facts about one expert, then a table of its sites and one of its scores."""
    for name, value in details.items():
        if name not in ("sites", "scores", "inputs", "settings", "facts"):
            show_line(f"{name.replace('_', ' ')}: {_words(value)}")
    for name in ("settings", "facts", "inputs"):
        if details.get(name):
            show_line(f"{name}:")
            for key, value in details[name].items():
                show_line(f"  {key}: {_words(value)}")
    if details["sites"]:
        grid = Grid("", ["site", "tower", "rank"])
        for site in details["sites"]:
            grid.add_row(site["site"], site["modality"], str(site["rank"]))
        show(grid)
    if details["scores"]:
        grid = Grid("", ["after tasks", "score", "metric"])
        for entry in details["scores"]:
            grid.add_row(str(entry["after"]), f"{entry['score']:.1f}", entry["metric"])
        show(grid)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return "–" if value is None or value == "" else str(value)
