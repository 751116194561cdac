"""Start commands at the same time in one directory: `python -m pipelines.stress.starts 100`.

For each stage that many processes of it; then processes of all stages at once, of which those without their inputs fail; then two
processes with the same number, each in a process namespace of its own (needs `unshare` and the right to use it). Afterwards, all
files must have the bytes of a single start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.stress._commands import STAGES, after, contents, finish, left_over, load_libraries, reference, run, start

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


def in_namespaces(stage: str, work: Path) -> str:
    """Two processes of a stage with the same number; returns what went wrong, or why it was not tried."""
    wrapper = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        allowed = subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        return "not tried: unshare is not permitted here"
    program = [*wrapper, sys.executable, "-m", "dmole_cli", *STAGES[stage]]
    processes = [subprocess.Popen(program, cwd=work, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    return "".join(error[-300:] for process, error in zip(processes, errors, strict=True) if process.returncode)


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
            if contents(work) != after(before, stage) or left_over(work):
                problems.append(f"{arguments.starts} starts of {stage} have other bytes than one, or left files")
            shutil.rmtree(work)
        work = shutil.copytree(before["profile"], Path(folder, "work-mixed"))
        mixed = [args for name, args in STAGES.items() if name not in ("export", "import")]
        problems += together([mixed[number % len(mixed)] for number in range(arguments.starts)], work, counts)
        for args in STAGES.values():
            run(args, work)
        if contents(work) != contents(before["done"]) or left_over(work):
            problems.append("mixed starts, followed by a whole run, have other bytes than a whole run, or left files")
        shutil.rmtree(work)
        for stage in ("profile", "train-router", "evaluate"):
            work = shutil.copytree(before[stage], Path(folder, "work-same"))
            said = in_namespaces(stage, work)
            summary[f"equal process numbers: {stage}"] = said or "well"
            if said and not said.startswith("not tried"):
                problems.append(f"equal process numbers: {stage}: {said}")
            elif not said and (contents(work) != after(before, stage) or left_over(work)):
                problems.append(f"equal process numbers: {stage} has other bytes, or left files")
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
