"""What stages share: command lines that work where the user stands, a clock that starts when everything is loaded."""

from contextlib import contextmanager
from pathlib import Path

import tiny
from dmole_cli.commands.options import open_session

from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task


def test_commands_repeat_the_shared_options(tmp_path):
    config = tmp_path / "my stream.toml"
    config.write_text('tasks = ["digits"]\n', encoding="utf-8")
    session = open_session(run=tmp_path / "run", config=config, seed=3, backbone="embedded")
    line = session.command("train-task", "digits", method="seq-ft")
    assert line.startswith("dmole train-task --task digits --method seq-ft ")
    assert f"--run {tmp_path / 'run'}" in line
    assert f"--config '{config}'" in line
    assert line.endswith("--seed 3 --backbone embedded")


def test_commands_leave_out_what_a_subcommand_does_not_have():
    session = open_session(run=Path("dmole-run"), config=None, seed=3, data_root=Path("pictures"))
    assert session.command("allocate", "digits") == "dmole allocate --task digits"
    assert session.command("evaluate", "digits") == "dmole evaluate --task digits --data-root pictures"
    assert session.command("profile", "digits") == "dmole profile --task digits --data-root pictures"


def test_loading_the_backbone_is_no_cost_of_the_first_task(stream, tmp_path, monkeypatch):
    monkeypatch.chdir(stream)
    config, measured, entered = read_settings(stream / "dmole.toml"), Workspace.measured, []

    @contextmanager
    def watched(session, stage, task, **options):
        entered.append((stage, "backbone" in session.__dict__))
        with measured(session, stage, task, **options):
            yield

    monkeypatch.setattr(Workspace, "measured", watched)
    for stage in (profile, allocate_task, train_router, train_task):
        session = workspace(config, Run(tmp_path))  # each as a command of its own
        stage(tiny.TASKS[0], **session.parts)
    assert entered == [("profile", True), ("train-router", True), ("train-task-d-mole", True)]
