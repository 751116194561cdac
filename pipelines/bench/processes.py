"""Samples per second of two processes, of one thread each, over those of one: routing features, predictions, and training.

In each round the first process works alone, while the other one waits; then both work. The samples are those of one task for the
embedded backbone, fewer than those from which a process starts another one to prepare batches. Both stages include what every
process does for itself, such as counting the tokens of all samples. Ratios of processor time, of one process over the busier one
of two, do not depend on other load; only time on free cores has a target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.catalog import PACKAGE
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.processes import World, work_as, world
from dmole_cli.routing import features
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import EvaluateSettings, Settings, TrainSettings
from dmole_cli.stages.evaluate import evaluate
from dmole_cli.stages.train_task import train_task
from pipelines.bench._timing import Row, Times, timed

TASK = "easyvqa"
SAMPLES, BATCH = 240, 12  # twenty batches are dealt out as evenly as the many of a long run
STEP = 48  # samples of a training step
NAMES = {"features": 1.8, "predictions": 1.8, "training": 1.7}  # and the ratio to reach


@contextmanager
def alone() -> Iterator[None]:
    """Inside of it, this process is the only one."""
    together = world()
    work_as(World())
    try:
        yield
    finally:
        work_as(together)


def open_run(card: Path, root: Path, model: LazyModel | None) -> Workspace:
    """An empty run directory; with a model that is already loaded."""
    settings = Settings(
        tasks=(str(card),),
        unseen=(),
        device="cpu",
        evaluate=EvaluateSettings(batch_size=BATCH),
        train=TrainSettings(epochs=1, batch_size=STEP, micro_batch=str(BATCH)),
    )
    work = workspace(settings, Run(root))
    return work if model is None else replace(work, model=model)


def stages(work: Workspace) -> dict[str, Callable[[], object]]:
    """What is measured."""
    [task] = work.settings.tasks
    backbone = work.model.load()
    made = partial(routing_features, task, "test", data=work.data, backbone=backbone, run=work.run)
    return {
        "features": made,
        "predictions": partial(evaluate, "zero-shot", **work.parts),
        "training": partial(train_task, task, method="finetune", **work.parts),
    }


def measure(card: Path, rounds: int) -> Times:
    """Seconds of each stage, in one process and in all of them."""
    world().connect(cpu=True)
    features.BATCH = BATCH
    model = open_run(card, card.parent, None).model
    times: Times = {}
    for number in range(-1, rounds):  # the first round is not measured
        for who in ("one", "two"):
            for name in NAMES:
                with tempfile.TemporaryDirectory() as folder:
                    root = Path(world().share(folder))
                    world().wait()
                    seconds = (0.0, 0.0)
                    if who == "two":
                        seconds = _timed(stages(open_run(card, root, model))[name])
                    elif world().first:
                        with alone():
                            seconds = _timed(stages(open_run(card, root, model))[name])
                    wall, processor = map(max, zip(*world().collect(seconds), strict=True))
                if number >= 0:
                    times.setdefault(f"{name} {who}", []).append(wall)
                    times.setdefault(f"{name} {who}, processor", []).append(processor)
    world().disconnect()
    return times


def _timed(stage: Callable[[], object]) -> tuple[float, float]:
    started, computing = time.perf_counter(), time.process_time()
    stage()
    return time.perf_counter() - started, time.process_time() - computing


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """The speed-ups."""
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder, f"{TASK}-small.toml")
        lines = (PACKAGE / "data" / "cards" / f"{TASK}.toml").read_text(encoding="utf-8").splitlines()
        count = 4 if tiny else SAMPLES
        card.write_text(
            "\n".join(
                f"{line.partition(' ')[0]} = {count}" if line.startswith(("test = ", "train = ")) else line
                for line in lines
            ),
            encoding="utf-8",
        )
        program = [
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            __name__,
            str(card),
            str(rounds or (1 if tiny else 7)),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *program], check=True, stdout=subprocess.PIPE, text=True
        )
    times = json.loads(done.stdout)
    # The best rounds: others' load only ever adds time.
    best = {name: [min(seconds)] for name, seconds in times.items()}
    rows = []
    for name, target in NAMES.items():
        words = f"{name}: samples per second of two processes, over one"
        rows.append(timed(words, best, f"{name} two", f"{name} one", target, at_least=True))
        words = f"{name}: processor time of one process, over the busier of two"
        rows.append(timed(words, best, f"{name} two, processor", f"{name} one, processor", at_least=True))
    return rows


if __name__ == "__main__":
    found = measure(Path(sys.argv[1]), int(sys.argv[2]))
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(found))
