"""On a GPU: the five stages by the command line, with a random InternVL of 2 billion parameters in bfloat16.

    python pipelines/bench/run.py --only gpu-stages

The task has 256 training and 256 test samples with images of three and of seven tiles; batches of 8, one epoch, answers of at
most 16 tokens. Each command is a process. How busy the GPU is comes from the driver, ten times a second; a figure is the mean
over the work alone:

- train-task: from the end of the first step to the end of the last one, by the seconds in the training log, which is written
  when the last step has ended;
- evaluate: the seconds in `costs/`, which count loading the backbone but not the start of the process, until that file was
  written.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.training_log import read_training_log
from pipelines.bench._gpu import attempted, caught, device_for, two_billion
from pipelines.bench._timing import Row, counted, failed
from pipelines.bench._utilization import Utilization
from pipelines.bench.memory import ROOT, draw_rows, write_backbone

TASK, RUN = "mine", "run"
TRAIN, TEST, BATCH = 256, 256, 8
STAGES = ("profile", "allocate", "train-router", "train-task", "evaluate")
VISION = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "initializer_range": 0.02,
}
TEXT = {
    "num_hidden_layers": 24,
    "layer_types": ["full_attention"] * 24,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "initializer_range": 0.02,
}
# Of this process; they would limit the commands to one thread.
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")

Command = Callable[[Sequence[str], Path], int]


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Seconds of each command, and how busy the GPU is; measured once."""
    device = device_for(tiny=tiny)
    if device is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        two_billion.cache_clear()  # of the benchmarks before, which would take memory of the GPU
        started = time.perf_counter()
        build(Path(folder), device.type, tiny=tiny)
        yield counted("gpu stages: writing the backbone and the images, seconds", time.perf_counter() - started)
        yield from measured(Path(folder), device.type)


def build(folder: Path, device: str, *, tiny: bool) -> None:
    """Write the backbone, a task, and the configuration that names both."""
    sizes: dict[str, Any] = {"side": 28, "text": {"vocab_size": 512}} if tiny else {"vision": VISION, "text": TEXT}
    write_backbone(folder / "backbone", **sizes, device=device, dtype="bfloat16")
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    train, test = (12, 4) if tiny else (TRAIN, TEST)
    lines = draw_rows(folder, train + test)
    (folder / "train.jsonl").write_text("".join(lines[:train]), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(lines[train:]), encoding="utf-8")
    (folder / f"{TASK}.toml").write_text(
        f'title = "{TASK}"\nformat = "llava"\nprompt = "{{question}}"\nmetric = "exact_match"\n'
        f"[recipe]\nepochs = 1\nbatch_size = {4 if tiny else BATCH}\nlearning_rate = 0.0001\n"
        f"[generation]\nmax_new_tokens = {2 if tiny else 16}\n"
        '[data]\ntrain = "train.jsonl"\ntest = "test.jsonl"\nimages = "."\n',
        encoding="utf-8",
    )
    (folder / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "{device}"\ndtype = "bfloat16"\ntasks = ["{TASK}.toml"]\nunseen = []\n',
        encoding="utf-8",
    )


def as_process(arguments: Sequence[str], folder: Path) -> int:
    """Run a command in a process of its own, as a user does; gives its exit status."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment |= {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dmole_cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=False).returncode


def measured(folder: Path, device: str, command: Command = as_process) -> Iterator[Row]:
    """Run all stages in a folder that `build` has filled.

    Args:
        folder: with the configuration.
        device: of the model.
        command: runs a command in a folder and gives its exit status.
    """
    with ExitStack() as stack:
        sampler, errors = None, dict[str, str]()
        if device == "cuda":
            with caught("sampler", errors):
                sampler = stack.enter_context(Utilization())
        for stage in STAGES:
            began = time.time()
            status = command([stage, "--run", RUN], folder)
            ended = time.time()
            if status:  # the next stages read what this one would have written
                yield failed(f"gpu stages, {stage}: seconds of the command", f"it ended with {status}")
                return
            yield counted(f"gpu stages, {stage}: seconds of the command", ended - began)
            if sampler is not None:
                yield counted(f"gpu stages, {stage}: peak memory of the GPU, GiB", sampler.peak(began, ended) / 2**30)
            yield from _work(stage, Run(folder / RUN), sampler, errors.get("sampler", ""))


def _work(stage: str, run: Run, sampler: Utilization | None, error: str) -> Iterator[Row]:
    """Figures of the work of a stage, without the start of its process."""
    if stage not in WORK:
        return
    name, (window, target) = f"gpu stages, {stage}", WORK[stage]
    if stage == "train-task":
        yield attempted(f"{name}: tokens per second", lambda: tokens_per_second(run))
    yield attempted(f"{name}: seconds of the work", lambda: _length(*window(run)))
    words = f"{name}: GPU busy during the work, percent"
    if error:
        yield failed(words, error, target, at_least=True)
    elif sampler is not None:
        yield attempted(words, lambda: sampler.busy(*window(run)), target, at_least=True)


def _length(start: float, end: float) -> float:
    return end - start


def tokens_per_second(run: Run) -> float:
    """Tokens without padding of all steps but the first, over their seconds."""
    figures = read_training_log(run.training_log(TASK))[1:]
    return sum(row.tokens for row in figures) / sum(row.seconds for row in figures)


def training_window(run: Run) -> tuple[float, float]:
    """End of the first and of the last step, in seconds since the epoch."""
    path = run.training_log(TASK)
    end = path.stat().st_mtime
    return end - sum(row.seconds for row in read_training_log(path)[1:]), end


def evaluation_window(run: Run) -> tuple[float, float]:
    """Begin and end of what `evaluate` computed, in seconds since the epoch."""
    [path] = [path for path in run.root.glob(f"costs/*/{TASK}.json") if path.parent.name.startswith("evaluate")]
    end = path.stat().st_mtime
    return end - read_cost(path)["seconds"], end


# Stage -> its work, and the least share of it in which the GPU is to be busy, in percent.
WORK = {"train-task": (training_window, 85), "evaluate": (evaluation_window, 70)}
