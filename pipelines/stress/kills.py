"""Kill commands at random moments and run them again: `python -m pipelines.stress.kills 300`.

Every second kill comes as soon as an artifact has appeared, which is between the artifact and the file of its costs. After a
kill, every file must be complete; after the same command again, all files must have the bytes of an undisturbed run.
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
from collections import Counter
from pathlib import Path

from pipelines.stress._commands import (
    STAGES,
    after,
    contents,
    differences,
    finish,
    load_libraries,
    reference,
    run,
    start,
)


def kill(stage: str, work: Path, *, moment: float | None, known: set[str]) -> str:
    """Run a stage and kill it after so many seconds, or as soon as it has written a file; returns what happened."""
    process = start(STAGES[stage], work)
    deadline = time.monotonic() + (60 if moment is None else moment)
    while time.monotonic() < deadline:
        if moment is None and new_files(work) - known:
            break
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    ended = finish(process, work)
    return "killed" if ended.code == -signal.SIGKILL else f"ended with {ended.code}"


def new_files(work: Path) -> set[str]:
    """Complete files of the run directory, except costs and caches."""
    found = {str(path) for path in work.rglob("*.*") if not path.name.startswith(".")}
    return {name for name in found if "/costs/" not in name and "/cache/" not in name}


def main() -> None:
    """Print a summary as JSON; exit code 1 if anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    load_libraries()
    choose, counts, problems = random.Random(arguments.seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder:
        before, seconds = reference(Path(folder))
        for number in range(arguments.kills):
            stage = list(STAGES)[number % len(STAGES)]
            work = shutil.copytree(before[stage], Path(folder, "killed"))
            expected = after(before, stage)
            moment = None if number % 2 else choose.uniform(0, seconds[stage])
            counts[f"{stage}: {kill(stage, work, moment=moment, known=new_files(work))}"] += 1
            for name, content in contents(work).items():
                if ".tmp" not in name and content != expected.get(name):
                    problems.append(f"kill {number}: {stage} left {name} incomplete")
            run(STAGES[stage], work)
            problems += [f"kill {number}: {stage}, after the rerun: {what}" for what in differences(work, expected)]
            shutil.rmtree(work)
    print(json.dumps({"kills": arguments.kills, "problems": problems, "ends": dict(sorted(counts.items()))}, indent=2))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
