"""What the shell completes: tasks of the configured stream, methods, metrics, and the values of a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer


def of_choices(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Completes one of these values."""

    def complete(incomplete: str) -> list[str]:
        return _matching(choices, incomplete)

    return complete


def of_shelf(shelf: str) -> Callable[[str], list[str]]:
    """Completes a name of a shelf: `methods`, `metrics`."""

    def complete(incomplete: str) -> list[str]:
        from dmole_cli import catalog

        return _matching(catalog.names(shelf), incomplete)

    return complete


def of_tasks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completes a task: those of the configuration first, then the built-in ones, then paths of task cards."""
    from dmole_cli.data.card import task_name, task_names
    from dmole_cli.errors import DmoleError
    from dmole_cli.settings.reading import read_settings

    try:
        settings = read_settings(ctx.params.get("config"))
        configured = list(map(task_name, (*settings.tasks, *settings.unseen)))
    except DmoleError:  # the command itself reports an invalid configuration
        configured = []
    cards = sorted(map(str, Path().glob(f"{incomplete}*.toml"))) if _is_part_of_path(incomplete) else []
    return _matching([*configured, *task_names(), *cards], incomplete)


def _is_part_of_path(text: str) -> bool:
    return bool(text) and not text.startswith(("/", "~")) and not set(text) & set("*?[")


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
