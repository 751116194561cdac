"""Kill trainings at random moments: `python -m pipelines.stress.training 30`.

The same command is started again until it ends well; its expert must then have the bytes of an undisturbed run, and a kill may
cost no more work than was done since the last checkpoint was due. Also measured: the size of a checkpoint, and what saving costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from dmole_cli.settings.model import TrainSettings
from pipelines.stress._commands import TASKS, contents, differences, finish, load_libraries, reference, start

EVERY = 0.5  # seconds between two checkpoints
TRAIN = ("train-task", "--task", TASKS[0], "--method", "finetune", "--epochs", "60", "--dropout", "0.1", "--force")
SAVING = ("--save-every", str(EVERY))
LONGEST = 4.0  # seconds after which a process is killed


def noting(path: Path) -> Callable[[], None]:
    """In a new process: write a line for every step and every checkpoint: what, when it ended, seconds that it took, bytes."""

    def prepare() -> None:
        from dmole_cli.training.checkpoints import Checkpoints
        from dmole_cli.training.loop import Trainer

        def note(kind: type, name: str, letter: str) -> None:
            real = getattr(kind, name)

            def noted(self: Any, *args: Any) -> None:
                started = time.monotonic()
                real(self, *args)
                ended = time.monotonic()
                size = self.path.stat().st_size if letter == "C" else 0
                with path.open("a", encoding="ascii") as file:
                    file.write(f"{letter} {ended} {ended - started} {size}\n")

            setattr(kind, name, noted)

        note(Checkpoints, "save", "C")
        note(Trainer, "_train_step", "S")

    return prepare


def notes(path: Path, letter: str) -> list[list[float]]:
    """When each step (S) or checkpoint (C) ended, the seconds that it took, and bytes."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [[float(word) for word in line.split()[1:]] for line in lines if line.startswith(letter)]


def kill(work: Path, path: Path, choose: random.Random) -> tuple[int, float]:
    """Start the command and kill it after a random time; returns its exit code, and the seconds of steps that were lost."""
    before = len(notes(path, "S"))
    process = start((*TRAIN, *SAVING), work, prepare=noting(path))
    while len(notes(path, "S")) == before and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)
    time.sleep(choose.uniform(0, LONGEST))
    os.kill(process, signal.SIGKILL)
    code = finish(process, work).code
    saved = max((ended for ended, *_ in notes(path, "C")), default=0.0)
    return code, sum(took for ended, took, _ in notes(path, "S")[before:] if ended > saved)


def main() -> None:
    """Print a summary as JSON; exit code 1 if bytes differ or more work was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    load_libraries()
    choose, problems, lost, trained = random.Random(arguments.seed), list[str](), list[float](), 0
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder:
        path = Path(folder, "notes")
        before, _ = reference(Path(folder))
        whole = shutil.copytree(before["train-task"], Path(folder, "whole"))
        if finish(start(TRAIN, whole, prepare=noting(path)), whole).code != 0:
            raise SystemExit("the undisturbed training failed")
        expected, steps = contents(whole), len(notes(path, "S"))
        [expert] = whole.rglob(f"experts/finetune/{TASKS[0]}.safetensors")
        expert_bytes = expert.stat().st_size
        while len(lost) < arguments.kills:
            work = shutil.copytree(before["train-task"], Path(folder, "killed"))
            while True:
                code, seconds = kill(work, path, choose)
                if code != -signal.SIGKILL:
                    break
                lost.append(seconds)
            trained += 1
            problems += [f"training {trained}, ended with {code}: {what}" for what in differences(work, expected)]
            shutil.rmtree(work)
        longest = max(took for _, took, _ in notes(path, "S"))
        saves = notes(path, "C")
        problems += [f"{seconds:.2f} s of steps were lost" for seconds in lost if seconds > EVERY + longest]
        default = TrainSettings().save_every
        found = {
            "kills": len(lost),
            "trainings": trained,
            "steps_of_each": steps,
            "saved_every_s": EVERY,
            "lost_s": {"mean": round(mean(lost), 3), "max": round(max(lost), 3)},
            "longest_step_s": round(longest, 3),
            "checkpoint_bytes_over_expert_bytes": round(max(size for *_, size in saves) / expert_bytes, 3),
            "saving_s": round(mean(took for _, took, _ in saves), 4),
            "saving_share_at_the_default_interval": round(mean(took for _, took, _ in saves) / default, 5),
            "problems": problems,
        }
    print(json.dumps(found, indent=2))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
