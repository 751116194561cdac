"""Messages on stderr, data on stdout: outcomes, the next command, progress bars, errors."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dmole_cli.errors import DmoleWarning
from dmole_cli.processes import is_first
from dmole_cli.progress import Track
from dmole_cli.reports.wrapping import wrapped

if TYPE_CHECKING:
    from dmole_cli.artifacts.outcome import Outcome

Item = TypeVar("Item")
Status = Callable[[], str]
# Between two lines of progress, where stderr is not a terminal.
SECONDS_BETWEEN_LINES = 30.0


def say(text: str, *, command: bool = False) -> None:
    """Print lines on stderr, in the first process only.

    They are wrapped at spaces in a terminal; a `command` is not, so that it can be copied.
    """
    if is_first():
        print(text if command else wrapped(text, sys.stderr), file=sys.stderr, flush=True)


def data(value: Any) -> None:
    """Print a JSON document on stdout; with escapes where its encoding, or any, lacks a character."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)


def quiet_libraries() -> None:
    """Suppress warnings that libraries print about themselves."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # How often a waiting OpenMP thread spins before it sleeps. Without a limit, two jobs on one machine slow each other
    # down several times; without spinning, two threads may be as slow as one.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|multiprocessing")
    warnings.filterwarnings("always", category=DmoleWarning)
    show, shown = warnings.showwarning, set[str]()

    def show_ours(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DmoleWarning):
            if str(message) not in shown:
                say(f"warning: {message}")
            shown.add(str(message))
        else:
            show(message, category, *place, **more)

    warnings.showwarning = show_ours


def tracker(enabled: bool) -> Track:
    """Progress on stderr, of the first process: a bar in a terminal, lines elsewhere."""

    def track(
        items: Iterable[Item], description: str, total: int, *, done: int = 0, status: Status | None = None
    ) -> Iterator[Item]:
        if not enabled or not is_first():
            yield from items
        elif sys.stderr.isatty():
            yield from _bar(items, description, total, done=done, status=status)
        else:
            yield from _lines(items, description, total, done=done, status=status)

    return track


def _bar(items: Iterable[Item], description: str, total: int, *, done: int, status: Status | None) -> Iterator[Item]:
    """A bar, and the status on a line of its own."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    progress = Progress(*columns, expand=True)

    def shown() -> Group:
        return Group(progress, *([Text(f"  {status()}", style="dim")] if status else []))

    with Live(console=Console(stderr=True), get_renderable=shown, transient=True, refresh_per_second=4):
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            # Here the caller has finished its work on the item.
            progress.update(task, advance=1)


def _lines(items: Iterable[Item], description: str, total: int, *, done: int, status: Status | None) -> Iterator[Item]:
    """A line every `SECONDS_BETWEEN_LINES`, and one at the end."""
    started = shown_at = time.monotonic()
    for number, item in enumerate(items, start=done + 1):
        yield item
        now = time.monotonic()
        if number == total or now - shown_at >= SECONDS_BETWEEN_LINES:
            shown_at = now
            left = (now - started) / (number - done) * (total - number)
            words = [
                f"{number} of {total}",
                f"{now - started:.0f} s",
                *([f"{left:.0f} s left"] if number < total else []),
            ]
            say(f"{description}: {', '.join([*words, *([status()] if status else [])])}")


def report(outcomes: Sequence[Outcome], *, as_json: bool, following: str, verbose: bool = False) -> None:
    """Print what was read and written, and the command that usually follows.

    Args:
        outcomes: of the command's stages.
        as_json: print them as JSON on stdout instead.
        following: the next command, empty for none.
        verbose: a line for every file; otherwise several files of a stage and task share a line.
    """
    for outcome in outcomes:
        for warning in outcome.warnings:
            say(f"warning: {outcome.stage} {outcome.task}: {warning}")
    if as_json:
        data([outcome.as_dict() for outcome in outcomes])
        return
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.stage, outcome.task), []).append(outcome)
    for group in groups.values():
        if len(group) == 1 or verbose:
            for outcome in group:
                _report_one(outcome)
        else:
            say(_summary(group))
    if following:
        say(f"next: {following}", command=True)


def _report_one(outcome: Outcome) -> None:
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in outcome.facts.items())
    name = f"{outcome.stage} {outcome.task}"
    if outcome.written:
        say(f"{name}: wrote {outcome.path}" + (f"  ({facts})" if facts else ""))
        if outcome.reads:
            say(f"  read {', '.join(outcome.reads)}")
    elif outcome.facts.get("imported"):
        say(f"{name}: {outcome.path} was imported (--force trains another in its place)")
    else:
        say(f"{name}: {outcome.path} is up to date, nothing to do (--force runs the stage again)")


def _summary(outcomes: Sequence[Outcome]) -> str:
    """One line for all files of a stage and task: how many were written, their scores in order, and sums of counts."""
    name, written = f"{outcomes[0].stage} {outcomes[0].task}", [outcome for outcome in outcomes if outcome.written]
    folder = os.path.commonpath([outcome.path.parent for outcome in outcomes])
    if not written:
        return f"{name}: all {len(outcomes)} files in {folder} are up to date, nothing to do (--force runs the stage again)"
    rest = len(outcomes) - len(written)
    facts: dict[str, list[Any]] = {}
    for outcome in written:
        for key, value in outcome.facts.items():
            if key not in ("at_stage", "samples"):
                facts.setdefault(key, []).append(value)
    figures = ", ".join(f"{key.replace('_', ' ')} {_figures(key, values)}" for key, values in facts.items())
    current = f", {rest} up to date" if rest else ""
    return f"{name}: wrote {len(written)} files in {folder}{current} ({figures}; -v shows each)"


def _figures(key: str, values: Sequence[Any]) -> str:
    if key in ("generated", "scored", "reused"):
        return str(sum(values))
    return " ".join(map(str, values[:1] if len(set(map(str, values))) == 1 else values))
