"""Messages on stderr, data on stdout: outcomes, the next command, progress bars, errors."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.artifacts.outcome import Outcome


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def data(value: Any) -> None:
    """Print a JSON document on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def fail(error: DmoleError) -> None:
    """Print an error: what, where, what to do next."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"  -> {error.hint}")


def quiet_libraries() -> None:
    """Suppress warnings that libraries print about themselves."""
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # How often a waiting OpenMP thread spins before it sleeps. Without a limit, two jobs on one machine slow each other
    # down several times; without spinning, two threads may be as slow as one.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|multiprocessing")


def tracker(enabled: bool):
    """A progress bar on stderr; nothing is shown where stderr is not a terminal."""

    def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        if not enabled or not sys.stderr.isatty():
            yield from items
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield from progress.track(items, total=total, description=description)

    return track


def report(outcomes: Sequence[Outcome], *, as_json: bool, following: str) -> None:
    """Print what was read and written, and the command that usually follows."""
    for outcome in outcomes:
        for warning in outcome.warnings:
            say(f"warning: {outcome.stage} {outcome.task}: {warning}")
    if as_json:
        data([outcome.as_dict() for outcome in outcomes])
        return
    for outcome in outcomes:
        facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in outcome.facts.items())
        if outcome.written:
            say(f"{outcome.stage} {outcome.task}: wrote {outcome.path}" + (f"  ({facts})" if facts else ""))
            if outcome.reads:
                say(f"  read {', '.join(outcome.reads)}")
        elif outcome.facts.get("imported"):
            say(f"{outcome.stage} {outcome.task}: {outcome.path} was imported (--force trains another in its place)")
        else:
            say(
                f"{outcome.stage} {outcome.task}: {outcome.path} is up to date, nothing to do (--force runs the stage again)"
            )
    if following:
        say(f"next: {following}")
