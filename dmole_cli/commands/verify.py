"""`dmole verify`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmole_cli.artifacts.labels import base_method
from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, MODEL
from dmole_cli.cli.problems import with_repair
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.artifacts.run import Run
    from dmole_cli.verification.inspection import Found

SETTINGS = (*MODEL, "data_root", "shared")
WRITES = False
RUN_ARGUMENT = "place"


def run(
    work: Workspace,
    place: Annotated[
        Path | None,
        typer.Argument(
            help="Run directory, or one artifact, which is verified with all that it was made from.", metavar="PATH"
        ),
    ] = None,
    scoring: Annotated[
        bool,
        typer.Option("--scoring/--no-scoring", help="Score evaluations again.", rich_help_panel=HOW),
    ] = True,
    recompute: Annotated[
        int, typer.Option(min=0, help="Artifacts to make again, and to compare byte by byte.", rich_help_panel=HOW)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of their choice.", rich_help_panel=HOW)] = 0,
) -> None:
    """Verify a run directory, or one artifact."""
    from dmole_cli.verification.verify import verify

    if not work.run.root.is_dir():
        raise DmoleError(
            f"there is no run directory {work.run.root}",
            "pass a run directory, or an artifact in one: dmole verify PATH",
        )
    only = place if place is not None and not place.is_dir() else None
    verified = verify(**work.parts, only=only, scoring=scoring, differing=work.changed, track=work.track)
    problems, made = verified.first, list[Path]()
    if recompute:
        from dmole_cli.verification.recompute import recompute as make_again

        maker = partial(_make, work)
        again = make_again(verified.inspection, verified.artifacts, recompute, seed=seed, make=maker, track=work.track)
        made, problems = [*again.paths], [*problems, *again.problems]
    broken = [with_repair(work, problem) for problem in problems]
    if work.json:
        chains = verified.as_rows()
        further = {"recomputed": [str(path) for path in made]} if recompute else {}
        console.data(
            {"ok": not broken, "artifacts": len(verified.artifacts), "chains": chains, "problems": broken, **further}
        )
    else:
        _show(verified.as_rows(), broken, count=len(verified.artifacts), recomputed=len(made))
    if broken:
        raise typer.Exit(1)


def _make(work: Workspace, found: Found, run: Run) -> None:
    """Make an artifact in another run directory, by its stage."""
    from dmole_cli.artifacts import kinds

    parts: dict[str, Any] = {**work.parts, "run": run, "data": work.data.uncached()}
    task, method = found.task, base_method(found.label)
    name = found.kind.command.partition(" ")[0]
    if name == "profile":
        from dmole_cli.stages.profile import profile

        profile(task, **parts)
    elif name == "allocate":
        from dmole_cli.stages.allocate import allocate_task

        allocate_task(task, method=method, **parts)
    elif name == "train-router":
        from dmole_cli.routing.balance import recorded_balance
        from dmole_cli.stages.train_router import train_router

        train_router(task, balance=recorded_balance(found.header), **parts)
    elif name == "train-task":
        from dmole_cli.stages.train_task import train_task

        train_task(task, method=method, **parts)
    elif name == "rescore":
        from dmole_cli.stages.rescore import Wanted, rescore

        wanted = Wanted([found.label], [found.after], [task], split=found.split)
        rescore(found.values["metric"], wanted, stream=work.settings.tasks, run=run)
    else:
        from dmole_cli.stages.evaluate import Selection, evaluate
        from dmole_cli.verification.settings import chosen_routing

        chosen = chosen_routing(found).updated(split=found.split)
        parts["settings"] = work.settings.updated(evaluate=chosen)
        selection = Selection([found.after], [task], likelihood=found.kind is kinds.LIKELIHOOD)
        evaluate(method, selection, **parts)


def _show(chains: list[dict[str, Any]], problems: list[dict[str, str]], *, count: int, recomputed: int) -> None:
    for chain in chains:
        links = ", ".join(f"{n} {link}" if link == "evaluations" else link for link, n in chain["links"].items() if n)
        made = f" ({links})" if links else ""
        print(f"{chain['method']} {chain['task']}{made}: {chain['state']}".strip())
    for problem in problems:
        console.say(f"broken: {problem['problem']}")
        console.say(f"  -> {problem['repair']}", command=True)
    again = f", {recomputed} of them made again" if recomputed else ""
    if not problems:
        print(f"verified {count} artifacts{again}: nothing is broken")
