"""`dmole experts load`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.service import KeyOption, UrlOption, ask_service
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("shared",)
WRITES = False


def run(
    work: Workspace,
    removed_tasks: Annotated[list[str], typer.Argument(help="Task; repeatable.", metavar="TASK")],
    *,
    url: UrlOption = None,
    api_key: KeyOption = None,
) -> None:
    """Bring removed tasks back, or load experts in a running service."""
    if url is not None:
        ask_service(url, "load", {"experts": removed_tasks}, key=api_key, json=work.json)
        return
    from dmole_cli.stages.remove_task import load_task

    changes = [load_task(task, settings=work.settings, run=work.run) for task in removed_tasks]
    if work.json:
        console.data([change.as_dict() for change in changes])
        return
    for change in changes:
        console.say(f"loaded {change.task} as task {change.position} of the stream; moved {change.files} files back")
        if change.set_aside:
            place = work.run.removed(f"{change.task}.other-streams").root
            console.say(f"moved {change.set_aside} evaluations of another stream to {place}")
    console.say(f"the stream is now: {', '.join(changes[-1].tasks)}")
    for line in changes[-1].stale:
        console.say(f"warning: {line}")
    configured = work.configured_tasks
    if configured and (missing := [task for task in removed_tasks if task not in configured]):
        console.say(f"warning: `tasks` of the configuration does not name {', '.join(missing)}; add it there")
