"""Kill evaluations at random moments between and inside of batches: `python -m pipelines.stress.batches 30`.

The same command is started again until it ends well; its files must then have the bytes of an undisturbed run, and each kill may
cost at most one batch that is computed again. Features and predictions are both counted.
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
from typing import Any

from pipelines.stress._commands import contents, differences, finish, load_libraries, reference, start

EVALUATE = ("evaluate", "--stage", "all", "--routing", "always-all", "--batch-size", "1")
FURTHER = 6  # batches that a process computes at most before it is killed
LONGEST = 0.05  # seconds between the end of a batch and the kill


def counting(path: Path) -> Callable[[], None]:
    """In a new process: add a byte to a file for every batch that is computed, before it is stored."""

    def prepare() -> None:
        from dmole_cli.artifacts.partial import PartialResults

        add = PartialResults.add

        def counted(self: PartialResults, number: int, result: Any) -> None:
            with path.open("ab") as file:
                file.write(b".")
            add(self, number, result)

        PartialResults.add = counted  # type: ignore[method-assign]

    return prepare


def computed(path: Path) -> int:
    """Number of batches that were computed."""
    return path.stat().st_size if path.exists() else 0


def kill(work: Path, batches: Path, choose: random.Random) -> int:
    """Start the command and kill it after a random number of batches; returns its exit code, negative for a signal."""
    process = start(EVALUATE, work, prepare=counting(batches))
    wanted, sleep = computed(batches) + choose.randrange(FURTHER), choose.uniform(0, LONGEST)
    while computed(batches) < wanted:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.0005)
    time.sleep(sleep)
    os.kill(process, signal.SIGKILL)
    return finish(process, work).code


def main() -> None:
    """Print a summary as JSON; exit code 1 if bytes differ or more than a batch was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    load_libraries()
    choose, problems, again, kills, ended = random.Random(arguments.seed), list[str](), list[int](), 0, 0
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder:
        before, _ = reference(Path(folder))
        whole = shutil.copytree(before["evaluate"], Path(folder, "whole"))
        if finish(start(EVALUATE, whole, prepare=counting(Path(folder, "undisturbed"))), whole).code != 0:
            raise SystemExit("the undisturbed evaluation failed")
        expected, needed = contents(whole), computed(Path(folder, "undisturbed"))
        while kills < arguments.kills:
            work, batches, killed = (
                shutil.copytree(before["evaluate"], Path(folder, "killed")),
                Path(folder, "batches"),
                0,
            )
            while (code := kill(work, batches, choose)) == -signal.SIGKILL:
                killed += 1
            kills, ended = kills + killed, ended + 1
            again.append(computed(batches) - needed)
            problems += [f"evaluation {ended}, ended with {code}: {what}" for what in differences(work, expected)]
            if again[-1] > killed:
                problems.append(f"evaluation {ended}: {again[-1]} batches were computed again after {killed} kills")
            shutil.rmtree(work)
            batches.unlink()
    summary = {"kills": kills, "evaluations": ended, "batches": needed, "computed_again": sum(again)}
    print(json.dumps({**summary, "problems": problems}, indent=2))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
