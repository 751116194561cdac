"""Commands: the user's own spellings for ever, old spellings named with the new ones, options in groups."""

import pytest
import tiny

from dmole_cli.cli.lazy import GROUPS
from dmole_cli.cli.retired import RETIRED
from dmole_cli.cli.subcommands import module_of
from dmole_cli.commands.app import COMMANDS

# What the documents of the project have promised since its first day.
FOREVER = (
    ("profile", "--task", tiny.TASKS[0]),
    ("allocate", "--budget", "4%"),
    ("train-router",),
    ("train-task",),
    ("evaluate", "--report", "bwt"),
)


def test_the_first_spellings_work(finished, run):
    for line in FOREVER:
        done = run(*line, cwd=finished)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize(("command", "old"), [(c, o) for c, options in RETIRED.items() for o in options])
def test_an_old_spelling_ends_in_an_error_that_names_the_new_one(stream, run, command, old):
    done = run(command, old, "3", cwd=stream)
    assert done.returncode == 2 and f"dmole {command} has no option {old}" in done.stderr
    new = RETIRED[command][old]
    assert new in done.stderr
    option = next((word for word in new.split() if word.startswith("--")), "")
    words = new.replace("dmole ", "").split()
    name = [word for word in words[:2] if word in COMMANDS or words[0] == "tasks"]
    shown = run(*name, "--help", cwd=stream)
    assert shown.returncode == 0 and (not option or option in shown.stdout)


@pytest.mark.parametrize("name", [*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group].table)])
def test_help_has_options_in_groups_and_defaults(stream, run, name):
    shown = run(*name.split(), "-h", cwd=stream)
    assert shown.returncode == 0, shown.stderr
    if name in GROUPS:
        return
    groups = [title for title in ("What", "How", "Backbone", "Files", "Output") if f"─ {title} ─" in shown.stdout]
    assert "Output" in groups and len(groups) >= 2
    if any("." in path or path == "profile" for path in module_of(name).SETTINGS):
        assert "How" in groups


def test_tasks_without_a_subcommand_lists(stream, run):
    listed = run("tasks", "--json", cwd=stream)
    assert listed.returncode == 0 and listed.stdout == run("tasks", "list", "--json", cwd=stream).stdout


def test_an_unknown_command_is_a_usage_error(stream, run):
    done = run("trian-task", cwd=stream)
    assert done.returncode == 2 and "train-task" in done.stderr
