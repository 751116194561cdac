"""`dmole tasks new`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import FILES
from dmole_cli.cli.workspace import Workspace
from dmole_cli.settings.documents import read_toml
from dmole_cli.settings.reading import DEFAULT_FILE, read_settings

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
    from dmole_cli.data.recipes import few_steps

    option = "".join(f" {work.typed[name]}" for name in ("backbone", "config") if name in work.typed)
    config = Path(shlex.split(work.typed["config"])[1]) if "config" in work.typed else DEFAULT_FILE
    count_tokens = None
    if "backbone" in work.typed:
        from dmole_cli.backbones.preview import SamplePreview

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
    following = [f"dmole tasks check {shlex.quote(str(card))}{option}", _listing(card, config)]
    following += [f"dmole {stage}{option}" for stage in stages]
    if warning := few_steps(f"{card.stem} is trained", made.steps):
        console.say(f"warning: {warning}")
    if work.json:
        guessed = {key: {"guess": guess, "why": why} for key, (guess, why) in made.said.items()}
        console.data({"card": str(card), "rows": made.rows, "guessed": guessed, "next": following})
        return
    console.say(f"wrote {card}")
    for key, (guess, why) in made.said.items():
        console.say(f"  {key}: {guess or 'none'}  ({why})".replace("\n", "\\n"))
    console.say("\n".join(["next:", *(f"  {line}" for line in following)]))


def _listing(card: Path, config: Path) -> str:
    """How the card is added to the stream; nothing in the configuration is overwritten."""
    if not config.exists():
        if re.fullmatch(r"[\w./-]+", str(card)):
            return f"printf 'tasks = [{_quoted(card)}]\\nunseen = []\\n' >> {shlex.quote(str(config))}"
        lines = [f"tasks = [{_quoted(card)}]", "unseen = []"]
        return f"printf '%s\\n' {shlex.join(lines)} >> {shlex.quote(str(config))}"
    stream = list(read_settings(config).tasks)
    if str(card) in stream:
        return f"# {config} has the task already"
    if "tasks" not in read_toml(config):
        return f"# add this line at the top of {config}: tasks = [{_quoted(card)}]"
    return f"# add the task to {config}: tasks = [{', '.join(map(_quoted, [*stream, card]))}]"


def _quoted(name: object) -> str:
    """A text as TOML."""
    return json.dumps(str(name), ensure_ascii=False)
