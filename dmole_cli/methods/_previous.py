"""The expert of an earlier task that a method trains further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import LoadedContext, TaskContext

if TYPE_CHECKING:
    import torch

    from dmole_cli.experts.expert import Expert


def previous_artifacts(context: TaskContext) -> list[Path]:
    """The expert that is trained further, and the method's memory of its task."""
    rules, run = context.method, context.run
    previous = rules.previous_task(context.settings.tasks, context.task)
    if previous is None:
        return []
    return [run.expert(previous, rules.name), *([run.memory(previous, rules.name)] if rules.has_memory else [])]


def require_same_shape(context: TaskContext) -> None:
    """Refuse settings that shape a new expert where an expert of another shape is trained further."""
    rules, settings = context.method, context.settings
    previous = rules.previous_task(settings.tasks, context.task)
    made = header_of(context.run.expert(previous, rules.name), EXPERT) if previous else None
    if made is None:
        return
    before = {**made.settings, **made.settings.get("options", {})}
    now = {**rules.header_settings(settings), **{name: context.options[name] for name in rules.shaping}}
    # An imported expert records none of them.
    changed = [f"{name} {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise DmoleError(
            f"method {rules.name} trains the expert of task {previous} further, which was made with {', '.join(changed)}",
            f"use the values of the first task, or train the tasks up to {previous} again with the new ones and --force",
        )


def trainable_copy(context: LoadedContext, task: str) -> Expert:
    """The expert of an earlier task, to be trained further."""
    from dmole_cli.experts.expert import Expert

    file = read_expert(context.run.expert(task, context.method.name))
    place = context.backbone.device_of

    def copied(site: str, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.to(place(site), copy=True).requires_grad_()

    sites = {site: (copied(site, a), copied(site, b)) for site, (a, b) in file.sites.items()}
    gates = {site: {name: copied(site, gate) for name, gate in own.items()} for site, own in file.gates.items()}
    buffers = {site: {name: fixed.to(place(site)) for name, fixed in own.items()} for site, own in file.buffers.items()}
    return Expert(sites, file.scale, trainable=True, gates=gates, buffers=buffers)
