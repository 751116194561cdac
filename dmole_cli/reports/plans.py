"""Tables of `dmole plan`: budgets, memory, bytes on disk, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmole_cli.reports.layout import Grid, show, show_line

Row = Mapping[str, Any]


def show_plan(planned: Row) -> None:
    """Print sites and parameters per budget, and the peak memory of the work."""
    sites = ", ".join(f"{count} {name}" for name, count in planned["sites"].items())
    show_line(f"{planned['model']}: {planned['parameters']:,} parameters; sites ({planned['pattern']}): {sites}")
    rank = "ranks by sensitivity" if planned["rank"] == "auto" else f"rank {planned['rank']}"
    budgets = Grid(f"what a task may add, at {rank}", ["budget", "sites", "parameters", "expert MB"])
    for row in planned["budgets"]:
        bought = (str(row["sites"]), f"{row['parameters']:,}", f"{row['bytes'] / 1e6:,.1f}") if "sites" in row else ()
        budgets.add_row(row["budget"], *(bought or ("", "", "refused")))
    show(budgets)
    for row in planned["budgets"]:
        if "refused" in row:
            show_line(row["refused"])
    figures = ["batch", "tokens", "checkpointing", "tensors", "weights", "libraries", "process"]
    memory = Grid("peak memory, MB", ["task", "work", *figures], keys=2)
    for row in planned["memory"]:
        sizes = (f"{row[name] / 1e6:,.0f}" for name in ("tensors", "weights", "libraries", "process"))
        recomputed = "yes" if row["checkpointing"] else "no"
        memory.add_row(row["task"], row["work"], str(row["batch_size"]), str(row["tokens"]), recomputed, *sizes)
    show(memory)
    show(_disk_table(planned))
    _show_time(planned)
    for assumption in planned["assumes"]:
        show_line(f"assumes: {assumption}")


def _disk_table(planned: Row) -> Grid:
    disk = Grid("on disk, for the whole stream", ["artifacts", "files", "MB"])
    for row in planned["disk"]:
        disk.add_row(row["kind"], f"{row['files']:,}", f"{row['bytes'] / 1e6:,.2f}")
    return disk


def _show_time(planned: Row) -> None:
    """Print the time per stage, or the command that determines it."""
    time = planned["time"]
    if time is None:
        show_line(
            "time: unknown; measure it (dmole plan --measure), or name a run whose stages have run (dmole plan --from RUN)"
        )
        return
    processes = time["processes"]
    by = "one process" if processes == 1 else f"{processes} processes"
    of = "measured here" if time["source"] == "measured" else f"from the figures of {time['source']}"
    grid = Grid(
        f"time by {by}, {of}",
        ["stage", "work", "start", "computing", "in all"],
        left=frozenset({1}),
        sentences=frozenset({1}),
    )
    work = _work(planned["work"])
    for row in time["stages"]:
        grid.add_row(
            row["stage"], work[row["stage"]], *(duration(row[key]) for key in ("start", "computing", "seconds"))
        )
    grid.add_row("in all", "", "", "", duration(time["seconds"]))
    show(grid)
    if time["start"]["loading"] is None:
        show_line("without the time that loading the backbone takes, once per command")


def _work(rows: list[Row]) -> dict[str, str]:
    """What each stage processes, in words."""

    def total(key: str) -> str:
        return f"{sum(row[key] for row in rows):,}"

    trained = sum(row["steps"] > 0 for row in rows)
    return {
        "profile": f"{total('profile_batches')} batches, {total('profile_tokens')} tokens",
        "allocate": f"{trained} tasks",
        "train-router": f"{total('training_samples')} features, {trained} routers",
        "train-task": f"{total('steps')} steps, {total('training_tokens')} tokens",
        "evaluate": f"{total('entries')} entries, about {total('predictions')} predictions",
    }


def duration(seconds: float) -> str:
    """Seconds as `2 h 05 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
