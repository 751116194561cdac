"""What the subcommands of `dmole experts` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.cli.derive import WHAT
from dmole_cli.cli.workspace import Workspace

if TYPE_CHECKING:
    from dmole_cli.reports.experts import Shelf

LastOption = Annotated[
    int | None,
    typer.Option(min=1, help="Count activation in the last N requests only.", metavar="N", rich_help_panel=WHAT),
]


def shelf_of(work: Workspace, method: str) -> Shelf:
    """The experts of a method in the run of a command."""
    from dmole_cli.methods.base import load_method
    from dmole_cli.reports.experts import Modalities, Shelf

    return Shelf(work.run, work.settings, load_method(method), work.model.fingerprint, Modalities(work.model.name))
