"""What the results of a comparison were made with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from _plan import FOLDER, Experiment

from dmole_cli.artifacts.provenance import versions

PACKAGES = ("torch", "transformers", "numpy", "pillow", "safetensors", "pyarrow")


def provenance(experiments: Sequence[Experiment], name: str = "compare", config: str = "") -> dict[str, Any]:
    """The commands that reproduce the results, the commit and the versions; no times, and no paths of this machine.

    Args:
        experiments: of the folder.
        name: of the folder.
        config: the configuration, if it is not that of the first stream.
    """
    program = f"python pipelines/compare/run.py runs/{name}" + (f" --config {config}" if config else "")
    seeds: dict[str, set[int]] = {}
    for experiment in experiments:
        seeds.setdefault(experiment.group, set()).add(experiment.seed)
    groups_by_seeds: dict[str, list[str]] = {}
    for group, numbers in seeds.items():
        groups_by_seeds.setdefault(" ".join(map(str, sorted(numbers))), []).append(group)
    commands = [f"{program} --only {' '.join(groups)} --seeds {numbers}" for numbers, groups in groups_by_seeds.items()]
    return {
        "commands": commands,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": versions(*PACKAGES),
    }


def _commit() -> str | None:
    """The commit of the code, with a + if it has uncommitted changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
