"""The module of a subcommand, and the settings whose options it has."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dmole_cli.settings.declare import Section
    from dmole_cli.settings.model import Settings


def module_of(name: str) -> Any:
    """The module of a subcommand: `dmole train-task` is commands/train_task.py, `dmole import` commands/import_.py."""
    stem = name.replace("-", "_").replace(" ", "_")
    return importlib.import_module(f"dmole_cli.commands.{'import_' if stem == 'import' else stem}")


def settings_of(module: Any, model: type[Settings]) -> dict[str, FieldInfo]:
    """The settings of a subcommand by their dotted names, sections expanded."""
    from dmole_cli.settings.declare import Section, plain_type

    found: dict[str, FieldInfo] = {}
    for name in module.SETTINGS:
        section, _, key = name.rpartition(".")
        fields = _section(model, section).model_fields if section else model.model_fields
        kind = plain_type(fields[key].annotation)
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= {f"{name}.{inner}": field for inner, field in kind.model_fields.items()}
        else:
            found[name] = fields[key]
    return found


def _section(model: type[Settings], name: str) -> type[Section]:
    from dmole_cli.settings.declare import plain_type

    return plain_type(model.model_fields[name].annotation)
