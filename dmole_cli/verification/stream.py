"""The state of a stream: which artifacts exist, are missing, stale or damaged, and how long they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.errors import MissingArtifact, StaleArtifact
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION, Kind
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.verification.chains import LINKS, Chain, chains_of, in_order
from dmole_cli.verification.inspection import Inspection, Problem

# Link -> the stage whose seconds it took; allocations take none.
STAGES = {
    "profile": "profile",
    "router": "train-router",
    "expert": "train-task-{method}",
    "evaluations": "evaluate-{method}",
}


@dataclass(frozen=True)
class Link:
    """The files of one link of a chain.

    Attributes:
        state: `done`, `missing`, `partial`, `stale`, `damaged`, or empty where the method has no such link.
        present: number of files that exist, of those that a complete run has.
        wanted: number of files that a complete run has.
        seconds: how long they took; None where it is unknown.
        why: what is wrong, in words.
    """

    state: str
    present: int
    wanted: int
    seconds: float | None
    why: str = ""


@dataclass(frozen=True)
class State:
    """The state of one chain."""

    method: str
    task: str
    links: Mapping[str, Link]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        links = {name: {**vars(link)} for name, link in self.links.items() if link.state}
        return {"method": self.method, "task": self.task, **links}


def states_of(inspection: Inspection) -> tuple[list[State], list[Problem], str]:
    """The state of every chain, the first broken link of each, and the stage that comes next, as typed.

    D-MoLE's chains are there even where it has no artifacts.
    """
    chains = chains_of(inspection, always=() if inspection.found else (D_MOLE,))
    states = [_state(inspection, chain) for chain in chains]
    first = [chain.first_problem(inspection) for chain in chains]
    problems = in_order(inspection, (problem for problem in first if problem is not None))
    return states, problems, _next(inspection, chains)


def _state(inspection: Inspection, chain: Chain) -> State:
    return State(chain.method, chain.task, {link: _link(inspection, chain, link) for link in LINKS})


def _link(inspection: Inspection, chain: Chain, link: str) -> Link:
    wanted, present = chain.wanted[link], chain.links[link]
    if not wanted and not present:
        return Link("", 0, 0, None)
    made = [path for path in wanted if path in present]
    problems = [p for p in inspection.problems if p.path in present and not isinstance(p.error, MissingArtifact)]
    state = "done" if len(made) == len(wanted) else "partial" if made else "missing"
    if problems:
        state = "stale" if all(isinstance(problem.error, StaleArtifact) for problem in problems) else "damaged"
    seconds = _seconds(inspection.run, link, chain) if present else None
    why = problems[0].error.message if problems else ""
    return Link(state, len(made), len(wanted), seconds, why)


def _seconds(run: Run, link: str, chain: Chain) -> float | None:
    path = run.cost(STAGES.get(link, "allocate").format(method=chain.method), chain.task)
    try:
        return float(read_cost(path)["seconds"]) if path.is_file() else None
    except DmoleError:  # only the report of costs reads it
        return None


def _next(inspection: Inspection, chains: Sequence[Chain]) -> str:
    """The stage that makes the first missing files, of all methods stage by stage; empty where nothing is missing."""
    for link in LINKS:
        for chain in chains:
            missing: list[Path] = [path for name, path in chain.missing if name == link]
            found = inspection.run.identify(missing[0]) if missing else None
            if found is not None:
                kind: Kind = found[0]
                method = f" --method {chain.method}" if "method" in found[1] and chain.method != D_MOLE else ""
                return f"dmole {kind.command}{method}{' --stage all' if kind is EVALUATION else ''}"
    return ""
