"""Builds a subcommand: its options are derived from the settings that it uses, and its `run` gets a workspace.

A module of a subcommand has `run(work, ...)`, whose further parameters are the subcommand's own options; `SETTINGS`, the sections
and settings whose options it has (`profile`, `backbone`); and, where it differs, `REPEATABLE`, settings whose option may be given
several times and is passed to `run`, `RUN_ARGUMENT`, a parameter of `run` that may name the run directory or a file in it, in
place of `--run`, `USES_RUN = False` for a subcommand without a run directory, and `WRITES = False` for one without `--force`.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from dmole_cli.cli.completion import of_choices
from dmole_cli.cli.help_page import BACKBONE, FILES, HOW, OUTPUT, Command
from dmole_cli.cli.help_page import WHAT as WHAT
from dmole_cli.cli.subcommands import settings_of
from dmole_cli.cli.unknown_options import Subcommand
from dmole_cli.processes import World, work_as, world
from dmole_cli.settings.declare import choices_of, option_name, plain_type, shown_default
from dmole_cli.settings.model import Settings
from dmole_cli.settings.record import FILE as RECORD

PANELS = {"data_root": FILES, "shared": FILES, "seed": HOW, "vision_cache": FILES}
DEFAULT_RUN = Path("dmole-run")
MODEL = ("backbone", "dtype", "attention", "quantize", "device", "device_map", "precision")
# Of commands that pass samples through the model in batches.
COMPUTING = (*MODEL, "data_root", "shared", "vision_cache", "workers", "sample_cache", "cuda_graphs")

RunOption = Annotated[Path, typer.Option("--run", help="Run directory of all artifacts.", rich_help_panel=FILES)]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration; by default dmole.toml of this folder.", rich_help_panel=FILES),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Run even if the output is up to date or stale.", rich_help_panel=OUTPUT)
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="A line for every file, not for every task.", rich_help_panel=OUTPUT)
]
COMMON = {"run_directory": (RunOption, DEFAULT_RUN), "config": (ConfigOption, None)}
FLAGS = {"json": (JsonOption, False), "force": (ForceOption, False), "verbose": (VerboseOption, False)}


def build(name: str, module: Any, sentence: str, model: type[Settings] | None) -> Any:
    """Build the command of a module.

    Args:
        name: as it is typed.
        module: of the subcommand.
        sentence: its help.
        model: all settings; None for `Settings`.
    """
    model = model or Settings
    fields, repeatable = settings_of(module, model), getattr(module, "REPEATABLE", ())
    own = dict(list(inspect.signature(module.run, eval_str=True).parameters.items())[1:])
    own = {key: value for key, value in own.items() if key not in {path.rpartition(".")[2] for path in repeatable}}
    common = COMMON if getattr(module, "USES_RUN", True) else {"config": COMMON["config"]}
    flags = FLAGS if getattr(module, "WRITES", True) else {"json": FLAGS["json"]}
    parameters = [
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()),
        *(_parameter(path, field, repeated=path in repeatable) for path, field in fields.items()),
        *(_keyword(key, kind, default) for key, (kind, default) in {**common, **flags}.items()),
    ]

    def callback(**values: Any) -> None:
        from dmole_cli.cli.workspace import open_workspace

        shared = getattr(module, "SHARED_BY_PROCESSES", False)
        if world().size > 1 and not shared:
            if not world().first:
                return
            work_as(World())
        if (place := values.get(getattr(module, "RUN_ARGUMENT", ""))) is not None:
            values["run_directory"] = _run_of(place, values["run_directory"])
        options = {path: values[_identifier(path)] for path in fields if values[_identifier(path)] not in (None, [])}
        several = {path.rpartition(".")[2]: options.pop(path, []) for path in repeatable}
        work = open_workspace(values, options, model=model, typed=_typed(values, fields))
        if world().size > 1:
            world().connect(cpu=work.model.device.type == "cpu")
        with work.hints():
            module.run(work, **{key: values[key] for key in own}, **several)
        world().disconnect()

    typed: Any = callback
    typed.__signature__ = inspect.Signature(parameters)
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    shell = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    page = type("Command", (Command, Subcommand), {"parameters": parameters})
    shell.command(name.rpartition(" ")[2], cls=page, help=sentence)(typed)
    return typer.main.get_command(shell)


def _run_of(place: Path, run: Path) -> Path:
    """The run directory that an argument names: itself, or the directory of a file of a run; `run` where that has the file."""
    if not place.is_file():
        return place
    above = [folder for folder in place.parents if (folder / RECORD).is_file()]
    return run if place.absolute().is_relative_to(run.absolute()) or not above else above[0]


def _identifier(path: str) -> str:
    return path.replace(".", "__")


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _parameter(path: str, field: FieldInfo, *, repeated: bool) -> inspect.Parameter:
    """The option of a setting; its default is None, so that only options that were typed replace configured values."""
    key = path.rpartition(".")[2]
    kind, flag = plain_type(field.annotation), option_name(key, field)
    several = repeated or get_origin(kind) is tuple
    choices = choices_of(field.annotation)
    panel = PANELS.get(path, BACKBONE if path in MODEL else HOW)
    help_text = f"{str(field.description)[:1].upper()}{str(field.description)[1:]}."
    default = shown_default(field)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=" ".join(
            filter(None, [help_text, "Repeatable." if repeated else "", f"[default: {default}]" if default else ""])
        ),
        show_default=False,
        metavar="|".join(choices) or None,
        autocompletion=of_choices(choices) if choices else None,
        rich_help_panel=panel,
    )
    plain = kind if kind in (bool, int, float) and not _takes_text(field) else str
    return _keyword(_identifier(path), Annotated[list[plain] | None if several else plain | None, option], None)  # type: ignore[valid-type]


def _takes_text(field: FieldInfo) -> bool:
    """Whether the value may be written in another form than a number, as a share in percent."""
    return any(isinstance(entry, BeforeValidator) for entry in field.metadata)


def _typed(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """The options that were typed, by settings and common options, as on a command line; `set` for those of a method."""
    found = {
        path: _as_typed(option_name(path.rpartition(".")[2], field), values[_identifier(path)])
        for path, field in fields.items()
    }
    found["set"] = _as_typed("--set", values.get("setting"))
    found["config"] = _as_typed("--config", values["config"])
    if values.get("run_directory", DEFAULT_RUN) != DEFAULT_RUN:
        found["run"] = _as_typed("--run", values["run_directory"])
    return {path: text for path, text in found.items() if text}


def _as_typed(flag: str, value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    return " ".join(f"{flag} {shlex.quote(str(one))}" for one in (value if isinstance(value, list) else [value]))
