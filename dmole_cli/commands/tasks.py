"""`dmole tasks`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import DEFAULT_RUN, ConfigOption, DataRootOption, JsonOption, RunOption, open_session
from dmole_cli.errors import DmoleError

HELP = "List the tasks; --check opens their data and reports problems before hours are spent."


def tasks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks or cards (.toml). Default: the stream, or all that are built in.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Open the data: counts, pictures, answers, splits.")] = False,
    images: Annotated[int, typer.Option(min=0, help="Pictures to open per split with --check; 0 = all.")] = 64,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json: JsonOption = False,
) -> None:
    """List or check."""
    from dmole_cli.tasks import check_card, load_card, task_names

    session = open_session(run=run, config=config, data_root=data_root)
    stream = (*session.config.tasks, *session.config.unseen)
    chosen = names or [*stream, *(name for name in task_names() if name not in stream and not check)]
    cards = [session.card(name) if name in stream else load_card(name) for name in chosen]
    if not check:
        rows = [_row(session.config, card) for card in cards]
        console.data(rows) if json else _list(rows)
        return
    root = Path(session.config.data_root) if session.config.data_root else None
    reports = [check_card(card, data_root=root, images=images) for card in cards]
    if json:
        console.data([{**asdict(report), "ok": report.ok} for report in reports])
    else:
        for report in reports:
            print(f"{report.task}: " + ", ".join(f"{count} {split}" for split, count in report.rows.items()))
            for problem in report.problems:
                print(f"  {problem}")
    troubled = [report.task for report in reports if not report.ok]
    if troubled:
        raise DmoleError(
            f"problems in {', '.join(troubled)} (listed above)", "mend the data or the card, then check again"
        )


def _row(config, card) -> dict[str, object]:
    place = config.tasks.index(card.name) + 1 if card.name in config.tasks else None
    return {
        "stage": place,
        "name": card.name,
        "title": card.title,
        "metric": card.metric,
        "chance": card.reading.chance,
    }


def _list(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "task", "what", "metric")
    for row in rows:
        table.add_row(str(row["stage"] or "unseen"), str(row["name"]), str(row["title"]), str(row["metric"]))
    Console().print(table)
