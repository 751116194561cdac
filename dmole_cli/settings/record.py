"""`run.toml` of a run directory: the stream, the backbone and the settings that made it, for later commands.

It has the form of a configuration, and a configuration or an option overrides what it states.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmole_cli.settings.declare import Section, extra_of
from dmole_cli.settings.model import Settings

FILE = "run.toml"
HEADING = "# Written by dmole: the settings that made this run. Later commands take them from here."
# Always stated, whatever their defaults.
STREAM = ("backbone", "tasks", "unseen")
PATHS = ("backbone", "data_root", "shared")


def record_of(settings: Settings, cards: Mapping[str, str], *, root: Path) -> str:
    """The text of `run.toml`.

    Args:
        settings: of a command.
        cards: task -> the path of its card, for tasks that were named by a path.
        root: the run directory. Paths are stated relative to it, and begin with a dot: a later command may start in another
            folder, and everything together may be moved.
    """
    table = _table(settings)
    for key in ("tasks", "unseen"):
        names = getattr(settings, key)
        table[key] = [_relative(cards[name], root) if name in cards else name for name in names]
    for key in PATHS:
        if key in table and Path(table[key]).is_dir():
            table[key] = _relative(table[key], root)
    return "\n".join([HEADING, *_lines(table)]) + "\n"


def as_toml(section: Section) -> str:
    """The settings of a section that differ from their defaults, as TOML."""
    return "\n".join(_lines(_table(section, always=()))).lstrip("\n") + "\n"


def _relative(path: str, root: Path) -> str:
    text = Path(os.path.relpath(path, root)).as_posix()
    return text if text.startswith("..") else f"./{text}"


def located(table: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The table of a record with its paths relative to the current folder."""

    def place(entry: Any) -> Any:
        is_path = isinstance(entry, str) and entry.startswith(("./", "../"))
        return os.path.normpath(root / entry) if is_path else entry

    lists = {key: [place(entry) for entry in table[key]] for key in ("tasks", "unseen") if key in table}
    return {**table, **lists, **{key: place(table[key]) for key in PATHS if key in table}}


def _table(section: Section, *, always: tuple[str, ...] = STREAM) -> dict[str, Any]:
    """The recorded settings that differ from their defaults, by name; those of a section as a table."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not extra_of(field)["recorded"]:
            continue
        if isinstance(value, Section):
            value = _table(value, always=())
        if (value != field.default and value not in ({}, None)) or name in always:
            found[name] = value
    return found


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any], *, place: str = "") -> dict[str, str]:
    """What a command states otherwise than the record, in words, by setting; more tasks at the end of the stream, and other
    unseen tasks, are no change.

    Args:
        recorded: the table of `run.toml`.
        now: the table of the settings of the command, as a record would state it.
        place: dotted name of the section of both tables.
    """
    out: dict[str, str] = {}
    for key in sorted((recorded.keys() | now.keys()) - {"unseen"}):
        name, old, new = f"{place}{key}", recorded.get(key), now.get(key)
        if isinstance(old or new, Mapping):
            out |= changes(old or {}, new or {}, place=f"{name}.")
        elif old != new and not (key == "tasks" and isinstance(old, list) and list(new or ())[: len(old)] == old):
            out[name] = f"{_shown(old)} -> {_shown(new)}"
    return out


def _shown(value: Any) -> str:
    return "default" if value is None else _toml(value)


def _lines(table: Mapping[str, Any], place: str = "") -> list[str]:
    """A table as lines of TOML, tables after values."""
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    if place and lines:
        lines = ["", f"[{place}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{place}.{_key(key)}" if place else _key(key))
    return lines


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
