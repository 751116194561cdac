"""One table of artifact kinds; a problem with an artifact ends in one error with a command that works when it is typed."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
import tiny

from dmole_cli.artifacts.kinds import EXPORT, KINDS
from dmole_cli.artifacts.run import Run

FIRST, SECOND = tiny.TASKS


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_its_reader_its_writer_and_a_path_of_its_own(kind):
    for function in (kind.reader, kind.writer):
        module, _, name = function.partition(".")
        assert callable(getattr(importlib.import_module(f"dmole_cli.artifacts.{module}"), name))
    if kind is EXPORT:
        return
    names = re.findall(r"{(\w+)}", kind.path)
    for values in ({}, kind.defaults):
        every = {n: {"split": "validation", "after": "2"}.get(n, f"some-{n}") for n in names} | values
        path = kind.path_for(**every)
        assert kind.parse(path) == every
        run = Run(Path("run"), Path("common"))
        assert run.identify(run.path(kind, **every)) == (kind, every)
        assert (Path("common") in run.path(kind, **every).parents) == kind.shared


def test_commands_of_kinds_are_commands():
    from dmole_cli.commands.app import COMMANDS

    assert {kind.command.partition(" ")[0] for kind in KINDS if kind.command} <= COMMANDS.keys()


@pytest.fixture
def fresh(finished, tmp_path) -> Path:
    """A copy of the finished stream."""
    return shutil.copytree(finished, tmp_path / "stream")


EXPERT = f"experts/{FIRST}.safetensors"


def test_a_stale_artifact_names_what_changed_and_the_command_repeats_what_was_typed(fresh, run):
    refused = run("profile", "--task", FIRST, "--batch-size", "5", "--precision", "float32", cwd=fresh)
    assert refused.returncode == 1 and "is stale: batch_size 4 -> 5" in refused.stderr
    assert tiny.proposed(refused.stderr) == [
        "profile",
        "--task",
        FIRST,
        "--batch-size",
        "5",
        "--precision",
        "float32",
        "--force",
    ]
    tiny.succeed(*tiny.proposed(refused.stderr), cwd=fresh, run=run)


def test_options_are_repeated_where_the_other_command_has_them(fresh, run):
    """`--batch-size` of evaluate is not the one of train-task; `--device` is the same everywhere."""
    (fresh / "dmole-run" / EXPERT).unlink()
    command = ("evaluate", "--stage", "1", "--batch-size", "3", "--device", "cpu", "--force")
    refused = run(*command, cwd=fresh)
    assert tiny.proposed(refused.stderr) == ["train-task", "--task", FIRST, "--device", "cpu"]


def test_options_of_methods_are_repeated(fresh, run):
    command = ("train-task", "--task", FIRST, "--method", "seq-ft")
    refused = run(*command, "--set", "learning-rate=0.01", cwd=fresh)
    assert tiny.proposed(refused.stderr) == [*command, "--set", "learning-rate=0.01", "--force"]
