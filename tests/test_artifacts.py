"""One table of artifact kinds; a problem with an artifact ends in one error with a command that works when it is typed."""

import importlib
import re
import shlex
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


def proposed(error: str) -> list[str]:
    """The command that an error proposes."""
    [line] = [line for line in error.splitlines() if line.startswith("  -> ")]
    return shlex.split(line.partition("run: dmole ")[2])


EXPERT = f"experts/{FIRST}.safetensors"
BROKEN = {
    f"profiles/{FIRST}.parquet": ("allocate", "--task", FIRST, "--force"),
    f"allocations/{FIRST}.json": ("train-task", "--task", FIRST, "--force"),
    f"routers/{FIRST}.safetensors": ("evaluate", "--stage", "1", "--force"),
    EXPERT: ("evaluate", "--stage", "1", "--force"),
    f"experts/seq-ft/{FIRST}.safetensors": ("train-task", "--method", "seq-ft", "--task", SECOND, "--force"),
}


@pytest.mark.parametrize("damage", ["missing", "damaged"])
@pytest.mark.parametrize("name", BROKEN)
def test_the_command_that_an_error_proposes_works(fresh, run, name, damage):
    """The run directory was named by an option, which the command repeats."""
    (fresh / "dmole-run").rename(fresh / "my run")
    path = fresh / "my run" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    command = (*BROKEN[name], "--run", "my run")
    refused = run(*command, cwd=fresh)
    assert refused.returncode == 1 and Path(name).name in refused.stderr and "Traceback" not in refused.stderr
    fix = proposed(refused.stderr)
    assert "--run" in fix and "my run" in fix
    tiny.succeed(*fix, cwd=fresh, run=run)
    again = run(*command, cwd=fresh)
    # What was made from the file may be stale now, which the next error says in the same way.
    assert again.returncode == 0 or proposed(again.stderr) != fix


def test_a_stale_artifact_names_what_changed_and_the_command_repeats_what_was_typed(fresh, run):
    refused = run("profile", "--task", FIRST, "--batch-size", "5", "--precision", "float32", cwd=fresh)
    assert refused.returncode == 1 and "is stale: batch_size 4 -> 5" in refused.stderr
    assert proposed(refused.stderr) == [
        "profile",
        "--task",
        FIRST,
        "--batch-size",
        "5",
        "--precision",
        "float32",
        "--force",
    ]
    tiny.succeed(*proposed(refused.stderr), cwd=fresh, run=run)


def test_options_are_repeated_where_the_other_command_has_them(fresh, run):
    """`--batch-size` of evaluate is not the one of train-task; `--device` is the same everywhere."""
    (fresh / "dmole-run" / EXPERT).unlink()
    command = ("evaluate", "--stage", "1", "--batch-size", "3", "--device", "cpu", "--force")
    refused = run(*command, cwd=fresh)
    assert proposed(refused.stderr) == ["train-task", "--task", FIRST, "--device", "cpu"]


@pytest.mark.parametrize("name", [f"features/{FIRST}.parquet", f"features/{FIRST}.test.parquet", "cache/images.sqlite"])
def test_damaged_features_and_image_digests_are_deleted(fresh, run, name):
    """No stage with --force makes them again: each one reads them first."""
    path = fresh / "dmole-run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"nothing")
    stage = ("evaluate", "--stage", "1", "--task", FIRST) if ".test" in name else ("train-router", "--task", FIRST)
    refused = run(*stage, "--force", cwd=fresh)
    assert refused.returncode == 1 and f"-> delete dmole-run/{name}" in refused.stderr
    path.unlink()
    tiny.succeed(*stage, "--force", cwd=fresh, run=run)


def test_options_of_methods_are_repeated(fresh, run):
    command = ("train-task", "--task", FIRST, "--method", "seq-ft")
    refused = run(*command, "--set", "learning-rate=0.01", cwd=fresh)
    assert proposed(refused.stderr) == [*command, "--set", "learning-rate=0.01", "--force"]


def test_a_damaged_cache_may_be_deleted(fresh, run):
    path = fresh / "dmole-run" / "generations" / f"{FIRST}.parquet"
    path.write_bytes(b"nothing")
    shutil.rmtree(fresh / "dmole-run" / "evaluations")
    refused = run("evaluate", "--task", FIRST, cwd=fresh)
    assert refused.returncode == 1 and f"delete dmole-run/generations/{FIRST}.parquet" in refused.stderr
    path.unlink()
    tiny.succeed("evaluate", "--task", FIRST, cwd=fresh, run=run)
