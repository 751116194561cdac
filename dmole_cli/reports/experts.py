"""What the experts of a run are, what they score, and how often they are used: `dmole experts list` and `show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.errors import ArtifactError, MissingArtifact, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.expert import ExpertFile, is_imported, read_expert
from dmole_cli.artifacts.removed import removed_tasks
from dmole_cli.artifacts.router import RouterFile, read_router_arrays
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.artifacts.usage import Activation
from dmole_cli.methods._stream import require_stream
from dmole_cli.methods.base import Method
from dmole_cli.reports.evaluations import read_evaluation_file
from dmole_cli.settings.model import Settings

# An expert dominates by `dominating`: thresholds that keep chance and small numbers out.
MIN_REQUESTS = 100
MAJORITY, FAIR_SHARES = 0.5, 1.5


@dataclass(frozen=True)
class ExpertRow:
    """One expert.

    Attributes:
        task: its task.
        position: in the stream, from 1; None for a removed task.
        state: `in the stream`, `stale`, `damaged`, `not trained` or `removed`.
        why: what is wrong with it, in words.
        origin: `trained`, `imported` (a PEFT adapter) or `bundle`; empty where there is no expert.
        sites: modality -> number of sites.
        parameters: stored numbers.
        bytes: size of the file.
        transfer: earlier task -> share (0..1) of the training samples for which its expert was active; None where the method
            records none.
        score, metric, after: the latest evaluation of its task, in points, and after how many tasks it was.
        active: number of requests in which it was active.
        activation: the same as a share (0..1) of all requests; None without requests.
        ranks: the lowest and the highest rank of its sites; None without an expert.
    """

    task: str
    position: int | None
    state: str
    why: str = ""
    origin: str = ""
    sites: Mapping[str, int] = field(default_factory=dict)
    parameters: int | None = None
    bytes: int | None = None
    transfer: Mapping[str, float] | None = None
    score: float | None = None
    metric: str = ""
    after: int | None = None
    active: int = 0
    activation: float | None = None
    ranks: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shelf:
    """The experts of a method in a run.

    Args:
        run: the run directory.
        settings: with the stream.
        rules: the method.
        fingerprint: of the backbone.
        modality: the tower of a site.
    """

    run: Run
    settings: Settings
    rules: Method
    fingerprint: str
    modality: Callable[[str], str]

    def rows(self, usage: Activation, tasks: Sequence[str] | None = None) -> list[ExpertRow]:
        """A row per task of the stream in its order, then per removed one.

        Args:
            usage: activation by requests.
            tasks: those to show, by default all.
        """
        out = [task for task in removed_tasks(self.run) if task not in self.settings.tasks]
        removed = [task for task in out if self.place(task).expert(task, self.rules.name).is_file()]
        trained = self.rules.trained_tasks(self.settings.tasks)
        chosen = [task for task in (*trained, *removed) if tasks is None or task in tasks]
        return [self._row(task, usage, removed=task in removed) for task in chosen]

    def place(self, task: str) -> Run:
        """Where the files of a task lie: the run directory, or that of a removed task."""
        return self.run if task in self.settings.tasks else self.run.removed(task)

    def _row(self, task: str, usage: Activation, *, removed: bool) -> ExpertRow:
        run = self.place(task)
        path = run.expert(task, self.rules.name)
        values: dict[str, Any] = {"active": usage.experts.get(task, 0)}
        if usage.requests:
            values["activation"] = values["active"] / usage.requests
        values |= self._score(run, task)
        state, why = ("removed", "") if removed else self._state(task, path)
        position = None if removed else self.settings.position(task)
        try:
            values |= self._contents(run, path, read_expert(path))
        except MissingArtifact:
            state = state if removed else "not trained"
        except ArtifactError as error:
            state, why = "damaged", error.message
        return ExpertRow(task, position, state, why, **values)

    def _contents(self, run: Run, path: Path, expert: ExpertFile) -> dict[str, Any]:
        origin = "imported" if is_imported(expert.header) else "bundle" if is_from_bundle(run, path) else "trained"
        shares = expert.header.facts.get("transfer_shares")
        ranks = [a.shape[0] for a, _ in expert.sites.values()]
        return {
            "origin": origin,
            "sites": self._sites(run, path.stem, expert),
            "ranks": (min(ranks), max(ranks)) if ranks else None,
            "parameters": expert.parameters,
            "bytes": path.stat().st_size,
            "transfer": dict(shares) if isinstance(shares, Mapping) else None,
        }

    def _sites(self, run: Run, task: str, expert: ExpertFile) -> dict[str, int]:
        """Sites by modality: those of the allocation where it has the same number, which needs no model."""
        if (path := run.allocation(task, self.rules.name)).is_file():
            try:
                found = {name: int(one["sites"]) for name, one in read_allocation(path)[0]["modalities"].items()}
            except (ArtifactError, KeyError, TypeError, ValueError):
                found = {}
            if found and sum(found.values()) == len(expert.sites):
                return found
        return dict(Counter(map(self.modality, expert.sites)))

    def _state(self, task: str, path: Path) -> tuple[str, str]:
        used = [path, *([self.run.router(task)] if self.rules.uses_routers else [])]
        try:
            require_stream(self.rules, self.settings, self.run, [task])
            check_inputs(self.run, used, fingerprint=self.fingerprint, data=lambda name: None)
        except (StaleArtifact, OtherBackbone) as error:
            return "stale", error.message
        except MissingArtifact as error:
            return "not trained", error.message
        except ArtifactError as error:
            return "damaged", error.message
        return "in the stream", ""

    def _score(self, run: Run, task: str) -> dict[str, Any]:
        """The evaluation after the most tasks."""
        for after in range(len(self.settings.tasks) + len(self.settings.removed), 0, -1):
            path = run.evaluation(self.rules.name, after, task)
            if path.is_file():
                try:
                    found = read_evaluation_file(path)
                except ArtifactError:  # `dmole verify` reports it
                    continue
                return {"score": found.points, "metric": found.metric, "after": after}
        return {}

    def scores(self, task: str) -> Iterator[tuple[int, float, str]]:
        """(number of trained tasks, points, metric) of all evaluations of a task.

        Raises:
            ArtifactError: one is damaged.
        """
        run = self.place(task)
        for after in range(len(self.settings.tasks) + len(self.settings.removed) + 1):
            path = run.evaluation(self.rules.name, after, task)
            if path.is_file():
                found = read_evaluation_file(path)
                yield after, found.points, found.metric

    def router(self, task: str) -> RouterFile | None:
        """The router of a task; None where there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        path = self.place(task).router(task)
        if not path.is_file():  # a shared folder keeps it
            path = self.run.router(task)
        return read_router_arrays(path) if self.rules.uses_routers and path.is_file() else None


class Modalities:
    """The tower of each site of a backbone, by its configuration, which is read at the first question.

    Args:
        backbone: its name.
    """

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone

    def __call__(self, site: str) -> str:
        """`vision` or `language`."""
        from dmole_cli.backbones.sites import modality_of

        return modality_of(site, self._vision)

    @cached_property
    def _vision(self) -> list[str]:
        from dmole_cli.backbones.meta_model import meta_model
        from dmole_cli.backbones.sites import block_stacks

        return block_stacks(meta_model(self.backbone))["vision"]


def details_of(shelf: Shelf, row: ExpertRow, usage: Activation) -> dict[str, Any]:
    """Everything about one expert, as JSON values.

    Raises:
        ArtifactError: expert, router or an evaluation is damaged, or the expert does not exist.
    """
    path = shelf.place(row.task).expert(row.task, shelf.rules.name)
    expert, router = read_expert(path), shelf.router(row.task)
    header = expert.header.as_dict()
    found = {name: getattr(row, name) for name in ("task", "position", "state", "why", "origin", "parameters", "bytes")}
    found |= {"path": str(path), "scale": expert.scale, "transfer": dict(row.transfer or {})}
    found |= {"active": row.active, "requests": usage.requests}
    if router is not None:
        found |= {"router_threshold": router.threshold, "router_quantiles": dict(router.quantiles)}
    found |= {name: header[name] for name in ("backbone", "seed", "settings", "inputs", "versions")}
    found["facts"] = {name: value for name, value in header["facts"].items() if name != "transfer_shares"}
    found["sites"] = [
        {"site": site, "modality": shelf.modality(site), "rank": a.shape[0]} for site, (a, _) in expert.sites.items()
    ]
    found["scores"] = [
        {"after": after, "score": points, "metric": metric} for after, points, metric in shelf.scores(row.task)
    ]
    return found


def dominating(rows: Sequence[ExpertRow], usage: Activation) -> tuple[list[str], list[str]]:
    """(experts that dominate, trained experts that were never active); both empty where the use is even, or requests are few.

    An expert dominates if it was active in more than half of the requests that any expert recognised, and in more than 1.5
    times its fair share of them (1 of the number of experts), while another expert of the stream was active in none.
    """
    answered = usage.requests - usage.without_expert
    current = [row for row in rows if row.position is not None and row.parameters is not None]
    unused = [row.task for row in current if not row.active]
    if answered < MIN_REQUESTS or not unused:
        return [], []
    limit = max(MAJORITY, FAIR_SHARES / len(current))
    heavy = [row.task for row in current if row.active > limit * answered]
    return (heavy, unused) if heavy else ([], [])
