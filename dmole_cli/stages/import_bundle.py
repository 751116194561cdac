"""`dmole experts import`: the experts of a bundle become tasks of a run, without training and without their tasks' data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.bundle import FILE, Bundle, read_bundle, write_import
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.files import digest_of_file, replacing, write_text
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import read_router_arrays
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.card import card_as_toml, is_built_in, load_card
from dmole_cli.data.recorded import Recorded
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import Method, load_method
from dmole_cli.settings.model import Settings
from dmole_cli.settings.names import name_problem, same_name
from dmole_cli.settings.record import FILE as RECORD


@dataclass(frozen=True)
class _Source:
    """A bundle that was read."""

    folder: Path
    bundle: Bundle
    rules: Method

    def artifacts(self, task: str, run: Run) -> dict[Path, Path]:
        """File in the bundle -> its path in a run directory."""
        inside, name = Run(self.folder), self.rules.name
        routers = {inside.router(task): run.router(task)} if self.rules.uses_routers else {}
        return {**routers, inside.expert(task, name): run.expert(task, name)}

    def card(self, task: str) -> Path:
        """The card of a task."""
        return self.folder / "cards" / f"{task}.toml"


def import_bundle(folder: Path, *, settings: Settings, model: LazyModel, run: Run) -> list[Outcome]:
    """Add the tasks of a bundle to the end of a run's stream, in their order, and write `run.toml`.

    Files are copied byte by byte, so that routes and answers are those of the run that wrote the bundle. A run directory that
    does not exist is made, with the backbone and the settings of this command.

    Args:
        folder: the bundle.
        settings: of the command.
        model: the backbone; only its fingerprint is used.
        run: the run directory.

    Raises:
        DmoleError: the bundle is damaged, holds other files or belongs to another backbone, or the run has one of its tasks.
    """
    source = _read(folder)
    if source.bundle.backbone != model.fingerprint:
        raise DmoleError(
            f"{folder} was made with another backbone ({source.bundle.backbone[:12]}; the configured one is "
            f"{model.fingerprint[:12]})",
            "pass the backbone of the bundle, and the options it was loaded with: --backbone",
        )
    for task in source.bundle.tasks:
        _require_content(source, task)
    recorded = Recorded.read(run.root, type(settings)) if (run.root / RECORD).is_file() else None
    for task in source.bundle.tasks:
        _require_new(source, task, recorded.settings if recorded is not None else None, run)
    paths, outcomes = {}, []
    for task in source.bundle.tasks:
        if path := _own_card(source, task, run):
            paths[task] = str(path)
        artifacts = source.artifacts(task, run)
        for path, place in artifacts.items():
            with replacing(place) as file:
                file.write(path.read_bytes())
        digests = {run.name_of(place): digest_of_file(place) for place in artifacts.values()}
        write_import(run, task, source.bundle, digests)
        place = run.expert(task, source.rules.name)
        outcomes.append(Outcome("experts import", task, place, reads=(str(folder),)).wrote(bytes=place.stat().st_size))
    if recorded is None:
        recorded = Recorded(run.root, settings.updated(tasks=(), unseen=(), removed=()), {})
    tasks = (*recorded.settings.tasks, *source.bundle.tasks)
    recorded.with_stream(tasks, recorded.settings.removed, paths=paths).write()
    return outcomes


def _read(folder: Path) -> _Source:
    """Read a bundle, and compare its files with its tasks.

    Raises:
        DmoleError: as for `import_bundle`.
    """
    if not (folder / FILE).is_file():
        raise DmoleError(f"{folder} holds no {FILE}", "pass a folder that `dmole experts export` wrote")
    bundle = read_bundle(folder)
    for number, task in enumerate(bundle.tasks):
        if problem := name_problem(task):
            raise DamagedArtifact(folder / FILE, f"{folder / FILE}: the name of a task {problem}")
        if any(same_name(task, other) for other in bundle.tasks[:number]):
            raise DamagedArtifact(folder / FILE, f"{folder / FILE} names the task {task} twice")
    source = _Source(folder, bundle, load_method(bundle.method))
    wanted = [path for task in bundle.tasks for path in (*source.artifacts(task, Run(folder)), source.card(task))]
    names = {path.relative_to(folder).as_posix() for path in wanted}
    if differing := sorted(names ^ bundle.files.keys()):
        raise DamagedArtifact(folder / FILE, f"{folder / FILE} does not list the files of its tasks: {differing[0]}")
    return source


def _require_content(source: _Source, task: str) -> None:
    """Refuse experts and routers that cannot be read or that another backbone has made, and cards of other tasks.

    Raises:
        DmoleError: as described.
    """
    headers: dict[Path, Header] = {}
    for path in source.artifacts(task, Run(source.folder)):
        is_expert = path.parts[len(source.folder.parts)] == "experts"
        headers[path] = read_expert(path).header if is_expert else read_router_arrays(path).header
    for path, header in headers.items():
        if header.backbone != source.bundle.backbone:
            raise DamagedArtifact(path, f"{path} was made with another backbone than the bundle states")
    if load_card(source.card(task)).name != task:
        raise DamagedArtifact(source.folder / FILE, f"{source.card(task)} is not the card of {task}")


def _require_new(source: _Source, task: str, recorded: Settings | None, run: Run) -> None:
    """Refuse a task that the run has, or had, and files that would be replaced.

    Raises:
        DmoleError: as described.
    """
    known = (*recorded.tasks, *recorded.unseen, *recorded.removed) if recorded is not None else ()
    if (other := next((name for name in known if same_name(name, task)), None)) is not None:
        removed = recorded is not None and other in recorded.removed
        where = "had a task" if removed else "has a task"
        raise DmoleError(f"{run.root} {where} {other} already", "pass another --run, or a bundle without this task")
    for path, place in source.artifacts(task, run).items():
        if place.exists() and (not place.is_file() or digest_of_file(place) != digest_of_file(path)):
            raise DmoleError(f"{place} exists and is another file", "move it to another folder, or pass another --run")


def _own_card(source: _Source, task: str, run: Run) -> Path | None:
    """The path of a task's card in the run directory, where it is written; None for a built-in card, which dmole has."""
    text = source.card(task).read_text(encoding="utf-8")
    if is_built_in(task) and card_as_toml(load_card(task)) == text:
        return None
    path = run.root / "cards" / f"{task}.toml"
    write_text(path, text)
    return path
