"""Verifies a run directory, or one artifact and what it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.kinds import KINDS
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, quiet
from dmole_cli.settings.model import Settings
from dmole_cli.verification.chains import LINKS, Chain, chains_of, in_order
from dmole_cli.verification.content import check_content
from dmole_cli.verification.directory import check_files, files_of_run
from dmole_cli.verification.gaps import check_gaps
from dmole_cli.verification.inspection import Found, Inspection, Problem
from dmole_cli.verification.links import check_links, upstream
from dmole_cli.verification.record import check_record
from dmole_cli.verification.scoring import SCORED, Scoring
from dmole_cli.verification.settings import check_settings


@dataclass(frozen=True)
class Verified:
    """The result.

    Attributes:
        inspection: all broken links.
        chains: what was verified, by method and task; a single artifact is a chain of its own.
        artifacts: what was verified.
    """

    inspection: Inspection
    chains: Sequence[Chain]
    artifacts: Sequence[Found]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.inspection.problems

    def as_rows(self) -> list[dict[str, Any]]:
        """A row per chain, as JSON values: method, task, state in words, and the number of files of each link."""
        rows = []
        for chain in self.chains:
            problem = chain.first_problem(self.inspection)
            missing = chain.missing
            state = "verified"
            if problem is not None:
                state = f"broken at {problem.path}"
            elif missing:
                begun = "verified so far; " if any(chain.links.values()) else ""
                state = f"{begun}not made yet: {_listed(missing)}"
            links = {link: len(chain.links[link]) for link in LINKS if chain.wanted[link] or chain.links[link]}
            rows.append({"method": chain.method, "task": chain.task, "state": state, "links": links})
        return rows

    @property
    def first(self) -> list[Problem]:
        """The first broken link of every chain, then those that belong to no chain; each once."""
        found = [chain.first_problem(self.inspection) for chain in self.chains]
        in_chains = {path for chain in self.chains for path in _paths(self.inspection, chain)}
        rest = [problem for problem in self.inspection.problems if problem.path not in in_chains]
        return in_order(self.inspection, [problem for problem in found if problem is not None] + rest)


def _listed(missing: Sequence[tuple[str, Path]]) -> str:
    """Links with missing files; of evaluations their number."""
    counts = Counter(link for link, _ in missing)
    return ", ".join(f"{count} {link}" if link == LINKS[-1] else link for link, count in counts.items())


def _paths(inspection: Inspection, chain: Chain) -> list[Path]:
    return upstream(inspection, [path for link in LINKS for path in [*chain.links[link], *chain.wanted[link]]])


def inspect(
    settings: Settings, data: Tasks, model: LazyModel, run: Run, *, cached: bool = False, track: Track = quiet
) -> Inspection:
    """Read the headers of a run directory, and compare them with each other, the data, the backbone and the settings.

    Args:
        settings: of the run.
        data: its tasks.
        model: its backbone.
        run: the run directory.
        cached: use cached digests of images and rows, as the stages do; otherwise they are computed from the files.
        track: shows progress.

    Raises:
        DmoleError: the backbone is not there.
    """
    inspection = Inspection(run, settings, data if cached else data.uncached(), model.fingerprint)
    files = files_of_run(run)
    for path in track(files, "reading artifacts", len(files)):
        inspection.read([path])
    found = list(inspection.found.values())
    _each(inspection, found, "comparing inputs", partial(check_links, inspection), track)
    _each(inspection, found, "comparing settings", partial(check_settings, inspection), track)
    return inspection


def verify(
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    *,
    only: Path | None = None,
    scoring: bool = True,
    differing: Mapping[str, str] | None = None,
    track: Track = quiet,
) -> Verified:
    """Verify a run directory.

    Args:
        settings: of the run.
        data: its tasks.
        model: its backbone.
        run: the run directory.
        only: verify this artifact alone, and what it was made from.
        scoring: score evaluations again, and route their samples again.
        differing: settings that the configuration states otherwise than `run.toml`, in words.
        track: shows progress.

    Raises:
        DmoleError: the backbone is not there, or `only` is no artifact of the run directory.
    """
    inspection = inspect(settings, data, model, run, track=track)
    if only is None:
        check_record(inspection, differing or {})
        check_files(inspection, files_of_run(run))
        check_gaps(inspection)
        chosen = sorted(inspection.found.values(), key=lambda found: KINDS.index(found.kind))
    else:
        chosen = _restricted(inspection, only)
    known = [found for found in chosen if inspection.is_known(found)]
    later = SCORED if scoring else ()
    _each(inspection, known, "reading contents", partial(check_content, inspection, later=later), track)
    if scoring:
        scored = sorted((found for found in known if found.kind in SCORED), key=_entry)
        _each(inspection, scored, "scoring", Scoring(inspection).check, track)
    chains = chains_of(inspection) if only is None else [_chain_of(inspection, only)]
    return Verified(inspection, chains, chosen)


def _each(
    inspection: Inspection,
    artifacts: Sequence[Found],
    what: str,
    check: Callable[[Found], None],
    track: Track,
) -> None:
    for found in track(artifacts, what, len(artifacts)):
        try:
            check(found)
        except ArtifactError as error:
            inspection.report(error.path, error)
        except DmoleError as error:
            inspection.report(found.path, error)


def _entry(found: Found) -> tuple[str, str, str, int, int]:
    """Sorts the files of an entry of the score matrix together, the evaluation first."""
    return found.task, found.split, found.label, found.after, SCORED.index(found.kind)


def _restricted(inspection: Inspection, only: Path) -> list[Found]:
    """The artifact and what it was made from; problems of others are dropped."""
    path = next((path for path in inspection.found if path.absolute() == only.absolute()), None)
    if path is None:
        raise DmoleError(
            f"{only} is not an artifact of the run directory {inspection.run.root}",
            "pass a file of the run directory, and the run directory by --run",
        )
    paths = upstream(inspection, [path])
    inspection.problems = [problem for problem in inspection.problems if problem.path in paths]
    return [inspection.found[path] for path in paths if path in inspection.found]


def _chain_of(inspection: Inspection, only: Path) -> Chain:
    found = next(found for path, found in inspection.found.items() if path.absolute() == only.absolute())
    links = {link: [found.path] if link == LINKS[-1] else [] for link in LINKS}
    return Chain(found.label, found.task, links, links)
