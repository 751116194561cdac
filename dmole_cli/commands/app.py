"""Mounts the subcommands; the one place where a DmoleError becomes two lines on stderr and exit code 1."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from typing import Annotated

import typer

from dmole_cli import __version__
from dmole_cli.commands import allocate, evaluate, export, import_, profile, sites, tasks, train_router, train_task
from dmole_cli.commands.console import fail, quiet
from dmole_cli.errors import DmoleError

app = typer.Typer(
    help="Keep teaching a vision-language model new tasks without it forgetting the old ones (D-MoLE).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # the other mode takes "[default: 2%]" for markup and leaves it out
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("tasks", help=tasks.HELP)(tasks.tasks)
app.command("sites", help=sites.HELP)(sites.sites)
app.command("profile", help=profile.HELP)(profile.profile)
app.command("allocate", help=allocate.HELP)(allocate.allocate)
app.command("train-router", help=train_router.HELP)(train_router.train_router)
app.command("train-task", help=train_task.HELP)(train_task.train_task)
app.command("evaluate", help=evaluate.HELP)(evaluate.evaluate)
app.command("export", help=export.HELP)(export.export)
app.command("import", help=import_.HELP)(import_.import_)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dmole {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Each stage reads files and writes one: profile -> allocate -> train-router -> train-task -> evaluate."""


class _Interrupted(BaseException):
    """Ctrl-C, or a polite request to end: no Exception, so that nothing on the way takes it for a problem of its own."""


def _interrupted(number: int, frame: object) -> None:
    raise _Interrupted


def main() -> None:
    """Entry point of `dmole`."""
    quiet()
    # The interpreter's last collection walks over every object of torch and transformers: a second that frees nothing.
    atexit.register(gc.freeze)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        app()
    except _Interrupted:
        fail(DmoleError("interrupted; nothing half-written was left", "start the same command again"))
        sys.exit(1)
    except DmoleError as error:
        fail(error)
        sys.exit(1)
