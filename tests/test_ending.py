"""How a command ends: whatever goes wrong is one error and exit code 1, never a traceback."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from dmole_cli.cli.ending import as_dmole_error

DMOLE = (sys.executable, "-m", "dmole_cli")


def check(code: int, text: str, said: str) -> None:
    assert code == 1, text
    assert (
        text.count("error: ") == 1 and said in text and "Traceback" not in text and "Exception ignored" not in text
    ), text


@pytest.mark.parametrize("args", [("tasks", "list", "--json"), ("tasks", "list")])
def test_a_full_stdout(tmp_path, args):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*DMOLE, *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=tiny.environment(),
            check=False,
        )
    check(done.returncode, done.stderr, "no space left")


def test_a_closed_stdout_and_stderr(tmp_path):
    command = " ".join([*DMOLE, "tasks", "list", "--json"])
    both = f"{command} >&-; echo $? >code; {command} 2>&- >out; echo $? >>code"
    done = subprocess.run(
        ["bash", "-c", both], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=tiny.environment(), check=False
    )
    assert (tmp_path / "code").read_text().split() == ["1", "0"]
    check(1, done.stderr, "stdout is closed")
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8"))


def test_an_ascii_terminal(tmp_path):
    (tmp_path / "dmole.toml").write_text('tasks = ["täsk.toml"]\nunseen = []\n', encoding="utf-8")
    (tmp_path / "täsk.toml").write_text('like = "digits"\ntitle = "Zähler 数"\n', encoding="utf-8")
    for options in ([], ["--json"]):
        done = tiny.dmole("tasks", "list", *options, "täsk.toml", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["title"] == "Zähler 数"


@pytest.mark.parametrize("delays", [(0.0, 0.0), (0.3,), (0.5, 0.05, 0.05), (1.5, 0.2)])
def test_ctrl_c_at_any_time_once_or_more(stream, tmp_path, delays):
    """From the first line of dmole on: while it imports, and again while it ends."""
    program = "import sys; sys.argv[0] = 'dmole'; from dmole_cli import __main__; print(flush=True); __main__.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train-router", "--run", str(tmp_path / "run")],
        cwd=stream,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.02)
    for delay in delays:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
    check(process.wait(timeout=60), process.communicate()[1], "interrupted; no incomplete file was left")
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interruption_that_a_destructor_swallows_is_repeated(tmp_path):
    program = """
import os, signal, sys, time
from dmole_cli.cli import ending
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def command():
    Swallows()
    time.sleep(60)
ending.run(command)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=tiny.environment(), capture_output=True, text=True, timeout=40
    )
    assert done.returncode == 1 and done.stderr.count("error: interrupted; no incomplete file was left") == 1


def test_an_interruption_while_stdout_is_flushed_is_no_success():
    program = """
import os, signal, sys
from dmole_cli.cli import ending
class Interrupted:
    def flush(self):
        os.kill(os.getpid(), signal.SIGINT)
def command():
    sys.stdout = Interrupted()
ending.run(command)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=tiny.environment(), capture_output=True, text=True, timeout=40
    )
    check(done.returncode, done.stderr, "interrupted; no incomplete file was left")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "No usable temporary directory",
        ),
        (KeyError("x"), "unexpected KeyError: 'x'"),
        (OSError("of no system call"), "unexpected OSError: of no system call"),
    ],
)
def test_other_exceptions_have_a_message_and_a_way_out(monkeypatch, error, said):
    monkeypatch.delenv("DMOLE_TRACEBACK", raising=False)
    found = as_dmole_error(error)
    assert said in found.message and found.hint


def test_a_fault_of_dmole_shows_its_traceback_where_it_is_wanted(monkeypatch):
    monkeypatch.setenv("DMOLE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        as_dmole_error(KeyError("x"))
    assert as_dmole_error(MemoryError()).hint
