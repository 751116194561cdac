"""`dmole tasks list`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.completion import of_tasks
from dmole_cli.cli.workspace import Workspace
from dmole_cli.data.card import task_names

SETTINGS = ("data_root",)
USES_RUN = WRITES = False


def run(
    work: Workspace,
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or task cards (.toml).", metavar="TASK", autocompletion=of_tasks)
    ] = None,
) -> None:
    """List tasks with title and metric."""
    stream = (*work.settings.tasks, *work.settings.unseen)
    chosen = names or [*stream, *(name for name in task_names() if name not in stream)]
    rows = [
        {
            "stage": work.settings.tasks.index(card.name) + 1 if card.name in work.settings.tasks else None,
            "unseen": card.name in work.settings.unseen,
            "name": card.name,
            "title": card.title,
            "metric": card.metric,
            "chance": card.reading.chance,
        }
        for card in work.cards(chosen)
    ]
    if work.json:
        console.data(rows)
        return
    from dmole_cli.reports.listings import show_tasks

    show_tasks(rows)
