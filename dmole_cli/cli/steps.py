"""Runs a step of `dmole update` through its stage, as the stage's own command does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.staleness import require_current
from dmole_cli.cli.workspace import Workspace
from dmole_cli.processes import world

if TYPE_CHECKING:
    from dmole_cli.planning.steps import Step


def run_step(work: Workspace, step: Step) -> list[Outcome]:
    """Run a step; every process of a command must call it.

    Raises:
        DmoleError: of the stage.
    """
    call, parts = step.call, work.parts
    if call.stage in ("evaluate", "likelihood"):
        return _evaluate(work, step)
    # Decided by one process, before the stage begins: an error of the first one alone would let the others wait.
    force = world().from_first(lambda: step.replaces or _sources_have_changed(work, step))
    if call.stage == "profile":
        from dmole_cli.stages.profile import profile

        return [profile(call.task, **parts, force=force, track=work.track)]
    if call.stage == "train-router":
        from dmole_cli.stages.train_router import train_router

        return [train_router(call.task, **parts, force=force, track=work.track)]
    if call.stage == "train-task":
        from dmole_cli.stages.train_task import train_task

        return [train_task(call.task, **parts, method=call.label, force=force, track=work.track)]
    if call.stage == "allocate":
        from dmole_cli.stages.allocate import allocate_task

        # Work of one process, as that of `rescore`.
        return [world().from_first(partial(allocate_task, call.task, **parts, method=call.label, force=force))]
    return world().from_first(partial(_rescore, work, step, force=force))


def _evaluate(work: Workspace, step: Step) -> list[Outcome]:
    from dmole_cli.stages.evaluate import Selection, evaluate

    call, parts = step.call, work.parts
    parts["settings"] = work.settings.updated(evaluate=call.evaluate(work.settings))
    likelihood = call.stage == "likelihood"
    selection = Selection(step.after, [call.task], likelihood=likelihood, replace=True)
    method = call.label.partition("@")[0]
    outcomes = evaluate(method, selection, **parts, force=step.state == "forced" and not likelihood, track=work.track)
    return [outcome for outcome in outcomes if outcome.path in step.files]


def _rescore(work: Workspace, step: Step, *, force: bool) -> list[Outcome]:
    from dmole_cli.stages.rescore import Wanted, rescore

    call = step.call
    wanted = Wanted([call.label], step.after, [call.task], split=call.split)
    return rescore(call.metric, wanted, stream=work.settings.tasks, run=work.run, force=force)


def _sources_have_changed(work: Workspace, step: Step) -> bool:
    """Whether an artifact that an existing file of the step was made from is another one now."""
    for path in step.files:
        found = work.run.identify(path)
        made = header_of(path, found[0]) if found is not None else None
        try:
            require_current(work.run, path, made.inputs if made is not None else {})
        except StaleArtifact:
            return True
    return False
