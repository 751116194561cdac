"""The store of expert activation: several processes write, none is lost by a kill, and it stays small."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
import tiny

from dmole_cli.artifacts.usage import Activation, Usage
from dmole_cli.errors import DmoleError, DmoleWarning

WRITER = """
import sys
from pathlib import Path
from dmole_cli.artifacts.usage import Usage
usage = Usage(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    usage.record([(sys.argv[3],), (), (sys.argv[3], "both")])
    print(number, flush=True)
"""


def writer(path, count: int, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), str(count), name]
    return subprocess.Popen(command, env=tiny.environment(), stdout=subprocess.PIPE, text=True)


def test_what_is_counted(tmp_path):
    usage = Usage(tmp_path / "usage" / "activation.sqlite")
    assert usage.counts() == Activation(0, 0, {}) and not usage.path.parent.exists()
    usage.record([])
    assert not usage.path.exists()
    usage.record([("a",), ("b", "a"), (), ("ü",)])
    usage.record([()])
    assert usage.counts() == Activation(5, 2, {"a": 2, "b": 1, "ü": 1})
    assert list(usage.counts().experts) == ["a", "b", "ü"]
    assert usage.counts(2) == Activation(2, 1, {"ü": 1})
    usage.close()
    usage.record([("a",)])
    assert usage.counts(1) == Activation(1, 0, {"a": 1})
    usage.close()
    assert [path.name for path in usage.path.parent.iterdir()] == ["activation.sqlite"]


def test_two_processes_write_at_once(tmp_path):
    path = tmp_path / "activation.sqlite"
    both = [writer(path, 300, name) for name in ("a", "b")]
    assert [process.communicate()[1] or process.returncode for process in both] == [0, 0]
    assert Usage(path).counts() == Activation(1800, 600, {"a": 600, "b": 600, "both": 600})


def test_threads_share_a_store(tmp_path):
    usage = Usage(tmp_path / "activation.sqlite")
    threads = [threading.Thread(target=lambda: [usage.record([("a",)]) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usage.counts() == Activation(200, 0, {"a": 200})


def test_a_killed_writer_leaves_what_it_has_recorded(tmp_path):
    path = tmp_path / "activation.sqlite"
    for _ in range(2):
        process = writer(path, 100_000, "a")
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    usage = Usage(path)
    found = usage.counts()
    # Complete transactions of three requests, and at least those that were reported.
    assert found.requests >= 2 * 20 * 3 and found.requests == 3 * found.without_expert == 3 * found.experts["both"]
    usage.record([("b",)])
    assert usage.counts().experts["b"] == 1
    with sqlite3.connect(path) as stored:
        assert stored.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_only_the_window_is_kept(tmp_path):
    usage = Usage(tmp_path / "activation.sqlite", window=50)
    usage.record([("a",)] * 1000)
    usage.record([("b",)] * 10)
    assert usage.counts() == Activation(50, 0, {"a": 40, "b": 10}) == usage.counts(1000)
    size = usage.path.stat().st_size
    for _ in range(100):
        usage.record([("c", "d")] * 10)
    assert usage.counts() == Activation(50, 0, {"c": 50, "d": 50})
    assert usage.path.stat().st_size <= size + 8192
    other = Usage(usage.path, window=20)
    other.record([()])
    assert other.counts() == Activation(20, 1, {"c": 19, "d": 19})


def test_a_damaged_file_is_replaced_when_answers_are_recorded(tmp_path):
    usage = Usage(tmp_path / "activation.sqlite")
    usage.path.write_bytes(b"not a database" * 1000)
    with pytest.raises(DmoleError, match=r"activation\.sqlite is damaged.*not a database") as caught:
        usage.counts()
    assert "delete the file" in caught.value.hint
    with pytest.warns(DmoleWarning, match="was damaged"):
        usage.record([("a",)])
    assert usage.counts() == Activation(1, 0, {"a": 1})
    # A running process notices that another one has replaced the file.
    usage.path.unlink()
    usage.record([("b",)])
    assert usage.counts() == Activation(1, 0, {"b": 1})


def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "activation.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    with pytest.raises(DmoleError, match="not a file of dmole"):
        Usage(path).counts()
    with pytest.warns(DmoleWarning, match="not a file of dmole"):
        Usage(path).record([("a",)])
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_gives_a_warning(tmp_path):
    (tmp_path / "usage").write_text("a file in place of the folder", encoding="utf-8")
    with pytest.warns(DmoleWarning, match="the use of experts is not recorded"):
        Usage(tmp_path / "usage" / "activation.sqlite").record([("a",)])


def test_a_file_that_may_only_be_read_is_counted(tmp_path):
    usage = Usage(tmp_path / "activation.sqlite")
    usage.record([("a",)])
    usage.close()
    usage.path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert usage.counts() == Activation(1, 0, {"a": 1})
        if os.getuid():  # root may write everywhere
            with pytest.warns(DmoleWarning, match="the use of experts is not recorded"):
                usage.record([("b",)])
    finally:
        tmp_path.chmod(0o755)


def test_answers_are_recorded(run, finished, tmp_path):
    here = shutil.copytree(finished, tmp_path / "here")
    image = "tasks/halves/pictures/test-0.png"
    tiny.succeed(
        "answer", "--method", "seq-ft", "--image", image, "Which half is white, left or right?", cwd=here, run=run
    )
    rows = f'{{"question": "Colour?", "image": "{image}"}}\n' * 3
    (here / "questions.jsonl").write_text(rows, encoding="utf-8")
    tiny.succeed("answer", "--file", "questions.jsonl", "--out", "answers.jsonl", cwd=here, run=run)
    assert Usage(here / "dmole-run" / "usage" / "activation.sqlite").counts().requests == 3
    of_other = Usage(here / "dmole-run" / "usage" / "seq-ft" / "activation.sqlite")
    assert of_other.counts() == Activation(1, 0, {"halves": 1})
