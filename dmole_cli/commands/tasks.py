"""`dmole tasks`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import (
    DEFAULT_RUN,
    BackboneOption,
    ConfigOption,
    DataRootOption,
    JsonOption,
    RunOption,
    open_session,
)
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.loading import CheckReport
    from dmole_cli.session import Session

HELP = "List the tasks; --check reads their data and reports problems before hours are spent; --new writes a card."
LOOKS = 5


def tasks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks or cards (.toml). Default: the stream, or all that are built in.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read the data once: rows, pictures, answers, ids, splits.")
    ] = False,
    new: Annotated[
        Path | None, typer.Option("--new", help="Write a task card (.toml) for the data of --from, guessed from them.")
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", help="File or folder of annotations: one, which is divided; or train, [validation,] test."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|N",
            help="With --new: the folder that pictures' names start at. With --check: rows whose pictures are opened, "
            "per split. [default: all]",
        ),
    ] = None,
    looks: Annotated[
        int, typer.Option(min=0, help="Samples to show as the model sees them, with --check --backbone.")
    ] = LOOKS,
    seed: Annotated[int, typer.Option(help="Of the choice of these samples.")] = 0,
    backbone: BackboneOption = None,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="With --new: overwrite the card.")] = False,
) -> None:
    """List, check, or make a card."""
    from dmole_cli.data.loading import load_card, task_names

    if (new is None) != (not source) or (new and (check or names)):
        raise typer.BadParameter("--new CARD.toml and --from DATA go together, and with no task or --check")
    session = open_session(run=run, config=config, data_root=data_root, backbone=backbone)
    if new is not None:
        _new(session, new, source or [], images=images, backbone=backbone, json=json, force=force)
        return
    if images is not None and not images.isdecimal():
        raise typer.BadParameter(f"--images {images}: with --check a number of rows, 0 for all")
    stream = (*session.config.tasks, *session.config.unseen)
    chosen = names or [*stream, *(name for name in task_names() if name not in stream and not check)]
    cards = [session.card(name) if name in stream else load_card(name) for name in chosen]
    if check:
        _check(session, cards, images=int(images or 0), looks=looks, seed=seed, backbone=backbone, json=json)
        return
    rows = [_row(session.config, card) for card in cards]
    console.data(rows) if json else _list(rows)


def _new(
    session: Session,
    path: Path,
    sources: list[Path],
    *,
    images: str | None,
    backbone: str | None,
    json: bool,
    force: bool,
) -> None:
    from dmole_cli.data.new_card import new_card

    count_tokens = None
    if backbone is not None:
        from dmole_cli.backbones.preview import SamplePreview

        count_tokens = SamplePreview.of(backbone).answer_lengths
    embedded = session.config.backbone == "embedded"
    made = new_card(
        path,
        sources,
        images=Path(images) if images else None,
        learning_rate=6e-3 if embedded else 1e-4,
        count_tokens=count_tokens,
        force=force,
    )
    option = f" --backbone {shlex.quote(backbone)}" if backbone else ""
    card = shlex.quote(str(path))
    following = [f"dmole tasks --check {card}{option}", _listing(path)]
    following += [
        f"dmole {stage}{option}" for stage in ("profile", "allocate", "train-router", "train-task", "evaluate")
    ]
    if json:
        said = {key: {"guess": guess, "why": why} for key, (guess, why) in made.said.items()}
        console.data({"card": str(path), "rows": made.rows, "guessed": said, "next": following})
        return
    console.say(f"wrote {path}")
    for key, (guess, why) in made.said.items():
        console.say(f"  {key}: {guess or 'none'}  ({why})".replace("\n", "\\n"))
    console.say("next:")
    for line in following:
        console.say(f"  {line}")


def _listing(path: Path) -> str:
    """How the card comes into the stream."""
    from dmole_cli.settings.model import DEFAULT_FILE

    if DEFAULT_FILE.exists():
        return f'# add "{path}" to the tasks of {DEFAULT_FILE}'
    return f"printf 'tasks = [\"{path}\"]\\nunseen = []\\n' > {DEFAULT_FILE}"


def _check(
    session: Session, cards: list[Any], *, images: int, looks: int, seed: int, backbone: str | None, json: bool
) -> None:
    from dmole_cli.data.loading import check_card

    model = None
    if backbone is not None:
        from dmole_cli.backbones.preview import SamplePreview

        model = SamplePreview.of(backbone, max_length=session.config.train.max_length)
    reports = [
        check_card(
            card,
            data_root=Path(session.config.data_root) if session.config.data_root else None,
            images=images,
            model=model,
            looks=looks,
            seed=seed,
            digests=session.image_digests,
            track=console.tracker(not json),
        )
        for card in cards
    ]
    if session.run.root.is_dir():
        session.image_digests.save()
    if json:
        console.data([_as_json(report) for report in reports])
    else:
        for report in reports:
            _show(report)
    troubled = [report.task for report in reports if not report.ok]
    if troubled:
        raise DmoleError(
            f"problems in {', '.join(troubled)} (listed above)", "mend the data or the card, then check again"
        )


def _as_json(report: CheckReport) -> dict[str, Any]:
    problems = [{**asdict(problem), "serious": problem.serious} for problem in report.problems]
    return {**asdict(report), "problems": problems, "ok": report.ok}


def _show(report: CheckReport) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    print(f"{report.task}: {counts}; {sum(report.opened.values())} pictures opened")
    for problem in report.problems:
        print(f"  {problem if problem.serious else f'note: {problem}'}")
    for look in report.looks:
        if "problem" in look:
            print(f"  {look['sample_id']}: {look['problem']}")
            continue
        sizes = ", ".join(f"{size['width']} x {size['height']}" for size in look["images"])
        pictures = f"pictures {sizes} in {look['tiles']} tile(s)" if sizes else "no picture"
        print(f"  {look['sample_id']}: {pictures}, {look['tokens']} tokens, {look['answer_tokens']} of the answer")
        for line in [*look["prompt"].splitlines(), f"-> {look['answer']}"]:
            print(f"    | {line}")


def _row(config, card) -> dict[str, object]:
    place = config.tasks.index(card.name) + 1 if card.name in config.tasks else None
    return {
        "stage": place,
        "unseen": card.name in config.unseen,
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
        table.add_row(
            str(row["stage"] or ("unseen" if row["unseen"] else "–")),
            str(row["name"]),
            str(row["title"]),
            str(row["metric"]),
        )
    Console().print(table)
