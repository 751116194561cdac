"""`dmole evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli import console
from dmole_cli.cli.derive import MODEL, OUTPUT, WHAT
from dmole_cli.cli.shared_options import MethodsOption, StagesOption, TasksOption, chosen_stages
from dmole_cli.cli.workspace import Workspace
from dmole_cli.commands.report import REPORTS, require_report, show_report
from dmole_cli.settings.reading import with_options

SETTINGS = ("evaluate", *MODEL, "data_root", "shared", "vision_cache")
REPEATABLE = ("evaluate.routing", "evaluate.threshold_scale")


def run(
    work: Workspace,
    *,
    stage: StagesOption = None,
    task: TasksOption = None,
    method: MethodsOption = None,
    report: Annotated[
        str | None,
        typer.Option(
            help=f"Report one of {', '.join(REPORTS)}; without --stage and --task, only stored evaluations are read.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option("--likelihood", help="Also compute likelihoods of the reference answers.", rich_help_panel=WHAT),
    ] = False,
    routing: list[str],
    threshold_scale: list[float],
) -> None:
    """Evaluate the chosen entries of the score matrix, and report."""
    require_report(report)
    from dmole_cli.cli.unused import refuse_unused_in_evaluation

    evaluates = bool(report is None or stage or task or likelihood)
    refuse_unused_in_evaluation(work, method or [D_MOLE], routing, evaluates=evaluates)
    if evaluates:
        names = _tasks(work, task)
        stages = chosen_stages(stage, len(work.settings.tasks))
        from dmole_cli.stages.evaluate import Selection, evaluate

        selection = Selection(stages, names or None, diagonal="diagonal" in (stage or ()), likelihood=likelihood)
        modes = [{"evaluate.routing": mode} for mode in routing] or [{}]
        scales = [{"evaluate.threshold_scale": scale} for scale in threshold_scale] or [{}]
        # All combinations are validated before the first one is used.
        every = [with_options(work.settings, {**mode, **scale}) for mode in modes for scale in scales]
        outcomes = []
        for settings in every:
            parts = work.parts
            parts["settings"] = settings
            for name in method or [D_MOLE]:
                outcomes += evaluate(name, selection, **parts, force=work.force, track=work.track)
        following = "" if report else f"dmole evaluate --report {'knowledge' if likelihood else 'bwt'}"
        console.report(outcomes, as_json=work.json and report is None, following=following)
    if report is not None:
        show_report(work, report, method)


def _tasks(work: Workspace, typed: list[str] | None) -> list[str]:
    names = work.chosen(typed) if typed else []
    for name in names:
        if name not in work.settings.unseen:
            work.settings.position(name)
    return names
