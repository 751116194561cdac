"""`dmole experts show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.usage import Usage
from dmole_cli.cli import console
from dmole_cli.cli.completion import of_tasks
from dmole_cli.cli.derive import MODEL
from dmole_cli.cli.experts import LastOption, shelf_of
from dmole_cli.cli.shared_options import MethodOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

SETTINGS = (*MODEL, "shared")
WRITES = False


def run(
    work: Workspace,
    task: Annotated[str, typer.Argument(help="Task of the stream, or a removed one.", autocompletion=of_tasks)],
    *,
    method: MethodOption = D_MOLE,
    last: LastOption = None,
) -> None:
    """Show everything about one expert."""
    from dmole_cli.reports.expert_tables import show_details
    from dmole_cli.reports.experts import details_of

    usage = Usage(work.run.usage(method)).counts(last)
    shelf = shelf_of(work, method)
    rows = shelf.rows(usage, [task])
    if not rows:
        known = ", ".join(row.task for row in shelf.rows(usage)) or "none"
        raise DmoleError(f"method {method} has no expert of a task {task} in {work.run.root}", f"experts: {known}")
    details: dict[str, Any] = details_of(shelf, rows[0], usage)
    if work.json:
        console.data(details)
    else:
        show_details(details)
