"""What a terminal shows: summaries, progress in a pipe, lines that wrap at spaces, the page of options, completion."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.cli import console, ending
from dmole_cli.cli.derive import build
from dmole_cli.cli.lazy import GROUPS
from dmole_cli.cli.subcommands import module_of
from dmole_cli.commands.app import COMMANDS, app
from dmole_cli.errors import DmoleError

SUBCOMMANDS = [
    *(name for name in COMMANDS if name not in GROUPS),
    *(f"{g} {n}" for g in GROUPS for n in GROUPS[g].table),
]


def outcomes(tasks: int, stages: int, *, written: int) -> list[Outcome]:
    """Of `dmole evaluate`; the first `written` stages of every task were computed."""
    found = []
    for task in range(tasks):
        for stage in range(stages):
            path = Path(f"dmole-run/evaluations/d-mole/{stage}/task-{task}.parquet")
            facts = {"at_stage": stage, "exact_match": 10.0 * stage, "samples": 5, "generated": 3, "reused": 2}
            found.append(
                Outcome("evaluate d-mole", f"task-{task}", path, written=stage < written, facts=facts, reads=("data",))
            )
    return found


def test_a_line_for_every_task_and_with_v_for_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    for written in (0, 4, 6):
        console.report(outcomes(3, 6, written=written), as_json=False, following="dmole report bwt")
        *lines, following = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == [f"evaluate d-mole task-{task}" for task in range(3)]
        assert following == "next: dmole report bwt"
        expected = {0: "all 6 files", 4: "wrote 4 files", 6: "wrote 6 files"}[written]
        assert all(expected in line for line in lines) and ("2 up to date" in lines[0]) == (written == 4)
        if written == 4:
            assert "exact match 0.0 10.0 20.0 30.0, generated 12, reused 8" in lines[0]
    console.report(outcomes(3, 6, written=0), as_json=False, following="", verbose=True)
    assert capsys.readouterr().err.count("up to date") == 18
    console.report(outcomes(1, 1, written=1), as_json=False, following="")
    assert "wrote dmole-run/evaluations/d-mole/0/task-0.parquet" in capsys.readouterr().err


def test_lines_wrap_at_spaces_and_commands_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"dmole-run/{'long-' * 20}name.parquet"
    command = f"run: dmole evaluate --task {'task-' * 20} --run runs/of-mine"
    error = DmoleError(f"{path} has nine problems that take more than a line of a terminal to describe", command)
    monkeypatch.setenv("COLUMNS", "60")
    console.report(outcomes(1, 6, written=6), as_json=False, following="dmole report bwt")
    ending.fail(error)
    shown = capsys.readouterr().err
    lines = shown.splitlines()
    assert f"  -> {command}" in lines
    assert all(len(line) <= 60 or path in line or line == f"  -> {command}" for line in lines)
    assert re.sub(r"\n +", " ", shown.split("next:")[0]).count("dmole-run/evaluations/d-mole") == 1
    monkeypatch.delenv("COLUMNS")
    ending.fail(error)
    assert len(capsys.readouterr().err.splitlines()) == 2, "a pipe has no width"


def test_progress_in_a_pipe_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        yield from range(40)

    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    for number in console.tracker(True)(items(), "train [digits]", 40):
        if number == 20:
            seen += capsys.readouterr().err.splitlines()
    lines = [*seen, *capsys.readouterr().err.splitlines()]
    assert len(seen) == 20, "before the end"
    assert [line.partition(",")[0] for line in lines] == [f"train [digits]: {n} of 40" for n in range(1, 41)]
    assert all(line.endswith(" s left") for line in lines[:-1])
    monkeypatch.undo()
    resumed = console.tracker(True)(range(7, 40), "train", 40, done=7, status=lambda: "loss 0.5")
    assert list(resumed) == list(range(7, 40))
    assert capsys.readouterr().err == "train: 40 of 40, 0 s, loss 0.5\n"
    assert list(console.tracker(True)(items(), "fast", 40)) == list(range(40))
    assert capsys.readouterr().err.startswith("fast: 40 of 40, 0 s\n")
    assert list(console.tracker(False)(items(), "quiet", 40)) + list(console.tracker(True)([], "empty", 0)) == [
        *range(40)
    ]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_is_readable_at_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = build(name, module_of(name), "What it does.", None)
    with pytest.raises(SystemExit):
        command.main(["-h"], prog_name=f"dmole {name}")
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    titles = [line.split()[1] for line in page.splitlines() if line.startswith("╭─")]
    assert titles == [title for title in ("What", "How", "Backbone", "Where", "Output") if title in titles]
    names = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    options = {name for name in names if name.startswith("-")}
    words = set(page.replace(",", "").split())
    assert options - words == set()
    # The text of an option has at least half of the line.
    rows = [line for line in page.splitlines() if line.startswith("│ -") and not line.startswith("│ --no-")]
    assert all(re.search(r"  \S", line).end() <= 40 for line in rows), page


def complete(line: str, folder: Path, *, shell: str = "bash") -> list[str]:
    """What the shell offers for the last word of a line."""
    words = line.split(" ")
    program = "import sys; sys.argv = ['dmole']\nfrom dmole_cli.commands.app import main\nmain()"
    environment = tiny.environment(_DMOLE_COMPLETE=f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_shell_completes_the_users_tasks_first(tmp_path: Path) -> None:
    cards = [tiny.write_task(tmp_path, name, train=1, test=1) for name in ("screws", "nuts")]
    (tmp_path / "dmole.toml").write_text(f"tasks = {json.dumps([card.name for card in cards])}\nunseen = []\n")
    assert complete("dmole train-task --task s", tmp_path)[:2] == ["screws", "satellite"]
    (tmp_path / "dmole.toml").write_text("tasks = 3")
    assert "digits" in complete("dmole train-task --task di", tmp_path), (
        "the command reports what is wrong with the file"
    )


def test_the_shell_completes_commands_and_choices(tmp_path: Path) -> None:
    assert complete("dmole tra", tmp_path) == ["train-router", "train-task"]
    assert complete("dmole evaluate --routing t", tmp_path) == ["top-2", "top-1"]
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert "--install-completion" in shown.output
