"""`dmole allocate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.kinds import D_MOLE, PROFILE
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.cli import console
from dmole_cli.cli.derive import FILES, HOW, OUTPUT
from dmole_cli.cli.shared_options import MethodOption, TasksOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.settings.reading import DEFAULT_FILE

SETTINGS = ("allocate", "data_root", "backbone", "dtype", "attention", "quantize", "shared")


def run(
    work: Workspace,
    task: TasksOption = None,
    method: MethodOption = D_MOLE,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile outside of a run directory, also one that another tool wrote; needs --out.",
            dir_okay=False,
            rich_help_panel=FILES,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the allocation of --profile.", dir_okay=False, rich_help_panel=FILES),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            help="Parameters of the backbone, like 2.2B, for a --profile that does not record them.",
            rich_help_panel=HOW,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="`peft`: print the allocation as arguments of PEFT's LoraConfig.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Allocate for the chosen tasks, or for a profile file."""
    if (profile is None) != (out is None):
        raise typer.BadParameter("--profile and --out need each other")
    if profile is not None and (task or method != D_MOLE):
        raise typer.BadParameter("--profile needs neither --task nor --method: the file is the profile of one task")
    if parameters is not None and profile is None:
        raise typer.BadParameter("--parameters needs --profile: profiles of a run directory record the backbone's")
    if form not in (None, "peft"):
        raise typer.BadParameter(f"--format {form}: expected peft")
    from dmole_cli.cli.unused import refuse_unused_in_allocation
    from dmole_cli.methods.base import load_method
    from dmole_cli.stages.allocate import allocate_task, as_peft

    refuse_unused_in_allocation(work.typed, work.settings.allocate, load_method(method))
    following = "dmole train-router"
    if profile is not None and out is not None:
        outcomes = [_of_file(work, profile, out, parameters)]
    else:
        names = work.chosen(task) if task else _profiled(work)
        outcomes = [allocate_task(name, **work.parts, method=method, force=work.force) for name in names]
        # Without a configuration the next command would run for the default stream.
        if not task and not set(names) <= set(work.settings.tasks):
            following += "".join(f" --task {shlex.quote(name)}" for name in names)
    if form == "peft":
        console.data({outcome.task: as_peft(outcome.path) for outcome in outcomes})
        return
    show_outcomes(work, outcomes)
    if not work.json:
        console.say(f"next: {work.repeating(following)}", command=True)


def _of_file(work: Workspace, profile: Path, out: Path, parameters: str | None) -> Outcome:
    from dmole_cli.settings.budget import parse_parameters
    from dmole_cli.stages.allocate import allocate_file

    count = None if parameters is None else parse_parameters(parameters)
    # The default backbone is not the one of a file whose origin is unknown: only one that the user named counts.
    named = "backbone" in work.typed or work.settings.backbone != type(work.settings).model_fields["backbone"].default
    backbone = work.model.name if named else None
    return allocate_file(profile, out, work.settings.allocate, parameters=count, backbone=backbone, force=work.force)


def _profiled(work: Workspace) -> list[str]:
    """The tasks of the stream that have a profile; without a configuration, all tasks that have one.

    Raises:
        MissingArtifact: there is none.
    """
    stream = [name for name in work.settings.tasks if work.run.profile(name).exists()]
    found = {path.stem for path in work.run.path(PROFILE, task="task").parent.glob("*.parquet")}
    if "config" not in work.typed and not DEFAULT_FILE.exists():
        stream += sorted(found - set(stream))
    if not stream:
        other = f"; profiles of other tasks: {', '.join(sorted(found))} (--task)" if found else ""
        missing = work.run.profile(work.settings.tasks[0])
        raise MissingArtifact(missing, f"no task of the stream has a profile{other}")
    return stream


def show_outcomes(work: Workspace, outcomes: Sequence[Outcome]) -> None:
    """Print the outcomes of allocations; as text, what needs more than a word in lines of its own."""
    if work.json:
        work.report(outcomes)
        return
    brief = ("sites", "parameters", "vision_sites")
    work.report([replace(o, facts={k: v for k, v in o.facts.items() if k in brief}) for o in outcomes])
    for outcome in outcomes:
        for line in _lines(outcome):
            console.say(f"  {outcome.task}: {line}")


def _lines(outcome: Outcome) -> list[str]:
    facts = outcome.facts
    if not outcome.written:
        return []
    spent = facts["sites"] if facts["unit"] == "sites" else facts["parameters"]
    lines = [f"{spent:,} of {facts['budget']:,} {facts['unit']} of the budget are used ({100 * facts['used']:.1f} %)"]
    if "unused" in facts:
        lines[0] += ": the candidate sites take no more"
    if "to_use_the_rest" in facts:
        lines.append(f"to use the rest: {facts['to_use_the_rest']}")
    if left_out := facts.get("left_out"):
        names = [part["name"] for part in left_out]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"left out, {left_out[0]['why']}: {', '.join(names[:3])}{more}")
    if "profile" in facts:
        lines.append(f"the profile has {facts['profile']}: no header of dmole says how it was made")
    return lines
