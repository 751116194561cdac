"""The steps that bring a stream up to date: what is missing or stale, and what follows from making it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.errors import ArtifactError, MissingArtifact, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.errors import DmoleError
from dmole_cli.planning.nodes import Call, Node, nodes_of
from dmole_cli.planning.step_times import StepTimes
from dmole_cli.verification.inspection import Inspection

# States of a file that is made, the most urgent first. `follows`: it is made from a file that certainly changes; `may follow`:
# from one that is made again, perhaps with the same bytes.
STATES = ("damaged", "stale", "forced", "missing", "follows", "may follow")
# What makes a stage refuse its output instead of making it again.
REFUSED = ("damaged", "stale", "forced")


@dataclass(frozen=True)
class Step:
    """A call of a stage that is to be made.

    Attributes:
        call: the stage, task and method.
        state: the most urgent one of its files.
        files: those that are missing, stale or follow, in the order of the stages.
        why: the reasons, in words.
        after: entries of the score matrix that are made, as numbers of trained tasks.
        seconds: estimate; None where no figures are known.
    """

    call: Call
    state: str
    files: tuple[Path, ...]
    why: str
    after: tuple[int, ...] = ()
    seconds: float | None = None

    @property
    def replaces(self) -> bool:
        """Whether the stage would refuse an existing output."""
        return self.state in REFUSED

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        call = {key: value for key, value in asdict(self.call).items() if value and key != "label"}
        entries = {"after": list(self.after)} if self.after else {}
        return {
            **call,
            **({"method": self.call.label} if self.call.label else {}),
            **entries,
            "state": self.state,
            "why": self.why,
            "files": [str(path) for path in self.files],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class LeftOut:
    """A file that is not up to date and that no step makes, or an imported expert that is kept.

    Attributes:
        path: the file.
        why: the reason, in words.
        hint: what to do; empty where the reason is another file that is left out.
        blocks: whether the stream is not up to date because of it.
    """

    path: Path
    why: str
    hint: str = ""
    blocks: bool = True


@dataclass(frozen=True)
class Update:
    """What brings a stream up to date.

    Attributes:
        steps: in the order in which they are made.
        left_out: what they do not make.
    """

    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def blocked(self) -> tuple[LeftOut, ...]:
        """The files that are not up to date and that no step makes."""
        return tuple(one for one in self.left_out if one.blocks)

    @property
    def up_to_date(self) -> bool:
        """Whether nothing is to be done, and nothing is left out."""
        return not self.steps and not self.blocked

    @property
    def certain(self) -> tuple[Step, ...]:
        """The steps that are made in any case."""
        return tuple(step for step in self.steps if step.state != "may follow")

    @property
    def seconds(self) -> float:
        """Estimate of all steps that are made in any case, as far as it is known."""
        return float(sum(step.seconds or 0.0 for step in self.certain))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "up_to_date": self.up_to_date,
            "steps": [step.as_dict() for step in self.steps],
            "seconds": round(self.seconds, 3),
            "steps_of_unknown_time": sum(step.seconds is None for step in self.certain),
            "left_out": [{**asdict(one), "path": str(one.path)} for one in self.left_out],
        }


def update_of(inspection: Inspection, methods: Sequence[str], *, force: bool = False) -> Update:
    """The steps that bring a stream up to date.

    Args:
        inspection: of the run directory.
        methods: whose files are made.
        force: make everything again. Imported experts are kept all the same.

    Raises:
        DmoleError: an artifact is another backbone's, or a usable artifact would become stale without a way to make it again.
    """
    walk, times = _Walk(inspection, force), StepTimes(inspection)
    for node in nodes_of(inspection, methods):
        walk.visit(node)
    steps = [_step(call, files, times) for call, files in walk.to_do.items()]
    return Update(tuple(steps), tuple(walk.left_out))


def _step(call: Call, files: Sequence[tuple[Node, str, str]], times: StepTimes) -> Step:
    state = min((state for _, state, _ in files), key=STATES.index)
    counts = Counter(why for _, _, why in files)
    # Entries are counted; a stage's other files are made together, and for the same reason.
    words = list(counts)
    after = tuple(node.after for node, _, _ in files if node.after is not None)
    if after:
        words = [_of_entries(why, count) for why, count in counts.items()]
    paths = tuple(node.path for node, _, _ in files)
    return Step(call, state, paths, "; ".join(words), after, times.seconds(call, len(after)))


def _of_entries(why: str, count: int) -> str:
    return f"1 entry {why}" if count == 1 else f"{count} entries {why.replace('follows', 'follow')}"


@dataclass
class _Walk:
    """Visits the files of a stream, sources first.

    Attributes:
        inspection: of the run directory.
        force: make everything again.
        to_do: call -> its files, with state and reason.
        left_out: what no step makes.
        changes: file that is made -> whether it certainly differs from before.
        makers: file that is made -> stage and task, in words.
        damaged: files that are made again because they are damaged.
        cannot: files that are left out.
    """

    inspection: Inspection
    force: bool
    to_do: dict[Call, list[tuple[Node, str, str]]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    changes: dict[Path, bool] = field(default_factory=dict)
    makers: dict[Path, str] = field(default_factory=dict)
    damaged: set[Path] = field(default_factory=set)
    cannot: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._errors: dict[Path, list[ArtifactError]] = {}
        for problem in self.inspection.problems:
            if isinstance(problem.error, ArtifactError) and not isinstance(problem.error, MissingArtifact):
                self._errors.setdefault(problem.path, []).append(problem.error)

    def visit(self, node: Node) -> None:
        """Decide about a file."""
        sources = tuple(dict.fromkeys((*self.inspection.sources(node.path), *node.reads)))
        error = self._error(node.path)
        if self._is_imported(node):
            self._keep(node, error)
            return
        if isinstance(error, OtherBackbone) and not self.force:
            raise error
        state, why = self._state(node, error, sources)
        if not state:
            return
        reason, hint = self._obstacle(node)
        if reason:
            usable = state in ("follows", "forced") and error is None
            if usable and any(path in self.changes for path in sources):
                raise DmoleError(
                    f"{node.path} would become stale, and could not be made again: {reason}",
                    hint or "make that file first; or run the commands of the stages that you need",
                )
            if state != "may follow":
                self._leave(node.path, reason, hint, blocks=not usable)
            return
        if state == "damaged":
            self.damaged.add(node.path)
        self.changes[node.path] = state in ("stale", "follows") or any(self.changes.get(path) for path in sources)
        self.makers[node.path] = f"{node.call.stage} {node.call.task}"
        self.to_do.setdefault(node.call, []).append((node, state, why))

    def _error(self, path: Path) -> ArtifactError | None:
        """What is wrong with a file that exists: the first error but staleness, else staleness."""
        # A file is not stale because of a damaged source: that may be made again with the bytes that it had.
        errors = [
            error
            for error in self._errors.get(path, ())
            if not (isinstance(error, StaleArtifact) and error.source in self.damaged)
        ]
        return min(errors, key=lambda error: isinstance(error, StaleArtifact), default=None)

    def _is_imported(self, node: Node) -> bool:
        """Whether a file is an imported expert; a damaged one that no training has written counts as one."""
        if node.call.stage != "train-task" or not node.path.exists():
            return False
        found = self.inspection.found.get(node.path)
        if found is not None and found.header is not None:
            return is_imported(found.header)
        run, call = self.inspection.run, node.call
        return node.path == run.expert(call.task, call.label) and not run.training_log(call.task, call.label).exists()

    def _keep(self, node: Node, error: ArtifactError | None) -> None:
        """Note an imported expert that is unusable, or that is not trained although everything is made again."""
        path, call = node.path, node.call
        options = f"--task {shlex.quote(call.task)}" + ("" if call.label == D_MOLE else f" --method {call.label}")
        train = f"train another in its place: dmole train-task {options} --force"
        if error is not None:
            hint = f"import it again: dmole import {options} ADAPTER --force; or {train}"
            self._leave(path, error.message.removeprefix(f"{path} "), hint)
        elif self.force:
            self._leave(path, "it was imported, and is kept", train, blocks=False)

    def _state(self, node: Node, error: ArtifactError | None, sources: Iterable[Path]) -> tuple[str, str]:
        """State and reason of a file that is to be made; empty for one that is up to date."""
        if not node.path.exists():
            return "missing", "missing"
        if self.force:
            return "forced", "--force"
        if error is not None:
            return self._of_error(error)
        made = [path for path in sources if path in self.changes]
        if certain := next((path for path in made if self.changes[path]), None):
            return "follows", f"follows: {self.makers[certain]} runs again"
        if made:
            return "may follow", f"may follow: {self.makers[made[0]]} runs again"
        return "", ""

    def _of_error(self, error: ArtifactError) -> tuple[str, str]:
        """State and reason of a file that exists and has an error; artifacts are named as in headers."""
        stale = isinstance(error, StaleArtifact)
        words = error.message.partition(" is stale: ")[2].replace(" since it was made", "") if stale else error.message
        for folder in filter(None, (self.inspection.run.root, self.inspection.run.shared)):
            words = words.replace(f"{folder}/", "")
        return ("stale", f"stale: {words}") if stale else ("damaged", f"damaged: {words}")

    def _obstacle(self, node: Node) -> tuple[str, str]:
        """What prevents a file from being made, and what to do; empty where nothing does."""
        for path in node.reads:
            if path in self.cannot:
                return f"made from {path}, which is left out", ""
        for task, split in node.data:
            try:
                self.inspection.data.digest(task, split)
            except DmoleError as error:
                reason = f"the {split} split of task {task} cannot be read: {error.message}"
                return reason, error.hint or "restore the data of the task"
        return "", ""

    def _leave(self, path: Path, reason: str, hint: str, *, blocks: bool = True) -> None:
        """Note a file that is not made; nothing that is made from it is either, unless it is usable as it is."""
        if blocks:
            self.cannot.add(path)
        self.left_out.append(LeftOut(path, reason, hint, blocks))
