"""`dmole experts list`."""

from __future__ import annotations

from dataclasses import asdict

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.usage import Usage
from dmole_cli.cli import console
from dmole_cli.cli.derive import MODEL
from dmole_cli.cli.experts import LastOption, shelf_of
from dmole_cli.cli.shared_options import MethodOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = (*MODEL, "shared")
WRITES = False


def run(work: Workspace, *, method: MethodOption = D_MOLE, last: LastOption = None) -> None:
    """List the experts of a run."""
    from dmole_cli.reports.expert_tables import show_experts
    from dmole_cli.reports.experts import dominating

    usage = Usage(work.run.usage(method)).counts(last)
    rows = shelf_of(work, method).rows(usage)
    heavy, unused = dominating(rows, usage)
    balance = work.repeating(" ".join(["dmole train-router --balance 1", *(f"--task {name}" for name in heavy)]))
    if work.json:
        requests = {"requests": usage.requests, "without_expert": usage.without_expert}
        even = {"dominating": heavy, "unused": unused, "next": balance if heavy else ""}
        console.data({"experts": [asdict(row) for row in rows], "activation": requests, **even})
        return
    show_experts(rows, usage)
    if heavy:
        answered = usage.requests - usage.without_expert
        shares = ", ".join(f"{name} in {usage.experts[name] / answered:.0%}" for name in heavy)
        console.say(
            f"some experts dominate: of the requests with an expert, {shares} used it; never used: {', '.join(unused)}"
        )
        console.say(f"next: {balance}", command=True)
