"""`dmole serve`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE, EXPERT, ROUTER
from dmole_cli.artifacts.usage import Usage
from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, MODEL
from dmole_cli.cli.shared_options import MethodOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError
from dmole_cli.settings.record import FILE as RECORD

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dmole_cli.inference.answering import Trained
    from dmole_cli.serving.service import Source

SETTINGS = (
    "serve",
    *(f"evaluate.{name}" for name in ("routing", "threshold_scale")),
    *MODEL,
    "data_root",
    "shared",
    "cuda_graphs",
)
WRITES = False
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")

KEY = "Bearer token that requests must have; better in the environment, where other users cannot see it."
KeyOption = Annotated[
    str | None, typer.Option("--api-key", envvar="DMOLE_API_KEY", help=KEY, metavar="KEY", rich_help_panel=HOW)
]


def run(work: Workspace, *, method: MethodOption = D_MOLE, api_key: KeyOption = None) -> None:
    """Answer questions over HTTP, in the shape of OpenAI's chat completions."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise DmoleError(f"dmole serve needs {', '.join(missing)}", "pip install 'dmole[serve]'")
    from dmole_cli.serving.server import leave_a_core, listen, serve
    from dmole_cli.serving.service import Service
    from dmole_cli.stages.answer import answering

    if work.settings.evaluate.routing == "batch-vote":
        raise DmoleError(
            "with the routing batch-vote, an answer depends on the requests of the same time",
            "choose another --routing",
        )
    chosen = work.settings.serve
    leave_a_core(work.model.device)
    listening = listen(chosen.host, chosen.port)
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    with listening, answering(method, **work.parts) as opened:
        service = Service(
            opened,
            _source(work, method),
            settings=chosen,
            usage=Usage(work.run.usage(method)),
            log=lambda line: console.say(f"serve: {line}"),
        )

        def ready() -> None:
            experts = ", ".join(opened.trained.tasks) or "none"
            console.say(f"serve: {url}/v1 ({work.settings.backbone}; experts: {experts}); Ctrl-C ends it")
            if work.json:
                console.data({"url": url, "models": [card["id"] for card in service.models]})
                sys.stdout.flush()  # a program that started the service waits for it

        serve(service, listening, api_key=api_key, ready=ready)
    console.say("serve: ended; all accepted requests were answered")


def _source(work: Workspace, method: str) -> Source:
    """The experts of the run directory, as they are whenever they are read."""
    from dmole_cli.serving.service import Source
    from dmole_cli.stages.answer import trained

    def state() -> Hashable:
        folders = {work.run.path(kind, task="task", method=method).parent for kind in (EXPERT, ROUTER)}
        files = [work.run.root / RECORD, *(path for folder in folders for path in folder.glob("*.safetensors"))]
        found = [(path, path.stat()) for path in files if path.exists()]
        return tuple(sorted((str(path), status.st_mtime_ns, status.st_size) for path, status in found))

    def read() -> Trained:
        now = work.reopen()
        return trained(method, settings=now.settings, data=now.data, model=work.model, run=now.run)

    return Source(work.settings.backbone, read, state)
