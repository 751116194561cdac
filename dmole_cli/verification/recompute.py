"""Makes artifacts again in a temporary directory, from what they were made from, and compares bytes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    CHECKPOINT,
    EVALUATION,
    EXPERT,
    FEATURES,
    GENERATIONS,
    LIKELIHOOD,
    LIKELIHOOD_CACHE,
    MEMORY,
    PROFILE,
    RESCORED,
    ROUTER,
)
from dmole_cli.artifacts.provenance import versions
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, quiet
from dmole_cli.verification.inspection import Found, Inspection, Problem
from dmole_cli.verification.links import contradiction

# Kinds that are made again on their own; memories are made with their experts, features with routers.
REMADE = (PROFILE, ALLOCATION, ROUTER, EXPERT, MEMORY, EVALUATION, LIKELIHOOD, RESCORED)
# What a stage would read instead of computing.
SHORTCUTS = (GENERATIONS, LIKELIHOOD_CACHE, CHECKPOINT)

# Makes an artifact in another run directory.
Make = Callable[[Found, Run], None]


@dataclass(frozen=True)
class Recomputed:
    """The result.

    Attributes:
        paths: the artifacts that were chosen.
        problems: those that could not be made again, or have other bytes.
    """

    paths: Sequence[Path]
    problems: Sequence[Problem]


def recompute(
    inspection: Inspection, artifacts: Sequence[Found], count: int, *, seed: int, make: Make, track: Track = quiet
) -> Recomputed:
    """Make some artifacts again.

    Args:
        inspection: of the run directory.
        artifacts: those to choose from; of those that are broken, were imported or were made from a removed task, none is chosen.
        count: number of artifacts.
        seed: of the choice.
        make: makes an artifact in a directory that holds links to everything else of the run.
        track: shows progress.
    """
    candidates = [
        found for found in artifacts if found.kind in REMADE and found.header and not inspection.is_broken(found.path)
    ]
    candidates = [found for found in candidates if _is_reproducible(inspection, found)]
    candidates.sort(key=lambda found: inspection.run.name_of(found.path))
    chosen = random.Random(seed).sample(candidates, min(count, len(candidates)))
    problems = []
    for found in track(chosen, "making artifacts again", len(chosen)):
        if wrong := _remade(inspection, found, make):
            problems.append(Problem(found.path, contradiction(found.path, wrong)))
    return Recomputed([found.path for found in chosen], problems)


def _is_reproducible(inspection: Inspection, found: Found) -> bool:
    """Whether a stage of this run would make an artifact: it was not imported, and nothing that it was made from was removed."""
    imported = found.header is not None and is_imported(found.header)
    here = all(source.is_file() for source in inspection.sources(found.path))
    return here and not imported and not is_from_bundle(inspection.run, found.path)


def _remade(inspection: Inspection, found: Found, make: Make) -> str:
    """What differs when an artifact is made again, in words."""
    name = inspection.run.name_of(found.path)
    with tempfile.TemporaryDirectory(prefix="dmole-verify-") as folder:
        run = Run(Path(folder))
        for other in inspection.found.values():
            if not _is_made_with(found, other):
                link = run.path_of(inspection.run.name_of(other.path))
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(other.path.absolute())
        try:
            make(found, run)
            remade = run.path_of(name).read_bytes()
        except (DmoleError, OSError) as error:
            return f"it cannot be made again: {error}"
    if remade == found.path.read_bytes():
        return ""
    assert found.header is not None
    now = versions("torch", "transformers")
    others = [
        f"{key} {value}, here {now[key]}" for key, value in found.header.versions.items() if now.get(key) != value
    ]
    made = f" (it was made with {', '.join(others)})" if others else " (device and number of threads may differ, too)"
    return f"made again, it has other bytes{made}"


def _is_made_with(found: Found, other: Found) -> bool:
    """Whether a file is what is made again, or would be read instead of being computed."""
    if other.path == found.path or other.kind in SHORTCUTS:
        return True
    if other.task != found.task:
        return False
    if found.kind is ROUTER:
        return other.kind is FEATURES
    pair = {found.kind, other.kind} <= {EXPERT, MEMORY}
    return pair and other.label == found.label
