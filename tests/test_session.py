"""The command lines that errors propose work where the user stands."""

from pathlib import Path

from dmole_cli.commands.options import open_session


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
