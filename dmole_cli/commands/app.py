"""Mounts the subcommands."""

from __future__ import annotations

import atexit
import gc
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli import __version__
from dmole_cli.cli.console import quiet_libraries
from dmole_cli.cli.ending import run
from dmole_cli.cli.lazy import LazyGroup
from dmole_cli.cli.retired import refuse_retired

if TYPE_CHECKING:
    from dmole_cli.settings.model import Settings

# name -> what it does; the module of the same name has its options and its `run`.
COMMANDS = {
    "tasks": "List tasks; check their data; make a task card for new data.",
    "sites": "Show the candidate sites of a backbone, and which modules are left out and why; loads no weights.",
    "plan": "Show sites and parameters per budget, and the peak memory of profiling and training; loads no weights.",
    "profile": "Measure how sensitive a task's loss is to each site: `profiles/<task>.parquet`.",
    "allocate": "Place a task's experts under a parameter budget: `allocations/<task>.json`.",
    "train-router": "Train the autoencoder that recognises a task's inputs: `routers/<task>.safetensors`.",
    "train-task": "Train one task's expert, and nothing else: `experts/<task>.safetensors`.",
    "evaluate": "Evaluate every task after every task; with --report, also report the scores.",
    "update": "Bring the whole stream up to date: show what is missing, stale or follows, and how long it takes; ask; run it.",
    "answer": "Answer a question about images, or a file of questions, with the experts that the routers choose.",
    "serve": "Answer questions over HTTP, in the shape of OpenAI's chat completions; needs `dmole[serve]`.",
    "rescore": "Score stored predictions by another metric, without the model.",
    "report": "Report Last, AVG, BWT and more from stored evaluations; also as a page with figures and case studies.",
    "status": "Show which artifacts of the stream exist, are missing or stale, how long they took, and the next command.",
    "verify": "Check that every artifact of a run was made from its inputs; name what is broken and the command that repairs it.",
    "experts": "List the experts of a run; remove and restore one; hand experts over to another run; unload them in a service.",
    "export": "Write a task's expert for use without dmole: as a PEFT LoRA adapter, or merged into the backbone.",
    "import": "Import a PEFT LoRA adapter as a task's expert: `experts/<task>.safetensors`.",
}


class Commands(LazyGroup):
    """The subcommands of `dmole`."""

    table = COMMANDS


app = typer.Typer(
    cls=Commands,
    help="Keep teaching a vision-language model new tasks without forgetting the earlier ones (D-MoLE).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # the other mode reads "[default: 2%]" as markup and leaves it out
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def command(settings: type[Settings] | None = None) -> None:
    """Run the command line of this process.

    Args:
        settings: the model of all settings, with those of an extension; by default `Settings`.
    """
    quiet_libraries()
    # The interpreter's last garbage collection visits every object of torch and transformers: a second that frees nothing.
    atexit.register(gc.freeze)
    refuse_retired(sys.argv[1:])
    app(obj=settings)


def main(settings: type[Settings] | None = None) -> None:
    """Run the command line of this process with an extension's settings, and exit; `dmole` itself is `dmole_cli.__main__`.

    Args:
        settings: as for `command`.
    """
    run(partial(command, settings))
