"""What a subcommand works with: settings, tasks, backbone and run directory, opened from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.cli import console
from dmole_cli.cli.hints import hint_for
from dmole_cli.data.card import TaskCard, load_card, task_name
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_settings, with_options


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
        force: whether `--force` was typed.
        json: whether `--json` was typed.
        typed: options as they were typed, by settings; repeated in the commands that errors propose.
    """

    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run
    force: bool = False
    json: bool = False
    typed: Mapping[str, str] = field(default_factory=dict)

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
        for name in names:
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

    def report(self, outcomes: Sequence[Outcome], *, following: str = "") -> None:
        """Print what was read and written, and the command that usually follows."""
        console.report(outcomes, as_json=self.json, following=following)

    @contextmanager
    def hints(self) -> Iterator[None]:
        """Add to an artifact's error the command that fixes it."""
        try:
            yield
        except ArtifactError as error:
            hint = hint_for(error, self.run, self.typed, type(self.settings))
            raise DmoleError(error.message, hint) from error


def workspace(settings: Settings, run: Run, *, further: Sequence[str] = (), **values: Any) -> Workspace:
    """Open a workspace from settings.

    Args:
        settings: `tasks` and `unseen` hold names or paths of cards; a task's name is its only identity.
        run: the run directory.
        further: tasks beside those of the settings.
        **values: other attributes of `Workspace`.
    """
    data = Tasks.of(settings, run, further=further)
    names = {"tasks": tuple(map(task_name, settings.tasks)), "unseen": tuple(map(task_name, settings.unseen))}
    return Workspace(settings.updated(**names), data, LazyModel.of(settings), run, **values)


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
    settings = with_options(read_settings(values["config"], model), options)
    if values.get("setting"):
        settings = settings.updated(method=_with_method_options(settings, values["method"], values["setting"]))
    root = values.get("run_directory", Path())
    shared = Path(settings.shared) if settings.shared else None
    for option, folder in (("run", root), ("shared", shared)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise DmoleError(
                f"{folder} is a file, not a directory", f"pass --{option} a folder; it is made when needed"
            )
    tasks = values.get("task") or []
    further = [tasks] if isinstance(tasks, str) else tasks
    flags = {"force": values.get("force", False), "json": values["json"]}
    return workspace(settings, Run(root, shared), further=further, typed=typed, **flags)


def _with_method_options(settings: Settings, method: str, typed: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """The methods' options with `--set NAME=VALUE` in place of the configured values."""
    found = dict(settings.method.get(method, {}))
    for text in typed:
        key, _, value = text.partition("=")
        try:
            found[key.strip().replace("-", "_")] = float(value)
        except ValueError:
            import typer

            raise typer.BadParameter(f"--set {text}: expected NAME=NUMBER, like weight=100") from None
    return {**settings.method, method: found}
