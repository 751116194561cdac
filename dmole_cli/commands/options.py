"""Options that several subcommands share: name, type, default and sentence in one place."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.session import Session

TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Task of the stream; repeat it for several. Default: all, in order."),
]
OneTaskOption = Annotated[str, typer.Option("--task", "-t", help="Task of the stream.")]
RunOption = Annotated[Path, typer.Option("--run", help="Run directory: every artifact lies in it.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration. Default: dmole.toml of this folder, else the built-in stream."),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the experts and of their training. Default: the configuration's (0)."),
]
StageSeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of this stage, which does not follow the run's. Default: the configuration's (0)."
    ),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="'embedded', a folder written by save_pretrained, or a hub id.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="Type of the backbone's weights: float32, bfloat16, float16. [default: float32]"),
]
AttentionOption = Annotated[
    str | None, typer.Option("--attention", help="sdpa, eager, or auto: the model's own choice. [default: auto]")
]
QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", help="4bit or 8bit: the backbone's linear modules, by bitsandbytes. [default: none]"),
]
SharedOption = Annotated[
    Path | None,
    typer.Option("--shared", help="Where profiles, features and routers lie, if several runs share them."),
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Where relative data paths of task cards start.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1, mps, or auto: cuda if there is one, else the CPU. [default: auto]"
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", help="float32, bfloat16, or auto: bfloat16 on cuda, float32 elsewhere. [default: auto]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make it again even if it is there.")]
MergeOption = Annotated[
    bool, typer.Option("--merge", help="seq-ft whose LoRA becomes part of the weights after each task (seq-ft-merge).")
]
DEFAULT_RUN = Path("dmole-run")


def open_session(
    *,
    run: Path,
    config: Path | None,
    seed: int | None = None,
    backbone: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    data_root: Path | None = None,
    shared: Path | None = None,
    **sections: Mapping[str, object],
) -> Session:
    """Configuration with the command line's options put in their place, and the run directory.

    Args:
        run: run directory; made when something is written.
        config: path of a configuration, or None.
        seed: overrides the configuration's.
        backbone: overrides the configuration's.
        dtype: overrides the configuration's.
        attention: overrides the configuration's.
        quantize: overrides the configuration's.
        device: overrides the configuration's.
        precision: overrides the configuration's.
        data_root: overrides the configuration's.
        shared: overrides the configuration's.
        sections: section of the configuration -> options of the command that belong to it (None = not given).
    """
    from dmole_cli.artifacts.run import Run
    from dmole_cli.session import Session
    from dmole_cli.settings.model import override, require_possible
    from dmole_cli.settings.reading import read_settings

    settings = read_config(config)
    top = {"seed": seed, "backbone": backbone, "data_root": str(data_root) if data_root else None}
    top |= {"dtype": dtype, "attention": attention, "quantize": quantize, "device": device, "precision": precision}
    top["shared"] = str(shared) if shared else None
    settings = override(settings, **top)
    for name, options in sections.items():
        if name == "method":
            settings = replace(settings, method={**settings.method, **_over(settings.method, options)})
            continue
        settings = replace(settings, **{name: override(getattr(settings, name), **options)})
    require_possible(settings)
    common = Path(settings.shared) if settings.shared else None
    for name, folder in (("run", run), ("shared", common)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise DmoleError(f"{folder} is a file, not a directory", f"pass --{name} a folder; it is made when needed")
    typed = {"run": run if run != DEFAULT_RUN else None, "config": config, **top}
    given = {key: shlex.quote(str(value)) for key, value in typed.items() if value is not None}
    return Session(settings, Run(run, common), given=given)


def _over(given: Mapping[str, Mapping[str, float]], typed: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """Options of methods as typed, over those of the configuration."""
    return {name: {**given.get(name, {}), **options} for name, options in typed.items() if isinstance(options, dict)}


def method_options(typed: list[str] | None, **named: float | None) -> dict[str, float]:
    """Options of a method from `--set name=value` and from options that have a name of their own.

    Raises:
        BadParameter: a setting is no name with a number.
    """
    found = {name: float(value) for name, value in named.items() if value is not None}
    for text in typed or ():
        name, _, value = text.partition("=")
        try:
            found[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise typer.BadParameter(f"--set {text}: write NAME=NUMBER, like weight=100") from None
    return found


def with_merge(method: str, merge: bool) -> str:
    """The method that `--merge` makes of seq-ft.

    Raises:
        BadParameter: another method was to merge.
    """
    if merge and method != "seq-ft":
        raise typer.BadParameter(f"--merge belongs to --method seq-ft, not to {method}")
    return f"{method}-merge" if merge else method


def chosen_tasks(session: Session, tasks: list[str] | None, *, in_stream: bool = False) -> list[str]:
    """The tasks asked for in stream order, or the whole stream; cards are read before anything else is done.

    Args:
        session: knows the stream.
        tasks: names or card paths; None or empty for the stream.
        in_stream: whether a task needs its place in the stream (its training does, its profile does not).

    Raises:
        DmoleError: a task is unknown, or is not in the stream where it has to be.
    """
    if not tasks:
        return list(session.config.tasks)
    names = [session.admit(task) for task in tasks]
    if in_stream:
        return sorted(names, key=session.config.position)
    order = (*session.config.tasks, *names)
    return sorted(names, key=order.index)
