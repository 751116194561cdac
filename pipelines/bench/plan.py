"""Estimates of `dmole plan` against processes: peak memory of `profile` and `train-task`, and time of all stages.

Memory: two backbones with random weights, of LLaVA's shape (133 million parameters) and InternVL's (177 million), saved in
folders as users have them. Every command runs in its own process, whose maximum resident size the system reports at its end;
other load on the machine does not change it.

Time: the embedded backbone on three tasks of the built-in stream, and InternVL's shape with 47 million parameters on two tasks.
`dmole plan --measure` runs before and after the five commands, and its two results are averaged, because other load on the
machine changes all of them: by the wall clock, and as processor time, which other load changes less. Also prints what was planned
and what was measured. Takes half an hour:

    python pipelines/bench/run.py --only plan
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.bench._shapes import Shape, Stream, build
from pipelines.bench._timing import Row, counted

ROOT = Path(__file__).parents[2]
MEMORY, TIME = 0.15, 0.25  # largest relative errors
STAGES = (("profile",), ("allocate",), ("train-router",), ("train-task",), ("evaluate", "--stage", "all"))


@dataclass(frozen=True)
class Setting:
    """A command to measure: the stage, the batch size, and whether activation checkpointing is on."""

    stage: str
    batch_size: int
    checkpointing: bool = False

    def __str__(self) -> str:
        """As printed."""
        return f"{self.stage}, batches of {self.batch_size}" + (", checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class Usage:
    """What a process used: seconds by the wall clock and of processor time, and its maximum resident size in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int


CASES = {
    Shape("llava", (12, 384), (12, 640), 32_000, 224, 16, 196): (
        Setting("profile", 2),
        Setting("profile", 8),
        Setting("profile", 8, checkpointing=True),
        Setting("train-task", 4),
        Setting("train-task", 4, checkpointing=True),
    ),
    Shape("internvl", (12, 448), (16, 704), 48_000, 224, 14, 64): (
        Setting("profile", 4),
        Setting("train-task", 8),
    ),
}
SMALL = Shape("internvl", (8, 256), (8, 512), 16_000, 224, 14, 64)
SMALL_STREAM = Stream(("first", "second"), rows=128, portion=0.25, router_epochs=300)
EMBEDDED = """tasks = ["digits", "emoji", "grounding"]
unseen = ["counting"]
device = "cpu"
[router]
epochs = 300
"""
TINY = Shape("llava", (2, 64), (2, 128), 300, 28, 14, 4)
TINY_SETTINGS = (Setting("profile", 2), Setting("train-task", 2))


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Relative errors of all estimates; memory repeats exactly enough, and a stream takes too long, for rounds."""
    found = []
    for shape, settings in ({TINY: TINY_SETTINGS} if tiny else CASES).items():
        found += _in_folder(lambda f, s=shape: _built(s, Stream(), f), lambda f, s=shape, w=settings: _memory(s, w, f))
    if tiny:
        streams = {"tiny": lambda folder: _built(TINY, Stream(rows=12), folder)}
    else:
        streams = {
            "embedded": lambda folder: (folder / "dmole.toml").write_text(EMBEDDED, encoding="utf-8"),
            "47 M": lambda folder: _built(SMALL, SMALL_STREAM, folder),
        }
    for name, prepare in streams.items():
        found += _in_folder(prepare, lambda folder, n=name: _stream(n, folder))
    return found


def _in_folder(prepare: Callable[[Path], object], measure: Callable[[Path], list[Row]]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        return measure(Path(folder))


def _built(shape: Shape, stream: Stream, folder: Path) -> None:
    # In its own process: on Linux, the maximum resident size of a child starts at that of its parent.
    building = multiprocessing.get_context("spawn").Process(target=build, args=(shape, stream, folder))
    building.start()
    building.join()


# --------------------------------------------------------------------------------------------------- memory


def _memory(shape: Shape, settings: Sequence[Setting], folder: Path) -> list[Row]:
    return [_memory_row(shape, setting, folder) for setting in settings]


def _memory_row(shape: Shape, setting: Setting, folder: Path) -> Row:
    measured = _peak(setting, folder)
    planned = _plan(folder, "--task", "task", "--batch-size", str(setting.batch_size))
    [row] = [
        row
        for row in planned["memory"]
        if (row["work"], row["checkpointing"]) == (setting.stage, setting.checkpointing)
    ]
    _say(
        f"plan: {shape.family}, {planned['parameters'] / 1e6:.0f} M, {setting}: measured {measured / 1e6:,.0f} MB, estimated "
        f"{row['process'] / 1e6:,.0f} MB (tensors {row['tensors'] / 1e6:,.0f}, weights {row['weights'] / 1e6:,.0f}, "
        f"libraries {row['libraries'] / 1e6:,.0f})"
    )
    return counted(f"plan: {shape.family}, {setting}: relative error", abs(row["process"] / measured - 1), MEMORY)


def _peak(setting: Setting, folder: Path) -> int:
    """Peak resident memory of the command, in bytes."""
    options = ["--task", "task", "--batch-size", str(setting.batch_size), "--force"]
    options += ["--checkpointing"] if setting.checkpointing else []
    if setting.stage == "train-task":
        _dmole("allocate", "--task", "task", "--force", folder=folder)
        _dmole("train-router", "--task", "task", folder=folder)
    return _dmole(setting.stage, *options, folder=folder)[1].peak


# ----------------------------------------------------------------------------------------------------- time


def _stream(name: str, folder: Path) -> list[Row]:
    """Relative errors of time and memory of all stages of a stream, each stage in one process."""
    tasks = [row["task"] for row in _plan(folder)["work"] if row["steps"]]
    everywhere = _plan(folder, *(word for task in tasks for word in ("--task", task)))["memory"]
    plans = [_plan(folder, "--measure")["time"]]
    used = {stage[0]: _dmole(*stage, folder=folder)[1] for stage in STAGES}
    plans.append(_plan(folder, "--measure", "--run", "another")["time"])
    planned = {
        key: {row["stage"]: fmean(_stage(plan, row["stage"])[key] for plan in plans) for row in plans[0]["stages"]}
        for key in ("seconds", "cpu_seconds")
    }
    found = []
    for stage, usage in used.items():
        found += _time_rows(name, stage, planned, usage.seconds, usage.cpu_seconds)
        peaks = [row["process"] for row in everywhere if row["work"] == stage and not row["checkpointing"]]
        if peaks:
            _say(f"plan: {name}, {stage}: measured {usage.peak / 1e6:,.0f} MB, estimated {max(peaks) / 1e6:,.0f} MB")
            error = abs(max(peaks) / usage.peak - 1)
            found.append(counted(f"plan: {name}, {stage}: relative error of the memory", error, MEMORY))
    totals = [sum(getattr(usage, key) for usage in used.values()) for key in ("seconds", "cpu_seconds")]
    for values in planned.values():
        values["in all"] = sum(values.values())
    return [*found, *_time_rows(name, "in all", planned, *totals)]


def _time_rows(name: str, stage: str, planned: dict[str, dict[str, float]], seconds: float, cpu: float) -> list[Row]:
    wall, own = planned["seconds"][stage], planned["cpu_seconds"][stage]
    _say(
        f"plan: {name}, {stage}: measured {seconds:.1f} s (processor {cpu:.1f} s), planned {wall:.1f} s (processor {own:.1f} s)"
    )
    return [
        counted(f"plan: {name}, {stage}: relative error of the time", abs(wall / seconds - 1), TIME),
        counted(f"plan: {name}, {stage}: relative error of the processor time", abs(own / cpu - 1), TIME),
    ]


def _stage(time: dict[str, Any], stage: str) -> dict[str, Any]:
    [row] = [row for row in time["stages"] if row["stage"] == stage]
    return row


# ------------------------------------------------------------------------------------------------- commands


def _plan(folder: Path, *options: str) -> dict[str, Any]:
    return json.loads(_dmole("plan", "--json", *options, folder=folder)[0])


def _dmole(*args: str, folder: Path) -> tuple[str, Usage]:
    """Run a command; gives its stdout, and what it used."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dmole_cli", *args]
    with (folder / "stdout").open("w+", encoding="utf-8") as stdout:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        stdout.seek(0)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return stdout.read(), Usage(seconds, usage.ru_utime + usage.ru_stime, peak)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
