"""Problems of a run directory as `dmole status` and `dmole verify` report them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.cli.hints import repair
from dmole_cli.cli.workspace import Workspace

if TYPE_CHECKING:
    from dmole_cli.verification.inspection import Problem


def with_repair(work: Workspace, problem: Problem) -> dict[str, str]:
    """JSON values: the artifact, what is wrong with it, and the command that mends it, with the options of this command."""
    text = repair(problem.error, work.run, work.typed, type(work.settings), before=problem.before)
    return {"path": str(problem.path), "problem": problem.error.message, "repair": text}
