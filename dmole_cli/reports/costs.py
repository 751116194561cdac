"""Seconds that the stages took, from the cost files of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.listing import list_folder
from dmole_cli.artifacts.run import Run
from dmole_cli.reports.evaluations import method_of

# Folders of costs: `profile`, and `train-task-<method>` for every method.
PROFILING, TRAINING = "profile", "train-task-"


def cost_rows(run: Run) -> list[dict[str, Any]]:
    """Read `costs/<stage>/<task>.json` and sum the seconds per stage, stages by name, as JSON values.

    A row has `stage`, `tasks` {task: seconds}, `seconds`, their sum, and `counts`, the summed counts of what the backbone
    computed. A cost that several runs share was paid once and appears in each of them.

    Raises:
        DmoleError: a file is damaged, or a folder cannot be read.
    """
    folders = {run.cost(stage, "task").parents[1] for stage in (PROFILING, TRAINING)}
    found = [path for folder in folders for path in list_folder(folder) if not path.is_file()]
    stages = sorted(found, key=lambda path: path.name)
    return [row for stage in stages if (row := _cost_row(stage))["tasks"]]


def profiling_share(run: Run) -> float | None:
    """Seconds of profiling over those of training, as a share (0.02 is 2 %); see `share_of_profiling`."""
    return share_of_profiling(cost_rows(run))


def share_of_profiling(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of profiling over those of the main method's training, for tasks that have both; None without such a task."""
    profiled = {task: s for row in rows if row["stage"] == PROFILING for task, s in row["tasks"].items()}
    trained = {task: s for row in rows if _trains_main_method(row["stage"]) for task, s in row["tasks"].items()}
    both = profiled.keys() & trained.keys()
    training = sum(trained[task] for task in both)
    return sum(profiled[task] for task in both) / training if training > 0 else None


def _trains_main_method(stage: str) -> bool:
    return stage.startswith(TRAINING) and method_of(stage.removeprefix(TRAINING)).is_main


def _cost_row(folder: Path) -> dict[str, Any]:
    costs = {path.stem: read_cost(path) for path in list_folder(folder) if path.suffix == ".json"}
    seconds = {task: cost["seconds"] for task, cost in costs.items()}
    counts = sum((Counter(cost["counts"]) for cost in costs.values()), Counter())
    return {"stage": folder.name, "tasks": seconds, "seconds": sum(seconds.values()), "counts": dict(counts)}
