"""`dmole tasks new`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import FILES
from dmole_cli.cli.workspace import Workspace
from dmole_cli.settings.reading import DEFAULT_FILE

SETTINGS = ("backbone",)
USES_RUN = False


def run(
    work: Workspace,
    card: Annotated[Path, typer.Argument(help="Task card (.toml) to write.", metavar="CARD")],
    source: Annotated[
        list[Path],
        typer.Option(
            "--from",
            help="Annotations: one file or folder, which is split, or those of train, [validation,] test.",
            rich_help_panel=FILES,
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder at which image paths start.", rich_help_panel=FILES)
    ] = None,
) -> None:
    """Write a task card for new data."""
    from dmole_cli.data.new_card import new_card

    option, count_tokens = "", None
    if "backbone" in work.typed:
        from dmole_cli.backbones.preview import SamplePreview

        option = f" {work.typed['backbone']}"
        count_tokens = SamplePreview.of(work.model.name).answer_lengths
    embedded = work.settings.backbone == "embedded"
    made = new_card(
        card,
        source,
        images=images,
        learning_rate=6e-3 if embedded else 1e-4,
        count_tokens=count_tokens,
        force=work.force,
    )
    stages = ("profile", "allocate", "train-router", "train-task", "evaluate")
    following = [f"dmole tasks check {shlex.quote(str(card))}{option}", _listing(card)]
    following += [f"dmole {stage}{option}" for stage in stages]
    if work.json:
        guessed = {key: {"guess": guess, "why": why} for key, (guess, why) in made.said.items()}
        console.data({"card": str(card), "rows": made.rows, "guessed": guessed, "next": following})
        return
    console.say(f"wrote {card}")
    for key, (guess, why) in made.said.items():
        console.say(f"  {key}: {guess or 'none'}  ({why})".replace("\n", "\\n"))
    console.say("\n".join(["next:", *(f"  {line}" for line in following)]))


def _listing(path: Path) -> str:
    """How the card is added to the stream."""
    if DEFAULT_FILE.exists():
        return f'# add "{path}" to the tasks of {DEFAULT_FILE}'
    return f"printf 'tasks = [\"{path}\"]\\nunseen = []\\n' > {DEFAULT_FILE}"
