"""Subcommands that are imported when they are used, so that `dmole --help` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dmole_cli.cli.subcommands import module_of

# Subcommands of `dmole tasks`: name -> what it does.
TASKS_COMMANDS = {
    "list": "List the tasks of the stream, and all that are built in.",
    "check": "Read the tasks' data and report all problems, before a run depends on them.",
    "new": "Write a task card for new data; format, prompt, metric and limits are guessed from the data.",
}

# Subcommands of `dmole experts`.
EXPERTS_COMMANDS = {
    "list": "List the experts of a run: sites, parameters, bytes, scores, transfer in training, activation by requests.",
    "show": "Show everything about one expert: how it was made, its sites and ranks, its router, its scores.",
    "export": "Write experts and routers with their task cards into a folder, for another run directory.",
    "import": "Add the experts of such a folder to the stream of a run; their tasks' data are not needed.",
    "unload": "Free the memory of experts in a running service; the next sample that needs one loads it again.",
    "load": "Bring a removed task back without training; with --url, load experts in a running service.",
    "remove": "Take a task out of the stream: its files move to `removed/`, and the other experts stay usable.",
}


class LazyGroup(TyperGroup):
    """A group whose subcommands are imported when they are used."""

    table: Mapping[str, str] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the subcommands, in the order of a run."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the help of a subcommand, for the list in `--help`."""
        return TyperCommand(cmd_name, help=self.table[cmd_name]) if cmd_name in self.table else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The subcommand that was typed."""
        if args[0] not in self.table:
            similar = get_close_matches(args[0], self.table, n=1)
            ctx.fail(f"No such command '{args[0]}'." + (f" Did you mean {similar[0]}?" if similar else ""))
        return args[0], self.load(ctx, args[0]), args[1:]

    def load(self, ctx: Any, name: str) -> Any:
        """Import a subcommand and build its options."""
        if group := GROUPS.get(name):
            return group(name=name, help=self.table[name], no_args_is_help=False, invoke_without_command=True)
        from dmole_cli.cli.derive import build

        return build(name, module_of(name), self.table[name], ctx.find_root().obj)


class Subgroup(LazyGroup):
    """A group within `dmole`; without a subcommand it lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a subcommand, list: `dmole tasks`, `dmole experts --json`."""
        plain = not args or (args[0].startswith("-") and args[0] not in ("-h", "--help"))
        return super().parse_args(ctx, ["list", *args] if plain else args)

    def load(self, ctx: Any, name: str) -> Any:
        """Import a subcommand and build its options."""
        from dmole_cli.cli.derive import build

        path = f"{self.name} {name}"
        return build(path, module_of(path), self.table[name], ctx.find_root().obj)


class TasksGroup(Subgroup):
    """`dmole tasks`."""

    table = TASKS_COMMANDS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """List also the tasks that are named: `dmole tasks digits`."""
        named = bool(args) and args[0] not in (*self.table, "-h", "--help")
        return super().parse_args(ctx, ["list", *args] if named else args)


class ExpertsGroup(Subgroup):
    """`dmole experts`."""

    table = EXPERTS_COMMANDS


GROUPS: Mapping[str, type[Subgroup]] = {"tasks": TasksGroup, "experts": ExpertsGroup}
