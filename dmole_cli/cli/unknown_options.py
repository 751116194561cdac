"""A subcommand that, for an option it does not have, names the subcommands that have it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Subcommand(TyperCommand):
    """A command of `dmole`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; an unknown option is an error that says which subcommands have it."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # The class of the parser's error is no public name of typer.
            if type(error).__name__ == "NoSuchOption":
                option, root = str(getattr(error, "option_name", "")), ctx.find_root()
                if owners := _commands_with(option, root, root.command):
                    names = ", ".join(f"dmole {name}" for name in owners)
                    ctx.fail(f"No such option: {option}. It is an option of: {names}.")
            raise


def _commands_with(option: str, ctx: Any, group: Any) -> list[str]:
    """Names of the subcommands of a group that have an option, as they are typed after `dmole`."""
    found = []
    for name in getattr(group, "table", ()):
        command = group.load(ctx, name)
        if hasattr(command, "table"):
            found += [f"{name} {inner}" for inner in _commands_with(option, ctx, command)]
        elif any(option in (*parameter.opts, *parameter.secondary_opts) for parameter in command.params):
            found.append(name)
    return found
