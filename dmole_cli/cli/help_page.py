"""The page of `dmole COMMAND --help`: options in panels, each with its name on the left and a wide column of text beside it.

typer's own page has separate columns for the negative name and the type of every option, which leaves 20 of 80 columns for the
text. This one reads the parameters from which the command was built, and nothing of typer's internals.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin

from typer.core import TyperCommand
from typer.models import ArgumentInfo

from dmole_cli.settings.declare import plain_type

WHAT, HOW, BACKBONE, FILES, OUTPUT = "What", "How", "Backbone", "Where", "Output"
PANELS = (WHAT, HOW, BACKBONE, FILES, OUTPUT)
KINDS = {int: "INT", float: "FLOAT", Path: "PATH"}
HELP = ("-h, --help", "Show this page.")


class Command(TyperCommand):
    """A subcommand with this page.

    Attributes:
        parameters: its options and arguments, annotated with typer's declarations.
    """

    parameters: ClassVar[Sequence[inspect.Parameter]] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page on stdout."""
        from rich.console import Console
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        console = Console()
        console.print(Padding(Text(self.get_usage(ctx)), (1, 1, 0, 1)))
        console.print(Padding(Text(_plain(inspect.cleandoc(self.help or ""))), (1, 1)))
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in PANELS}
        for parameter in self.parameters:
            panel, *row = _described(parameter)
            panels[panel].append((row[0], row[1]))
        panels[OUTPUT].append(HELP)
        for title, rows in panels.items():
            grid = Table.grid(padding=(0, 2), expand=True)
            grid.add_column(overflow="fold", style="cyan", max_width=max(16, console.width * 2 // 5))
            grid.add_column(ratio=1)
            for name, sentence in rows:
                grid.add_row(Text(name), Text(sentence))
            if rows:
                console.print(Panel(grid, title=title, title_align="left", border_style="dim"))


def _described(parameter: inspect.Parameter) -> tuple[str, str, str]:
    """(panel, name as it is typed, sentence) of a parameter."""
    kind, declared = get_args(parameter.annotation)[:2]
    several = get_origin(plain_type(kind)) is list
    value = plain_type(get_args(plain_type(kind))[0] if several else kind)
    metavar = declared.metavar or KINDS.get(value, "TEXT")
    parts = [_plain(declared.help or "")]
    if isinstance(declared, ArgumentInfo):
        panel, name = WHAT, (declared.metavar or parameter.name.upper()) + ("..." if several else "")
    else:
        panel = declared.rich_help_panel or OUTPUT
        # In an annotation, typer takes the first name for the default.
        given = (declared.default, *(declared.param_decls or ()))
        flags = [flag for flag in given if isinstance(flag, str) and flag.startswith("-")]
        flags = flags or [f"--{parameter.name.replace('_', '-')}"]
        # A negative name stands below the positive one.
        name = ", ".join(sorted(flags, key=len)).replace("/", "\n")
        if "|" in metavar:
            parts.append(f"One of {metavar.replace('|', ', ')}.")
            metavar = "NAME"
        name = name if value is bool else f"{name} {metavar}"
    default = parameter.default
    if default is inspect.Parameter.empty:
        parts.append("[required]")
    elif declared.show_default and default is not None and default is not False:
        parts.append(f"[default: {default}]")
    # The default stands last, also where the text already has it.
    text, marker, rest = parts[0].partition(" [default: ")
    return panel, name, " ".join(filter(None, [text, *parts[1:], f"{marker}{rest}".strip()]))


def _plain(text: str) -> str:
    return text.replace("`", "")
