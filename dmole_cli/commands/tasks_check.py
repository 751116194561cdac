"""`dmole tasks check`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.completion import of_tasks
from dmole_cli.cli.derive import HOW
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

SETTINGS = ("train.max_length", "backbone", "data_root", "shared")
WRITES = False


def run(
    work: Workspace,
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or task cards (.toml).", metavar="TASK", autocompletion=of_tasks)
    ] = None,
    open_images: Annotated[
        int, typer.Option(min=0, help="Rows per split whose images are opened, 0 for all.", rich_help_panel=HOW)
    ] = 0,
    show_samples: Annotated[
        int, typer.Option(min=0, help="Samples to show as the model sees them, with --backbone.", rich_help_panel=HOW)
    ] = 5,
    sample_seed: Annotated[int, typer.Option(help="Seed of the choice of these samples.", rich_help_panel=HOW)] = 0,
) -> None:
    """Check the chosen tasks, by default the whole stream with the unseen ones."""
    from dmole_cli.data.card import task_name
    from dmole_cli.data.loading import check_card
    from dmole_cli.data.recipes import few_steps, steps_of

    model = None
    if "backbone" in work.typed:
        from dmole_cli.backbones.preview import SamplePreview

        model = SamplePreview.of(work.model.name, max_length=work.settings.train.max_length)
    cards = work.cards(names or [*work.settings.tasks, *work.settings.unseen])
    reports = [
        check_card(
            card,
            data_root=work.data.data_root,
            images=open_images,
            model=model,
            looks=show_samples,
            seed=sample_seed,
            digests=work.data.image_digests,
            track=work.track,
        )
        for card in cards
    ]
    unseen = {task_name(entry) for entry in work.settings.unseen}
    reports = [report.of_unseen() if report.task in unseen else report for report in reports]
    if work.run.root.is_dir():
        work.data.image_digests.save()
    if work.json:
        problems = [[{**asdict(p), "serious": p.serious} for p in report.problems] for report in reports]
        rows = zip(reports, problems, strict=True)
        console.data([{**asdict(report), "problems": found, "ok": report.ok} for report, found in rows])
    else:
        from dmole_cli.reports.listings import show_check

        for report in reports:
            show_check(report)
    for card, report in zip(cards, reports, strict=True):
        if warning := few_steps(f"{card.name} is trained", steps_of(card.recipe, report.rows.get("train", 0))):
            console.say(f"warning: {warning}")
    if failed := [report.task for report in reports if not report.ok]:
        raise DmoleError(
            f"problems in {', '.join(failed)} (listed above)", "fix the data or the card, then check again"
        )
