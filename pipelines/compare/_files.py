"""Files of a comparison: TOML, text and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import write_text
from dmole_cli.errors import DmoleError

ROOT = Path(__file__).resolve().parents[2]
BARE = re.compile(r"[A-Za-z0-9_-]+")  # keys that TOML does not quote


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DmoleError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "give the path of a TOML file") from error


def toml(table: Mapping[str, Any], *, path: str = "") -> str:
    """Write a table as TOML, in which numbers, strings, booleans and lists are written as in JSON."""
    table = {key if BARE.fullmatch(key) else json.dumps(key): value for key, value in table.items()}
    values = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    lines = [f"[{path}]", *values] if path and values else values
    tables = [toml(v, path=f"{path}.{key}" if path else key) for key, v in table.items() if isinstance(v, Mapping)]
    return "\n".join(["\n".join(lines), "", *tables]) if lines else "\n".join(tables)


def shown_path(path: Path) -> str:
    """A path as results state it: relative to the repository where it is inside, otherwise only its name."""
    return path.resolve().relative_to(ROOT).as_posix() if path.resolve().is_relative_to(ROOT) else path.name


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write lines of text; the file is replaced once it is complete."""
    write_text(path, "\n".join(lines) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV; a missing value is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
