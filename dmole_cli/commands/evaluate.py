"""`dmole evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.labels import labelled, routing_options
from dmole_cli.cli import console
from dmole_cli.cli.completion import of_choices
from dmole_cli.cli.derive import COMPUTING, OUTPUT, WHAT
from dmole_cli.cli.shared_options import MethodsOption, StagesOption, TasksOption, chosen_stages
from dmole_cli.cli.workspace import Workspace
from dmole_cli.commands.report import REPORTS, require_report, show_report, where
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import with_options

SHARED_BY_PROCESSES = True
SETTINGS = ("evaluate", *COMPUTING)
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
            autocompletion=of_choices(REPORTS),
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
    modes = [{"evaluate.routing": mode} for mode in routing] or [{}]
    scales = [{"evaluate.threshold_scale": scale} for scale in threshold_scale] or [{}]
    # All combinations are validated before the first one is used.
    every = [with_options(work.settings, {**mode, **scale}) for mode in modes for scale in scales]
    labels = _labels(method, every, typed=bool(routing or threshold_scale))
    from dmole_cli.cli.unused import refuse_unused_in_evaluation

    evaluates = bool(report is None or stage or task or likelihood)
    refuse_unused_in_evaluation(work, method or [D_MOLE], routing, evaluates=evaluates)
    if evaluates:
        names = _tasks(work, task)
        stages = chosen_stages(stage, len(work.settings.tasks))
        from dmole_cli.stages.evaluate import Selection, evaluate

        selection = Selection(stages, names or None, diagonal="diagonal" in (stage or ()), likelihood=likelihood)
        outcomes = []
        for settings in every:
            parts = work.parts
            parts["settings"] = settings
            for name in method or [D_MOLE]:
                outcomes += evaluate(name, selection, **parts, force=work.force, track=work.track)
        following = "" if report else f"dmole report {'knowledge' if likelihood else 'bwt'}{where(work)}"
        as_json = work.json and report is None
        work.record(outcomes)
        console.report(outcomes, as_json=as_json, following=following, verbose=work.verbose)
    if report is not None:
        show_report(work, report, labels)


def _labels(methods: list[str] | None, every: Sequence[Settings], *, typed: bool) -> list[str] | None:
    """The folders of evaluations to report, with the routing that was typed; None for all that exist.

    Args:
        methods: that were typed.
        every: the settings of each combination of routing options.
        typed: whether a routing option was typed.
    """
    if not methods and not typed:
        return None
    from dmole_cli.methods.base import load_method

    found = []
    for name in methods or [D_MOLE]:
        routes = "@" not in name and load_method(name).uses_routers
        if typed and not routes and any(routing_options(settings.evaluate) for settings in every):
            raise DmoleError(
                f"method {name} has no routers" if "@" not in name else f"{name} names its routing already",
                "use --routing and --threshold-scale with methods that have routers",
            )
        found += [labelled(name, settings.evaluate) for settings in every] if routes else [name]
    return list(dict.fromkeys(found))


def _tasks(work: Workspace, typed: list[str] | None) -> list[str]:
    names = work.chosen(typed) if typed else []
    for name in names:
        if name not in work.settings.unseen:
            work.settings.position(name)
    return names
