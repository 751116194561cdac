"""Runs stages in several processes: `torchrun --nproc-per-node 3 tests/several.py FOLDER PORT`.

FOLDER has a copy of the same stream for every number of processes: `2` and `3`. Three processes run the stages in the last one;
then two of them, connected anew through PORT, in the first one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tiny

from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import workspace
from dmole_cli.processes import world
from dmole_cli.routing import features
from dmole_cli.settings.model import ProfileSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.evaluate import Selection, evaluate
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task

METHODS = ("d-mole", "seq-ft-merge")
FEATURES_BATCH, PREDICTIONS_BATCH = 7, 5


def write_stream(folder: Path) -> Path:
    """A small stream; some samples have no image, and some occur twice."""
    tiny.build_backbone(folder / "backbone")
    for name in (*tiny.TASKS, tiny.UNSEEN):
        tiny.write_task(folder / "tasks", name, train=24, test=7)
        for split in ("train", "test"):
            path = folder / "tasks" / name / f"{split}.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines()
            tiny.write_records(path, [tiny.record(None, f"What about {n}?", "x") for n in range(5)])
            with path.open("a", encoding="utf-8") as file:
                file.write("\n".join([*lines, *lines[:3]]) + "\n")
    listed = ", ".join(f'"tasks/{name}.toml"' for name in tiny.TASKS)
    (folder / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = [{listed}]\nunseen = ["tasks/{tiny.UNSEEN}.toml"]\n'
        '[allocate]\nbudget = "4%"\nrank = 4\nalpha = 8.0\n[router]\nepochs = 5\n',
        encoding="utf-8",
    )
    return tiny.shorten(folder, epochs=1)


def run_stages(folder: Path, *, train: bool) -> list[str]:
    """Run all stages; those that allocate and train only where asked to. Returns what the stages say."""
    os.chdir(folder)
    features.BATCH = FEATURES_BATCH
    chosen = read_settings(Path("dmole.toml"))
    chosen = chosen.updated(
        profile=ProfileSettings(portion=0.4, batch_size=1, per_sample=True),
        evaluate=chosen.evaluate.updated(batch_size=PREDICTIONS_BATCH),
    )
    work = workspace(chosen, Run(folder / "run"))
    parts = work.parts
    outcomes = [stage(task, **parts) for stage in (profile, train_router) for task in tiny.TASKS]
    for task in tiny.TASKS if train else ():
        allocate_task(task, **parts)
        for method in METHODS:
            train_task(task, method=method, **parts)
    for method in METHODS:
        for _ in range(2):  # nothing is left to do for the second one
            outcomes += evaluate(method, Selection(likelihood=True), **parts)
    return [f"{outcome.as_dict() | {'path': ''}}" for outcome in outcomes]


def connect(size: int, port: str) -> None:
    """Connect the first processes anew, without the launcher's store."""
    from accelerate import PartialState

    world().disconnect()
    PartialState._reset_state()
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": port}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    world.cache_clear()
    if world().rank < size:
        world().connect(cpu=True)


def main(folder: Path, port: str) -> None:
    """Run the stages in three processes, then in two."""
    world().connect(cpu=True)
    for size in (3, 2):
        if size == 2:
            if world().rank == 2:
                break
            connect(2, port)
        said = run_stages(folder / str(size), train=False)
        (folder / f"{size}.{world().rank}.txt").write_text("\n".join(said), encoding="utf-8")
    world().disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
