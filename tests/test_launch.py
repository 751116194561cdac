"""The command line under torchrun: one result, one message, one exit code."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

FIRST, _ = tiny.TASKS
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


def launched(port: int, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`torchrun -m dmole_cli -- ...`, with two processes."""
    command = [*TORCHRUN, str(port), "-m", "dmole_cli", "--", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=tiny.environment(), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.shorten(tiny.write_stream(tmp_path_factory.mktemp("launched")), epochs=1)


def test_two_processes_train_the_expert_of_one_and_speak_once(folder, run):
    train = ("train-task", "--method", "finetune", "--task", FIRST, "--micro-batch", "3")
    tiny.succeed(*train, "--run", "alone", cwd=folder, run=run)
    done = launched(29611, *train, "--run", "together", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    path = Path("experts", "finetune", f"{FIRST}.safetensors")
    assert (folder / "together" / path).read_bytes() == (folder / "alone" / path).read_bytes()
    assert done.stdout.count('"written": true') == 1 and done.stderr.count("warning: train-task") == 1


def test_an_error_of_several_processes_is_reported_once(folder):
    """An image in the part of one process is damaged; the other one waits in an exchange when that fails."""
    image = folder / "tasks" / FIRST / "pictures" / "train-0.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    try:
        done = launched(
            29612,
            "train-task",
            "--method",
            "finetune",
            "--task",
            FIRST,
            "--micro-batch",
            "3",
            "--run",
            "no",
            cwd=folder,
        )
    finally:
        image.write_bytes(content)
    assert done.returncode != 0
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and image.name in done.stderr, done.stderr
    assert not (folder / "no" / "experts").exists()
