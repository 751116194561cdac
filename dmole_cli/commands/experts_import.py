"""`dmole experts import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("backbone", "dtype", "attention", "quantize", "shared")
WRITES = False


def run(
    work: Workspace,
    folder: Annotated[Path, typer.Argument(help="Folder that `dmole experts export` wrote.", metavar="DIR")],
) -> None:
    """Add the experts of a bundle to the stream of a run."""
    from dmole_cli.stages.import_bundle import import_bundle

    outcomes = import_bundle(folder, **work.parts_without_data)
    console.report(outcomes, as_json=work.json, following=work.repeating("dmole experts list"))
    configured = work.configured_tasks
    missing = [outcome.task for outcome in outcomes if outcome.task not in configured]
    if configured and missing:
        console.say(
            f"warning: `tasks` of the configuration does not name {', '.join(missing)}, and hides them; add them there"
        )
