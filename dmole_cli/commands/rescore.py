"""`dmole rescore`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.cli.completion import of_shelf
from dmole_cli.cli.shared_options import MethodsOption, StagesOption, TasksOption, chosen_stages
from dmole_cli.cli.workspace import Workspace
from dmole_cli.data.card import task_name

SETTINGS = ("evaluate.split", "shared")


def run(
    work: Workspace,
    metric: Annotated[
        list[str],
        typer.Argument(help="Metric, a file of metrics/.", metavar="METRIC", autocompletion=of_shelf("metrics")),
    ],
    stage: StagesOption = None,
    task: TasksOption = None,
    method: MethodsOption = None,
) -> None:
    """Score the chosen evaluations again."""
    from dmole_cli.stages.rescore import Wanted, rescore

    wanted = Wanted(
        methods=method or None,
        after=chosen_stages(stage, len(work.settings.tasks)),
        # Names and not cards: evaluations can be scored without the task's data.
        tasks=[task_name(name) for name in task] if task else None,
        diagonal="diagonal" in (stage or ()),
        split=work.settings.evaluate.split,
    )
    stream = work.settings.tasks
    outcomes = [one for name in metric for one in rescore(name, wanted, stream=stream, run=work.run, force=work.force)]
    work.report(outcomes, following=f"dmole report last {' '.join(f'--rescored {name}' for name in metric)}")
