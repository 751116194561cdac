"""Reads settings from TOML and applies command-line options to them; every problem is reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dmole_cli.errors import DmoleError
from dmole_cli.settings.declare import Section, expected_words, option_name
from dmole_cli.settings.documents import read_toml
from dmole_cli.settings.model import Settings

DEFAULT_FILE = Path("dmole.toml")
MAX_SHOWN = 200  # characters of an invalid value
RENAMED = {"picture_store": "vision_cache"}

AnySection = TypeVar("AnySection", bound=Section)


def read_settings(
    path: Path | None, model: type[Settings] = Settings, *, recorded: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Read the settings of a command: those of a configuration file, above those that the run directory records.

    Args:
        path: the configuration; None for `dmole.toml` of this folder, if there is one.
        model: all settings.
        recorded: the table of the run directory's `run.toml`, with paths relative to this folder.

    Raises:
        DmoleError: a file is missing or not TOML, or has unknown keys or invalid values (all reported at once).
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    configured = _table(path, "pass --config the path of a TOML file") if path is not None else {}
    if path is not None:
        _validated_file(configured, path, model, "fix these keys")
    return _validated_file(_laid_over(recorded, configured), path or DEFAULT_FILE, model, "fix these keys")


def read_record(path: Path, model: type[Settings] = Settings) -> dict[str, Any]:
    """The table of `run.toml`; empty where it does not exist.

    Raises:
        DmoleError: it is not as dmole writes it.
    """
    hint = "correct or delete the file; without it, pass the run's settings by --config or as options"
    if not path.exists():
        return {}
    table = _table(path, hint)
    _validated_file(table, path, model, hint)
    return table


def _table(path: Path, hint: str) -> dict[str, Any]:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        raise DmoleError(f"cannot read {path}: {error}", hint) from error


def _validated_file(table: Mapping[str, Any], path: Path, model: type[AnySection], hint: str) -> AnySection:
    problems: list[str] = []
    settings = validated(model, table, problems)
    if settings is None:
        raise DmoleError(f"{path} has {len(problems)} problem(s):{listed(problems)}", hint)
    return settings


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of two tables, those of the second where both have one; inner tables are merged."""
    merged = dict(below)
    for key, value in above.items():
        inner = below.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = _laid_over(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def with_options(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """Settings with command-line options in place of the configured values.

    Args:
        settings: as configured.
        options: dotted name of a setting (`profile.portion`) -> value.

    Raises:
        DmoleError: a value is invalid; the message names the options.
    """
    # By attribute and not by model_dump: a table of the original is kept as it is where nothing is changed.
    table: dict[str, Any] = {name: getattr(settings, name) for name in type(settings).model_fields}
    for name, value in options.items():
        section, _, key = name.rpartition(".")
        if section:
            table[section] = {**dict(table[section]), key: value}
        else:
            table[key] = value
    problems: list[str] = []
    changed = validated(type(settings), table, problems, as_options=True)
    if changed is None:
        raise DmoleError("; ".join(problems), "change these options, or these keys of the configuration")
    return changed


def validated(
    model: type[AnySection], table: Mapping[str, Any], problems: list[str], *, as_options: bool = False
) -> AnySection | None:
    """Validate a table against a section; None, and the problems in words, where it is invalid.

    Args:
        model: the section.
        table: keys and values as read.
        problems: gets a line per problem.
        as_options: name the command-line option of a setting beside it.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        found = dict.fromkeys(_words(model, detail, as_options=as_options) for detail in error.errors())
        problems.extend(found)
        return None


def listed(problems: Iterable[str]) -> str:
    """Problems as indented lines."""
    return "".join(f"\n  - {problem}" for problem in problems)


def _words(model: type[BaseModel], detail: ErrorDetails, *, as_options: bool) -> str:
    field, owner = _field_at(model, detail["loc"])
    path = [part for part in detail["loc"] if isinstance(part, str)]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        if key in RENAMED:
            return f"{name}: this key was renamed to {RENAMED[key]}"
        return f"{name}: unknown key (known: {', '.join(owner.model_fields)})"
    if detail["type"] == "missing":
        return f"{name}: this key is missing"
    shown = f"{name} ({option_name(path[-1], field)})" if as_options and field is not None else name
    if detail["type"] == "value_error":
        return f"{shown}: {detail['msg'].removeprefix('Value error, ')}"
    words = "a valid value" if field is None else expected_words(field)
    value = detail["input"]
    return f"{shown} is {_short(value if isinstance(value, str) and as_options else repr(value))}; expected {words}"


def _short(text: str) -> str:
    """A value for a message, cut off where it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _field_at(model: type[BaseModel], place: tuple[int | str, ...]) -> tuple[FieldInfo | None, type[BaseModel]]:
    """The setting that an error of pydantic belongs to, and the section that has it."""
    owner, field = model, None
    for part in map(str, place):
        if field is not None:
            inner = field.annotation
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                break  # inside of a value, as the third entry of a list
            owner = inner
        field = owner.model_fields.get(part)
        if field is None:
            break
    return field, owner
