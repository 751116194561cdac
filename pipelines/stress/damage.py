"""Change one thing in a finished run and verify it: `python -m pipelines.stress.damage 500`.

Every change must be found by `dmole verify`; of undamaged runs with other methods, seeds and settings, none may be called broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.files import EMBEDDED
from dmole_cli.cli.workspace import open_workspace
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.settings.model import Settings
from dmole_cli.verification.verify import verify
from pipelines.stress._changes import CHANGES
from pipelines.stress._commands import load_libraries, run, write_stream
from pipelines.stress._place import Place, restore, snapshot

WHOLE = (
    ("profile",), ("allocate",), ("train-router",), ("train-task",),
    ("train-task", "--method", "ewc-lora", "--task", "light"), ("train-task", "--method", "ewc-lora", "--task", "wide"),
    ("train-task", "--method", "finetune"), ("evaluate", "--stage", "all", "--likelihood"),
    ("evaluate", "--method", "ewc-lora", "--method", "finetune", "--method", "zero-shot"),
    ("evaluate", "--routing", "oracle", "--stage", "2"), ("rescore", "anls"),
)  # fmt: skip
# Methods and options of undamaged runs; the seed is the number of the run.
CLEAN = (
    ("d-mole", ()), ("seq-ft", ()), ("o-lora", ()), ("replay", ()), ("joint", ()), ("lwf-lora", ()), ("moe-lora", ()),
    ("v4", ()), ("finetune", ()), ("d-mole", ("--dropout", "0.1")), ("d-mole", ("--training-vote", "batch")), ("v1", ()),
    ("v2", ()),
    ("v3", ()), ("v4-routed", ()), ("seq-ft-merge", ()), ("ewc-lora", ("--set", "weight=3")), ("d-mole", ("--micro-batch", "2")),
    ("d-mole", ("--no-transfer",)), ("d-mole", ("--epochs", "1", "--learning-rate", "0.001")),
)  # fmt: skip


def prepare(folder: Path) -> Path:
    """A stream with a copy of the embedded backbone."""
    write_stream(folder)
    shutil.copytree(EMBEDDED, folder / "backbone")
    configuration = folder / "dmole.toml"
    configuration.write_text(f'backbone = "backbone"\n{configuration.read_text(encoding="utf-8")}', encoding="utf-8")
    return folder


def found_by_verify(folder: Path) -> list[str]:
    """What `dmole verify`, typed in a folder, calls broken."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {"run_directory": Path("dmole-run"), "config": None}
            work = open_workspace(values, {}, model=Settings, typed={})
            verified = verify(**work.parts, differing=work.changed)
        return [problem.error.message for problem in verified.inspection.problems]
    except DmoleError as error:  # the configuration, the record or the backbone cannot be read
        return [error.message]
    finally:
        os.chdir(before)


def damage(folder: Path, count: int, *, seed: int) -> tuple[Counter[str], list[str]]:
    """Make single changes, verify after each, and undo it.

    Returns:
        How often each kind has changed a file, and the changes that were not found.
    """
    before, missed, kinds = snapshot(folder), list[str](), Counter[str]()
    for number in range(count):
        place = Place(folder, Run(folder / "dmole-run"), Random(f"{seed} {number}"))
        change = CHANGES[number % len(CHANGES)]
        what = change(place)
        problems = found_by_verify(folder)
        changed = list(restore(folder, before))
        if not changed:  # such as a reordering of equal rows
            continue
        kinds[change.__name__] += 1
        if not problems:
            missed.append(f"{number}: {change.__name__}: {what}")
    return kinds, missed


def clean_run(folder: Path, number: int) -> list[str]:
    """Make a run and verify it; returns false alarms."""
    method, options = CLEAN[number % len(CLEAN)]
    work = prepare(folder)
    if method == "moe-lora":  # whose gates need more than half of the sites' parameters at rank 1
        text = (work / "dmole.toml").read_text(encoding="utf-8")
        (work / "dmole.toml").write_text(text.replace("sites:50%", "params:30k"), encoding="utf-8")
    for stage in ("profile", "train-router"):
        run((stage,), work)
    if load_method(method).uses_allocation:
        run(("allocate", "--method", method), work)
    tasks = ("wide",) if method == "joint" else ("light", "wide")
    for task in tasks:
        run(("train-task", "--task", task, "--method", method, "--seed", str(number), *options), work)
    run(("evaluate", "--stage", "all", "--method", method), work)
    run(("rescore", "anls"), work)
    return [f"{number} ({method} {' '.join(options)}): {problem}" for problem in found_by_verify(work)]


def main() -> None:
    """Print a summary as JSON; exit code 1 if a change was not found, or an undamaged run is called broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changes", type=int)
    parser.add_argument("--clean", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder:
        work = prepare(Path(folder, "work"))
        for command in WHOLE:
            run(command, work)
        alarms = found_by_verify(work)
        begun = time.monotonic()
        kinds, missed = damage(work, arguments.changes, seed=arguments.seed)
        seconds = time.monotonic() - begun
        for number in range(arguments.clean):
            alarms += clean_run(Path(folder, f"clean-{number}"), number)
    made = kinds.total()
    summary = {"tried": arguments.changes, "changes": made, "found": made - len(missed), "not_found": missed}
    summary |= {
        "clean_runs": arguments.clean + 1,
        "false_alarms": alarms,
        "seconds": round(seconds),
        "kinds": dict(kinds),
    }
    print(json.dumps(summary, indent=2))
    raise SystemExit(bool(missed or alarms))


if __name__ == "__main__":
    main()
