"""How a setting is declared: name, type, default, bounds, unit and sentence in one place.

A section of settings is a frozen pydantic model; `setting()` declares one of its fields. `dmole.toml`, task cards, command-line
options with their `--help`, messages about invalid values, artifact headers and the table of settings in the docs are all derived
from these declarations.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

# Whether a setting is part of the header of what its stage writes: always, only where it differs from its default (it was added
# later, and earlier artifacts stay current), or never (it does not shape the result, or is recorded elsewhere).
InHeader = Literal["always", "when set", "never"]


def setting(
    default: Any = ...,
    sentence: str = "",
    *,
    expected: str = "",
    option: str = "",
    in_header: InHeader = "always",
    recorded: bool = True,
    **bounds: Any,
) -> Any:
    """Declare one setting.

    Args:
        default: its default; leave out for a setting that must be given.
        sentence: what it is, with its unit; shown by `--help` and in the table of settings.
        expected: valid values in words, where type and bounds do not say it (`a budget like 2%`).
        option: name of its command-line option, by default the field's name with hyphens.
        in_header: see `InHeader`.
        recorded: whether a run directory records it for later commands (`run.toml`); not what a single command decides, as
            the device or the evaluated split.
        **bounds: `ge`, `gt`, `le`, `lt` of pydantic, `allow_inf_nan=True` for a number that may be infinite.
    """
    extra: dict[str, Any] = {"expected": expected, "option": option, "in_header": in_header, "recorded": recorded}
    return Field(default, description=sentence, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """A frozen group of settings. Unknown keys, wrong types and values out of bounds are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _in_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("too large a number")
        return value

    def updated(self, **changes: Any) -> Self:
        """A copy with these settings changed; the values are not validated again."""
        return self.model_copy(update=changes)

    def for_header(self) -> dict[str, Any]:
        """The settings that are recorded in the header of what this section's stage writes."""
        found = {}
        for name, field in type(self).model_fields.items():
            value, recorded = getattr(self, name), extra_of(field)["in_header"]
            if recorded == "always" or (recorded == "when set" and value != field.default):
                found[name] = value
        return found

    def when_set(self) -> dict[str, Any]:
        """The settings that `for_header` leaves out where they have their defaults, all of them."""
        names = [name for name, field in type(self).model_fields.items() if extra_of(field)["in_header"] == "when set"]
        return {name: getattr(self, name) for name in names}


def extra_of(field: FieldInfo) -> Mapping[str, Any]:
    """The attributes that only `setting()` declares; their defaults for a field declared without it."""
    declared = field.json_schema_extra if isinstance(field.json_schema_extra, Mapping) else {}
    return {"expected": "", "option": "", "in_header": "always", "recorded": True, **declared}


def option_name(name: str, field: FieldInfo) -> str:
    """The command-line option of a setting."""
    return str(extra_of(field)["option"]) or f"--{name.replace('_', '-')}"


def shown_default(field: FieldInfo) -> str:
    """The default as `--help` and the docs show it; empty where there is none."""
    default = field.default
    if default is None or isinstance(default, dict):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values of a `Literal`, or of the `Literal` in an optional or a tuple; empty for other types."""
    if get_origin(kind) is Literal:
        return tuple(str(choice) for choice in get_args(kind))
    if int in get_args(kind):  # a number or a word
        return ()
    return next((choices for part in get_args(kind) if (choices := choices_of(part))), ())


def plain_type(kind: Any) -> Any:
    """A type without `| None` and without `Annotated`."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(plain_type(part) for part in get_args(kind) if part is not type(None))
    return plain_type(kind.__origin__) if hasattr(kind, "__metadata__") else kind


def expected_words(field: FieldInfo) -> str:
    """What a value of this setting must be, in words, from its type and bounds."""
    if words := extra_of(field)["expected"]:
        return str(words)
    kind = plain_type(field.annotation)
    if choices := choices_of(kind):
        listed = ", ".join(choices)
        return f"a list of: {listed}" if get_origin(kind) is tuple else f"one of {listed}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a table"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    noun = names.get(kind, "a list of texts" if get_origin(kind) is tuple else "a table")
    return " ".join([noun, *filter(None, [_bounds(field, kind)])])


def _bounds(field: FieldInfo, kind: Any) -> str:
    least = next((m for m in field.metadata if isinstance(m, Ge | Gt)), None)
    most = next((m for m in field.metadata if isinstance(m, Le | Lt)), None)
    parts = []
    if isinstance(least, Ge):
        parts.append(f"from {least.ge}" if most else f"of {least.ge} or more")
    elif least is not None:
        parts.append(f"over {least.gt}")
    if isinstance(most, Le):
        parts.append(f"up to {most.le}")
    elif most is not None:
        parts.append(f"to below {most.lt}" if isinstance(least, Ge) else f"below {most.lt}")
    return " and ".join(parts) if isinstance(least, Gt) else " ".join(parts)
