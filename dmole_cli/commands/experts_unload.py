"""`dmole experts unload`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.cli.derive import WHAT
from dmole_cli.cli.service import URL, KeyOption, UrlOption, ask_service
from dmole_cli.cli.workspace import Workspace

SETTINGS = ()
USES_RUN = WRITES = False
IDLE = "Unload the experts that were active in none of the service's last N requests."


def run(
    work: Workspace,
    tasks: Annotated[list[str] | None, typer.Argument(help="Task; repeatable.", metavar="TASK")] = None,
    *,
    idle: Annotated[int | None, typer.Option(min=1, help=IDLE, metavar="N", rich_help_panel=WHAT)] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
) -> None:
    """Free the memory of experts in a running service."""
    if bool(tasks) == (idle is not None):
        raise typer.BadParameter("pass the experts to unload, or --idle N")
    request = {"experts": tasks} if tasks else {"idle": idle}
    ask_service(url or URL, "unload", request, key=api_key, json=work.json)
