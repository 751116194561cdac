"""Methods in which the experts of all earlier tasks are active, in training (frozen) and in evaluation."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.methods.base import LoadedContext, Method, Routing, TaskContext


class EveryExpert(Method):
    """A new expert per task; every sample passes through the experts of all tasks trained so far."""

    def inputs(self, context: TaskContext) -> list[Path]:
        """The experts of all earlier tasks."""
        return [context.run.expert(task, self.name) for task in context.earlier]

    def transfer_experts(self, context: LoadedContext) -> list[tuple[str, ...]]:
        """All earlier tasks, for every sample."""
        return [context.earlier] * len(context.samples)

    def active_experts(self, routing: Routing) -> list[tuple[str, ...]]:
        """All tasks trained so far, for every sample."""
        return [tuple(routing.tasks) for _ in routing.losses]
