"""Seconds that the stages took, from the cost files of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.listing import list_folder
from dmole_cli.artifacts.run import Run
from dmole_cli.reports.evaluations import method_of

# Folders of costs: `profile`, and `train-task-<method>` for every method.
PROFILING, ROUTERS, TRAINING = "profile", "train-router", "train-task-"


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


def seconds_by_stage(run: Run, label: str, *, split: str = "test") -> dict[str, float]:
    """Seconds of a method's `profile`, `train-router`, `train-task` and `evaluate`, summed over the tasks.

    Profiles and routers are those of the run, and count only for a method that uses them; a stage without a cost is missing.

    Args:
        run: the run directory.
        label: of the method's evaluations, `d-mole@oracle` for those under another routing.
        split: whose evaluation counts.

    Raises:
        DmoleError: a file is damaged, or a folder cannot be read.
    """
    method, name = method_of(label), base_method(label)
    evaluated = "-".join(["evaluate", *([] if split == "test" else [split]), label])
    folders = {"train-task": f"{TRAINING}{name}", "evaluate": evaluated}
    if method.uses_allocation or method.uses_profile:
        folders["profile"] = PROFILING
    if method.uses_routers:
        folders["train-router"] = ROUTERS
    rows = {stage: _cost_row(run.cost(folder, "task").parent) for stage, folder in folders.items()}
    return {stage: row["seconds"] for stage, row in rows.items() if row["tasks"]}


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
