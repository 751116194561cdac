"""Start commands at the same time in one directory: `python -m pipelines.stress.starts 100`.

For each stage that many processes of it; then processes of all stages at once, of which those without their inputs fail; then two
processes with the same number, each in a process namespace of its own (needs `unshare` and the right to use it). Afterwards, all
files must have the bytes of a single start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

AT_ONCE = 10  # processes that exist at a time, for the sake of memory


def together(commands: Sequence[Sequence[str]], work: Path, counts: Counter[str]) -> list[str]:
    """Run commands at once, in groups; returns messages of those that ended neither well nor with one error."""
    strange = []
    for first in range(0, len(commands), AT_ONCE):
        group = [
            (args, work.with_name(f"log-{number}")) for number, args in enumerate(commands[first : first + AT_ONCE])
        ]
        processes = [(start(args, work, log=log), args, log) for args, log in group]
        for process, args, log in processes:
            ended = finish(process, work, log=log)
            counts[f"{args[0]}: {'well' if ended.code == 0 else 'one error' if ended.one_error else 'strange'}"] += 1
            if ended.code != 0 and not ended.one_error:
                strange.append(f"{args[0]} ended with {ended.code}: {ended.err[-300:]}")
    return strange


def in_namespaces(stage: str, work: Path) -> list[str] | None:
    """Two processes of a stage with the same number; returns messages of those that failed, None if it is not permitted."""
    wrapper = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        allowed = subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        return None
    program = [*wrapper, sys.executable, "-m", "dmole_cli", *STAGES[stage]]
    # One thread, as the processes of `start`: the order of additions, and so the bytes, may depend on it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            program, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    ends = zip(processes, errors, strict=True)
    return [f"ended with {process.returncode}: {error[-300:]}" for process, error in ends if process.returncode]


def main() -> None:
    """Print a summary as JSON; exit code 1 if anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("starts", type=int)
    arguments = parser.parse_args()
    load_libraries()
    counts, problems, summary = Counter[str](), list[str](), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder:
        before, _ = reference(Path(folder))
        for stage, args in STAGES.items():
            work = shutil.copytree(before[stage], Path(folder, "work-one"))
            problems += together([args] * arguments.starts, work, counts)
            expected = after(before, stage)
            problems += [f"{arguments.starts} starts of {stage}: {what}" for what in differences(work, expected)]
            shutil.rmtree(work)
        work = shutil.copytree(before["profile"], Path(folder, "work-mixed"))
        mixed = [args for name, args in STAGES.items() if name not in ("export", "import")]
        problems += together([mixed[number % len(mixed)] for number in range(arguments.starts)], work, counts)
        for args in STAGES.values():
            run(args, work)
        expected = contents(before["done"])
        problems += [f"mixed starts, followed by a whole run: {what}" for what in differences(work, expected)]
        shutil.rmtree(work)
        for stage in ("profile", "train-router", "evaluate"):
            work = shutil.copytree(before[stage], Path(folder, "work-same"))
            name, found = f"equal process numbers: {stage}", in_namespaces(stage, work)
            if found is None:
                summary[name] = "not tried: unshare is not permitted here"
            else:
                found += differences(work, after(before, stage))
                summary[name] = "; ".join(found) or "well"
                problems += [f"{name}: {what}" for what in found]
            shutil.rmtree(work)
    print(
        json.dumps(
            {"starts": arguments.starts, "problems": problems, **summary, "ends": dict(sorted(counts.items()))},
            indent=2,
        )
    )
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
