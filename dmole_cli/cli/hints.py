"""The command that fixes an artifact, with the options that the user typed. The only place that proposes such commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from dmole_cli.artifacts.errors import (
    ArtifactError,
    MissingArtifact,
    OtherBackbone,
    StaleArtifact,
)
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    D_MOLE,
    EVALUATION,
    EXPERT,
    EXPORT,
    LIKELIHOOD,
    MEMORY,
    RESCORED,
    TRAINING_LOG,
    Kind,
)
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.subcommands import module_of, settings_of
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings

# Commands on a run directory with their options, without --help.
_ON_A_RUN = re.compile(
    r"dmole (profile|allocate|train-router|train-task|evaluate|update|rescore|report|status|verify|export|import|experts \w+)\b"
    r"(?! --help)[^`;,]*"
)


def hint_for(error: ArtifactError, run: Run, typed: Mapping[str, str], settings: type[Settings]) -> str:
    """What to type after this error.

    Args:
        error: names the artifact.
        run: the run directory.
        typed: options as they were typed, by settings and common options.
        settings: the model of all settings.
    """
    found = run.identify(error.path)
    if found is None:
        return _for_other_file(error)
    kind, values = found
    if kind is TRAINING_LOG:
        return f"delete {error.path}: nothing is made from it"
    if not kind.command:
        return _delete(error.path)
    command = _command("import" if error.imported else kind.command, kind, values, typed, settings)
    if error.imported:
        # The running command names the adapter's folder where it is an import itself.
        command = shlex.join(["dmole", *sys.argv[1:]]) if sys.argv[1:2] == ["import"] else f"{command} ADAPTER"
    if isinstance(error, MissingArtifact):
        return f"run: {command}"
    if isinstance(error, OtherBackbone):
        return f"pass the backbone of this run, or another --run for this backbone, or run: {command} --force"
    return f"run: {command} --force"


def repair(error: DmoleError, run: Run, typed: Mapping[str, str], settings: type[Settings], *, before: str = "") -> str:
    """What repairs what an error names: a command, or a sentence.

    Args:
        error: an error of an artifact, or one with a hint.
        run: as for `hint_for`, like the other ones.
        typed: options as they were typed.
        settings: the model of all settings.
        before: what to do first or instead, in words that end before the hint.
    """
    hint = hint_for(error, run, typed, settings) if isinstance(error, ArtifactError) else completed(error.hint, typed)
    return f"{before} {hint}" if before else hint


def completed(hint: str, typed: Mapping[str, str]) -> str:
    """A hint whose commands on a run directory repeat `--run` and `--config` as they were typed.

    Args:
        hint: of an error that no artifact has caused; it may hold no command.
        typed: as for `hint_for`.
    """
    options = " ".join(typed[name] for name in ("run", "config") if name in typed)
    if not options or "--run" in hint or "--config" in hint:
        return hint
    return _ON_A_RUN.sub(lambda match: f"{match[0].rstrip()} {options}", hint)


def _delete(cache: Path) -> str:
    return f"delete {cache}: it is a cache and is filled again"


def _for_other_file(error: ArtifactError) -> str:
    """For a file that the user named."""
    if isinstance(error, StaleArtifact | OtherBackbone) or error.path.name == EXPORT.path:
        return f"run: {shlex.join(['dmole', *sys.argv[1:]])} --force"
    return "check the path: a file that dmole wrote is expected"


def _command(
    command: str, kind: Kind, values: Mapping[str, str], typed: Mapping[str, str], settings: type[Settings]
) -> str:
    """The command line that makes an artifact."""
    name, _, flag = command.partition(" ")
    words = ["dmole", name, *([values["metric"]] if kind is RESCORED else []), f"--task {shlex.quote(values['task'])}"]
    if kind in (EXPERT, MEMORY, ALLOCATION) and values["method"] != D_MOLE:
        words.append(f"--method {values['method']}")
    if kind in (EVALUATION, LIKELIHOOD, RESCORED):
        method, *routing = values["method"].split("@")
        words += [f"--method {values['method'] if kind is RESCORED else method}", f"--stage {values['after']}"]
        options = [f"--threshold-scale {text}" if _is_number(text) else f"--routing {text}" for text in routing]
        words += options if kind is not RESCORED else []
        words += [f"--split {values['split']}"] if values["split"] != "test" else []
    module = module_of(name)
    repeated = {"run", "config", *(["set"] if name == "train-task" else []), *settings_of(module, settings)}
    repeated -= {"evaluate.split", *getattr(module, "REPEATABLE", ())}
    words += [text for path, text in typed.items() if path in repeated]
    return " ".join([*words, *([flag] if flag else [])])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
