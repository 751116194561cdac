"""Methods that have an expert of each task, which can be replaced, exported and imported alone."""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import Method


def require_one_expert_per_task(rules: Method, tasks: Sequence[str], task: str) -> None:
    """Refuse methods whose state is more than one expert per task.

    Args:
        rules: the method.
        tasks: the stream.
        task: whose expert is meant.

    Raises:
        DmoleError: the method trains one expert through all tasks, stores more than it, or trains nothing at this task.
    """
    if rules.weighted:
        raise DmoleError(
            f"method {rules.name} weights the experts of all tasks by what it stores of each of them",
            "choose a method with one expert per task, like d-mole or finetune",
        )
    if rules.continues or rules.has_memory:
        raise DmoleError(
            f"method {rules.name} trains one expert sequentially through all tasks, which is not the expert of a single task",
            "choose a method with one expert per task, like d-mole or finetune",
        )
    if task not in rules.trained_tasks(tasks):
        there = ", ".join(rules.trained_tasks(tasks)) or "none"
        raise DmoleError(f"method {rules.name} has no expert of task {task}", f"tasks at which it trains: {there}")
