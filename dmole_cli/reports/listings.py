"""Tables of what commands beside the score reports list: tasks, checks, candidate sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmole_cli.reports.layout import Grid, show, show_line

if TYPE_CHECKING:
    from dmole_cli.data.checking import CheckReport

Row = Mapping[str, Any]


def show_tasks(rows: Sequence[Row]) -> None:
    """Print tasks with their position in the stream, title and metric."""
    grid = Grid("", ["stage", "task", "what", "metric"], keys=2, left=frozenset({3}), sentences=frozenset({2}))
    for row in rows:
        position = row["stage"] or ("unseen" if row["unseen"] else "–")
        grid.add_row(str(position), row["name"], row["title"], row["metric"])
    show(grid)


def show_check(report: CheckReport) -> None:
    """Print what a check found, and the samples as the model sees them."""
    counts = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    show_line(f"{report.task}: {counts}; {sum(report.opened.values())} images opened")
    for problem in report.problems:
        show_line(f"  {problem if problem.serious else f'note: {problem}'}")
    for look in report.looks:
        if "problem" in look:
            show_line(f"  {look['sample_id']}: {look['problem']}")
            continue
        sizes = ", ".join(f"{size['width']} x {size['height']}" for size in look["images"])
        images = f"images {sizes} in {look['tiles']} tile(s)" if sizes else "no image"
        show_line(f"  {look['sample_id']}: {images}, {look['tokens']} tokens, {look['answer_tokens']} of the answer")
        for line in [*look["prompt"].splitlines(), f"-> {look['answer']}"]:
            show_line(f"    | {line}")


def show_sites(listing: Row) -> None:
    """Print candidate sites and the modules that are left out."""
    sites = listing["sites"]
    inside = sum(site["parameters"] for site in sites)
    show_line(
        f"{listing['model']}: {listing['parameters']:,} parameters, {len(sites)} sites ({listing['pattern']}) "
        f"with {inside:,} of them"
    )
    show(_sites_table(sites))
    show(_left_out_table(listing["left_out"]))


def _sites_table(sites: Sequence[Row]) -> Grid:
    """Sites that differ in their block only share a row."""
    headings = ["site", "modality", "blocks", "kind", "inputs", "outputs", "parameters", "sites"]
    grid = Grid("sites", headings, left=frozenset({1, 3}), sentences=frozenset({2}))
    groups: dict[tuple, list[int]] = {}
    for site in sites:
        path = site["name"].replace(f".{site['block']}.", ".*.", 1)
        shape = (site["in_features"], site["out_features"], site["parameters"])
        groups.setdefault((site["modality"], path, site["kind"], *shape), []).append(site["block"])
    for (modality, path, kind, *numbers), blocks in groups.items():
        grid.add_row(path, modality, _ranges(blocks), kind, *(f"{number:,}" for number in numbers), str(len(blocks)))
    return grid


def _left_out_table(rows: Sequence[Row]) -> Grid:
    headings = ["left out", "modality", "kind", "modules", "parameters", "why"]
    grid = Grid("left out", headings, left=frozenset({1, 2}), sentences=frozenset({5}))
    for row in rows:
        size = f"{row['parameters']:,}" if row["parameters"] else "shared"
        grid.add_row(row["name"], row["modality"], row["kind"], str(row["modules"]), size, row["why"])
    return grid


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `0-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
