"""Wraps lines of text at spaces, where the width of the terminal is known."""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

# A narrower COLUMNS is taken for no width at all.
NARROWEST = 20


def columns_of(stream: TextIO) -> int:
    """Columns of text that fit on a line: those of COLUMNS or of the terminal; 0 for a file or a pipe of unknown width."""
    text = os.environ.get("COLUMNS", "")
    if text.isdecimal() and len(text) < 5 and int(text) >= NARROWEST:
        return int(text)
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def wrapped(text: str, stream: TextIO) -> str:
    """The text with every line wrapped at spaces, its continuation indented; words, paths and options are never broken."""
    width = columns_of(stream)
    return "\n".join(_wrapped_line(line, width) for line in text.splitlines()) if width else text


def _wrapped_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    found = textwrap.wrap(line, width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(found) if len(line) > width else line
