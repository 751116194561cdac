"""Runs stages in one process and in several: `python tests/several.py FOLDER 1 2 3`.

The stages run in the folder `1` first, then in copies of its stream, a folder for each number of processes. The processes are
forked from this one, with what a launcher tells them. `torchrun --nproc-per-node 4 tests/several.py FOLDER` adds such a folder by
a real launcher.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import accelerate
import pyarrow.dataset
import pyarrow.parquet
import tiny
import torch
import transformers

from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.steps import run_step
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.planning.steps import update_of
from dmole_cli.processes import world
from dmole_cli.routing import features
from dmole_cli.settings.model import ProfileSettings, Settings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.evaluate import Selection, evaluate
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task
from dmole_cli.verification.verify import inspect

# Imported once, before the processes are forked; transformers imports its names when they are asked for.
USED = (
    torch,
    pyarrow.dataset,
    pyarrow.parquet,
    accelerate.PartialState,
    transformers.AutoModelForImageTextToText,
    transformers.AutoProcessor,
    transformers.LlavaForConditionalGeneration,
    transformers.LlavaProcessor,
    transformers.SiglipVisionModel,
    transformers.LlamaModel,
    transformers.CLIPImageProcessorPil,
)
METHODS = ("d-mole", "seq-ft-merge")
FEATURES_BATCH, PREDICTIONS_BATCH, MICRO_BATCH = 6, 4, "3"


def write_stream(folder: Path) -> Path:
    """A small stream; some samples have no image, and some occur twice."""
    tiny.build_backbone(folder / "backbone")
    for name in (*tiny.TASKS, tiny.UNSEEN):
        tiny.write_task(folder / "tasks", name, train=20, test=4)
        for split in ("train", "test"):
            path = folder / "tasks" / name / f"{split}.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines()
            tiny.write_records(path, [tiny.record(None, f"What about {n}?", "x") for n in range(3)])
            with path.open("a", encoding="utf-8") as file:
                file.write("\n".join([*lines, *lines[:2]]) + "\n")
    listed = ", ".join(f'"tasks/{name}.toml"' for name in tiny.TASKS)
    (folder / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = [{listed}]\nunseen = ["tasks/{tiny.UNSEEN}.toml"]\n'
        '[allocate]\nbudget = "4%"\nrank = 4\nalpha = 8.0\n[router]\nepochs = 5\n',
        encoding="utf-8",
    )
    return tiny.shorten(folder, epochs=1)


def run_stages(folder: Path) -> list[str]:
    """Run all stages; returns what they say."""
    os.chdir(folder)
    features.BATCH = FEATURES_BATCH
    chosen = read_settings(Path("dmole.toml"))
    chosen = chosen.updated(
        profile=ProfileSettings(portion=0.25, batch_size=1, per_sample=True),
        evaluate=chosen.evaluate.updated(batch_size=PREDICTIONS_BATCH),
        train=chosen.train.updated(micro_batch=MICRO_BATCH, dropout=0.1),
    )
    work = workspace(chosen, Run(folder / "run"))
    parts = work.parts
    outcomes = [stage(task, **parts) for stage in (profile, train_router) for task in tiny.TASKS]
    for task in tiny.TASKS:
        # As on the command line, where the first process does what is not shared.
        outcomes += [world().from_first(partial(allocate_task, task, **parts))]
        outcomes += [train_task(task, method=method, **parts) for method in METHODS]
    for method in METHODS:
        for _ in range(2):  # nothing is left to do for the second one
            outcomes += evaluate(method, Selection(likelihood=True), **parts)
    outcomes += update(work.settings.updated(router=chosen.router.updated(epochs=4)), work)
    return [f"{outcome.as_dict() | {'path': '', 'reads': ''}}" for outcome in outcomes]


def update(settings: Settings, work: Workspace) -> list[Outcome]:
    """Bring the stream up to date with other settings, as `dmole update` does, and after a file was deleted."""
    work = replace(work, settings=settings)
    if world().first:
        work.run.allocation(tiny.TASKS[0]).unlink()
    found = world().from_first(lambda: update_of(inspect(**work.parts, cached=True), METHODS))
    assert {step.state for step in found.steps} == {"stale", "missing", "may follow", "follows"}
    return [outcome for step in found.steps for outcome in run_step(work, step)]


def one_of_several(folder: Path) -> None:
    """Run the stages as one of the processes that the environment describes; what they say is in `<processes>.<rank>.txt`."""
    processes = world()
    processes.connect(cpu=True)
    own = folder / str(processes.size)
    if processes.first and processes.size > 1:
        shutil.copytree(folder / "1", own, ignore=shutil.ignore_patterns("run"))
    processes.wait()
    said = run_stages(own)
    (folder / f"{processes.size}.{processes.rank}.txt").write_text("\n".join(said), encoding="utf-8")
    processes.disconnect()


def fork(folder: Path, size: int) -> int:
    """Run the stages in so many processes; returns the number of those that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            count, number = str(size), str(rank)
            ranks = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "RANK": number, "LOCAL_RANK": number}
            os.environ |= ranks | address
            try:
                one_of_several(folder)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def main(folder: Path, sizes: list[int]) -> None:
    """Run the stages in one process after the other number of them."""
    if "WORLD_SIZE" in os.environ:
        one_of_several(folder)
        return
    write_stream(folder / "1")
    for size in sizes:
        if failed := fork(folder, size):
            raise SystemExit(f"{failed} of {size} processes failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), [int(size) for size in sys.argv[2:]])
