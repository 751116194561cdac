"""dmole commands in processes that start at once: forked from this one, which has the libraries imported."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

TASKS = ("light", "wide")
CARD = """format = "question_answer"
prompt = "{{question}}"
metric = "exact_match"
[generation]
max_new_tokens = 2
[recipe]
epochs = 2
batch_size = 4
[data]
train = "{task}/train.json"
validation = ""
test = "{task}/test.json"
"""
SETTINGS = """device = "cpu"
tasks = ["light.toml", "wide.toml"]
unseen = []
[profile]
portion = 0.5
batch_size = 4
[allocate]
budget = "sites:50%"
rank = 2
alpha = 4.0
[router]
epochs = 20
"""
# Name -> command; in this order they are a whole run.
STAGES: Mapping[str, tuple[str, ...]] = {
    "profile": ("profile",),
    "allocate": ("allocate",),
    "train-router": ("train-router",),
    "train-task": ("train-task",),
    "evaluate": ("evaluate", "--stage", "all"),
    "export": ("export", "--task", TASKS[0], "adapter"),
    "import": ("import", "--task", TASKS[0], "adapter", "--run", "other"),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative for a signal.
        out: what it printed on stdout.
        err: what it printed on stderr.
    """

    code: int
    out: str
    err: str

    @property
    def one_error(self) -> bool:
        """Whether it ended with exit code 1 and one message."""
        text = self.err
        strange = ("Traceback", "Exception ignored", "unexpected ")
        return self.code == 1 and text.count("error: ") == 1 and not any(words in text for words in strange)


def write_stream(folder: Path) -> Path:
    """Two small tasks and a configuration, for the embedded backbone."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    for task in TASKS:
        (folder / task).mkdir()
        for split, count in (("train", 12), ("test", 4)):
            rows = []
            for number in range(count):
                yes = number % 2 == 0
                size = (32, 12) if task == "wide" and yes else (12, 32) if task == "wide" else (24, 24)
                shade = 230 - number if yes or task == "wide" else 10 + number
                Image.new("RGB", size, (shade, shade, 40 + number)).save(folder / task / f"{split}-{number}.png")
                answer = "yes" if yes else "no"
                rows.append(
                    f'{{"image": "{task}/{split}-{number}.png", "question": "Is it {task}?", "answer": "{answer}"}}'
                )
            (folder / task / f"{split}.json").write_text("\n".join(rows), encoding="utf-8")
        (folder / f"{task}.toml").write_text(CARD.format(task=task), encoding="utf-8")
    (folder / "dmole.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


def load_libraries() -> None:
    """Import what the stages import, once for all forked commands."""
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401

    import dmole_cli.stages.evaluate
    import dmole_cli.stages.import_adapter
    import dmole_cli.stages.profile
    import dmole_cli.stages.train_router
    import dmole_cli.stages.train_task  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()


def start(args: Sequence[str], cwd: Path, *, prepare: Callable[[], None] | None = None, log: Path | None = None) -> int:
    """Start a command; returns its process number.

    Args:
        args: of the command line.
        cwd: its folder.
        prepare: called in the new process, after stdout and stderr were opened.
        log: prefix of the files for stdout and stderr, by default beside the folder.
    """
    log = log or cwd.with_name(f"{cwd.name}.log")
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(cwd)
        for number, suffix in ((1, "out"), (2, "err")):
            opened = os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
            os.close(opened)
        if prepare is not None:
            prepare()
        sys.argv = ["dmole", *args]
        from dmole_cli.__main__ import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = 120  # as the interpreter does
        os._exit(code)


def finish(process: int, cwd: Path, *, log: Path | None = None) -> Ended:
    """Wait for a command."""
    log = log or cwd.with_name(f"{cwd.name}.log")
    _, status = os.waitpid(process, 0)
    out, err = (Path(f"{log}.{suffix}").read_text(encoding="utf-8", errors="replace") for suffix in ("out", "err"))
    return Ended(os.waitstatus_to_exitcode(status), out, err)


def run(args: Sequence[str], cwd: Path) -> Ended:
    """Run a command that must succeed."""
    ended = finish(start(args, cwd), cwd)
    if ended.code != 0:
        raise SystemExit(f"dmole {' '.join(args)} failed: {ended.err}")
    return ended


def contents(folder: Path) -> dict[str, bytes]:
    """Files below a folder by relative path, except caches; of the costs only that the file exists, and no times of steps."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found = {name: path for name, path in files.items() if "cache" not in name.parts}
    times = {str(name): b"" for name in found if "costs" in name.parts and name.suffix != ".tmp"}
    others = {name: path for name, path in found.items() if "costs" not in name.parts}
    logs = {name: path for name, path in others.items() if "training" in name.parts and name.suffix == ".parquet"}
    steps = {str(name): _without_times(path) for name, path in logs.items()}
    return times | {str(name): path.read_bytes() for name, path in others.items()} | steps


def _without_times(path: Path) -> bytes:
    """The figures of all steps but their seconds."""
    from dmole_cli.artifacts.training_log import read_training_log

    return repr([replace(row, seconds=0.0) for row in read_training_log(path)]).encode()


def reference(folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """A whole run without disturbance: stage -> copy of the folder before it (and `done`), and stage -> seconds."""
    work = write_stream(folder / "work")
    before, seconds = {}, {}
    for name, args in STAGES.items():
        before[name] = shutil.copytree(work, folder / f"before-{name}")
        begun = time.monotonic()
        run(args, work)
        seconds[name] = time.monotonic() - begun
    before["done"] = work
    return before, seconds


def differences(work: Path, expected: Mapping[str, bytes]) -> list[str]:
    """Files of a folder that differ from the expected contents, are missing, are further ones, or were left over; each named."""
    found, left = contents(work), left_over(work)
    changed = [f"{name} has other bytes" for name in found.keys() & expected.keys() if found[name] != expected[name]]
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    further = [f"{name} is not expected" for name in found.keys() - expected.keys() - set(left)]
    return sorted([*changed, *missing, *further, *(f"{name} was left over" for name in left)])


def after(before: Mapping[str, Path], stage: str) -> dict[str, bytes]:
    """Contents of the folder after a stage."""
    names = [*STAGES, "done"]
    return contents(before[names[names.index(stage) + 1]])


def left_over(folder: Path) -> list[str]:
    """Temporary files and folders, but for those of costs, which are deleted when the stage runs the next time."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return [str(path) for path in found if "costs" not in path.parts]
