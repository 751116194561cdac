"""What a subcommand works with: settings, tasks, backbone and run directory, opened from the command line."""

from __future__ import annotations

import math
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from dmole_cli.artifacts.errors import ArtifactError, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.files import write_text
from dmole_cli.artifacts.kinds import KINDS
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.cli import console
from dmole_cli.cli.hints import completed, hint_for
from dmole_cli.data.card import TaskCard, load_card, task_name
from dmole_cli.data.recorded import Recorded
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.settings.documents import read_toml
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import DEFAULT_FILE, read_record, read_settings, with_options
from dmole_cli.settings.record import FILE as RECORD
from dmole_cli.settings.record import changes, located, record_of


class PartsWithoutData(TypedDict):
    """What a stage that reads no task data depends on, as its keyword arguments."""

    settings: Settings
    model: LazyModel
    run: Run


class Parts(PartsWithoutData):
    """What a stage depends on, as its keyword arguments."""

    data: Tasks


@dataclass(frozen=True)
class Workspace:
    """Everything that one command works with.

    Attributes:
        settings: configuration and options; `tasks` and `unseen` hold names.
        data: the tasks.
        model: the backbone.
        run: the run directory.
        reopen: opens this workspace again, as the configuration and the run directory are then.
        force: whether `--force` was typed.
        json: whether `--json` was typed.
        verbose: whether `-v` was typed.
        typed: options as they were typed, by settings; repeated in the commands that errors propose.
        paths: task -> the path of its card, for tasks that were named by a path.
        changed: settings whose values differ from those of `run.toml`, with the change in words.
        recording: whether the command writes into the run directory, and its settings are recorded there.
        config: the configuration that was named; None for the default one.
    """

    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run
    reopen: Callable[[], Workspace] = field(repr=False)
    force: bool = False
    json: bool = False
    verbose: bool = False
    typed: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    recording: bool = False
    changed: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None

    @property
    def parts(self) -> Parts:
        """The keyword arguments of a stage."""
        return Parts(data=self.data, **self.parts_without_data)

    @property
    def parts_without_data(self) -> PartsWithoutData:
        """The keyword arguments of a stage that reads no task data."""
        return PartsWithoutData(settings=self.settings, model=self.model, run=self.run)

    @property
    def track(self) -> Any:
        """Shows progress on stderr."""
        return console.tracker(not self.json)

    def chosen(self, tasks: Sequence[str] | None, *, in_stream: bool = False) -> list[str]:
        """Names of the tasks that were typed, in the order of the stream, or the whole stream.

        Args:
            tasks: names or paths of cards; None or empty for the stream.
            in_stream: whether a task must have a position in the stream.

        Raises:
            DmoleError: a task is unknown, or not in the stream where it must be.
        """
        if not tasks:
            return list(self.settings.tasks)
        names = [task_name(task) for task in tasks]
        for typed, name in zip(tasks, names, strict=True):
            if name in self.settings.removed and name not in self.settings.unseen and not typed.endswith(".toml"):
                self.settings.position(name)
            self.data.card(name)
        if in_stream:
            return sorted(names, key=self.settings.position)
        order = (*self.settings.tasks, *names)
        return sorted(names, key=order.index)

    def cards(self, entries: Sequence[str]) -> list[TaskCard]:
        """Cards of tasks or paths; a path is read from there even where a task of the stream has the same name."""
        stream = (*self.settings.tasks, *self.settings.unseen)
        return [
            load_card(e) if e.endswith(".toml") and e not in stream else self.data.card(task_name(e)) for e in entries
        ]

    @property
    def configured_tasks(self) -> tuple[str, ...]:
        """The tasks that the configuration names, whatever `run.toml` records; empty where it names none."""
        path = self.config or DEFAULT_FILE
        return tuple(map(task_name, read_toml(path).get("tasks", ()))) if path.exists() else ()

    @property
    def table(self) -> dict[str, Any]:
        """The settings as `run.toml` states them."""
        return tomllib.loads(self._record)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Write `run.toml`, from which later commands take the settings, if one of these was written."""
        folders = [self.run.root, *([self.run.shared] if self.run.shared else [])]
        inside = [
            any(outcome.path.is_relative_to(folder) for folder in folders) for outcome in outcomes if outcome.written
        ]
        if self.recording and any(inside):
            self._write_record()

    def _write_record(self) -> None:
        path = self.run.root / RECORD
        if not path.exists() or path.read_text(encoding="utf-8") != self._record:
            write_text(path, self._record)

    @property
    def _record(self) -> str:
        return record_of(self.settings, self.paths, root=self.run.root)

    def report(self, outcomes: Sequence[Outcome], *, following: str = "") -> None:
        """Print what was read and written, and the command that usually follows; what was written makes the run's record."""
        self.record(outcomes)
        following = self.repeating(following) if following else ""
        console.report(outcomes, as_json=self.json, following=following, verbose=self.verbose)

    def repeating(self, command: str) -> str:
        """A proposed command with the options of this one that it needs; of the others, `run.toml` has the values."""
        return " ".join([command, *(self.typed[name] for name in ("run", "config") if name in self.typed)])

    @contextmanager
    def hints(self) -> Iterator[None]:
        """Add to an artifact's error the command that fixes it."""
        try:
            yield
        except ArtifactError as error:
            hint = hint_for(error, self.run, self.typed, type(self.settings))
            options = [self.typed[name] for name in self.changed if name in self.typed]
            if options and isinstance(error, StaleArtifact | OtherBackbone):
                hint = f"leave out {' '.join(options)} to use it, or {hint}"
            raise DmoleError(error.message, hint) from error
        except DmoleError as error:
            raise DmoleError(error.message, completed(error.hint, self.typed)) from error
        finally:
            # A command that was interrupted after its first artifact; of a run that has a record, only success changes it.
            begun = any((self.run.root / kind.folder).is_dir() for kind in KINDS)
            if self.recording and begun and not (self.run.root / RECORD).exists():
                self._write_record()


def workspace(settings: Settings, run: Run, *, further: Sequence[str] = (), **values: Any) -> Workspace:
    """Open a workspace from settings.

    Args:
        settings: `tasks` and `unseen` hold names or paths of cards; a task's name is its only identity.
        run: the run directory.
        further: tasks beside those of the settings.
        **values: other attributes of `Workspace`.
    """
    data = Tasks.of(settings, run, further=further)
    named = Recorded.of(run.root, settings)
    values = {"paths": named.paths, **values}
    again = partial(workspace, settings, run, further=further, **values)
    return Workspace(named.settings, data, LazyModel.of(settings), run, again, **values)


def open_workspace(
    values: Mapping[str, Any], options: Mapping[str, Any], *, model: type[Settings], typed: Mapping[str, str]
) -> Workspace:
    """Open the workspace of a command line.

    Args:
        values: of the common and own options, by parameter name.
        options: dotted name of a setting -> value that was typed.
        model: all settings.
        typed: options as they were typed.

    Raises:
        DmoleError: the configuration or an option is invalid.
    """
    root = values.get("run_directory")
    record = root / RECORD if root is not None else None
    recorded = read_record(record, model) if record is not None else {}
    configured = read_settings(values["config"], model, recorded=located(recorded, record.parent) if record else {})
    settings = with_options(configured, options)
    if values.get("setting"):
        settings = settings.updated(method=_with_method_options(settings, values["method"], values["setting"]))
    settings = _without_removed(settings, told=values.get("removed_tasks") or ())
    shared = Path(settings.shared) if settings.shared else None
    for option, folder in (("run", root), ("shared", shared)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise DmoleError(
                f"{folder} is a file, not a directory", f"pass --{option} a folder; it is made when needed"
            )
    tasks = values.get("task") or []
    further = [tasks] if isinstance(tasks, str) else tasks
    flags = {name: values.get(name, False) for name in ("force", "json", "verbose")}
    flags["recording"] = "force" in values and record is not None
    work = workspace(settings, Run(root or Path(), shared), further=further, typed=typed, **flags)
    differing = changes(recorded, work.table) if recorded else {}
    if differing:
        words = "; ".join(f"{name} {change}" for name, change in differing.items())
        warnings.warn(DmoleWarning(f"this differs from {record}: {words}"), stacklevel=2)
    return replace(
        work,
        changed=differing,
        config=values["config"],
        reopen=lambda: open_workspace(values, options, model=model, typed=typed),
    )


def _without_removed(settings: Settings, *, told: Sequence[str]) -> Settings:
    """The settings without tasks that the record says were removed; a configuration that still names one gets a warning.

    Args:
        settings: as configured.
        told: removed tasks that the command line names, about which nothing needs to be said.

    Raises:
        DmoleError: the configuration names no other task.
    """
    out = {entry: name for entry in settings.tasks if (name := task_name(entry)) in settings.removed}
    left = tuple(entry for entry in settings.tasks if entry not in out)
    if not out:
        return settings
    names = ", ".join(out.values())
    message = f"`tasks` of the configuration names {names}, which `dmole experts remove` has taken out of this run"
    hint = f"delete it from `tasks`, or bring it back: dmole experts load {next(iter(out.values()))}"
    if not left:
        raise DmoleError(message, hint)
    if not set(out.values()) <= set(map(task_name, told)):
        warnings.warn(DmoleWarning(f"{message}; it is left out ({hint})"), stacklevel=3)
    return settings.updated(tasks=left)


def _with_method_options(settings: Settings, method: str, typed: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """The methods' options with `--set NAME=VALUE` in place of the configured values."""
    found = dict(settings.method.get(method, {}))
    for text in typed:
        key, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            import typer

            raise typer.BadParameter(f"--set {text}: expected NAME=NUMBER, like weight=100")
        found[key.strip().replace("-", "_")] = number
    return {**settings.method, method: found}
