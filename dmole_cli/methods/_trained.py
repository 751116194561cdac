"""What a method has trained in a run, and the artifacts that its predictions use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.labels import routing_options
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import DataDigests, check_inputs
from dmole_cli.errors import DmoleError
from dmole_cli.methods._stream import require_stream
from dmole_cli.methods.base import Method, Routing
from dmole_cli.settings.model import EvaluateSettings, Settings


def trained_tasks(rules: Method, settings: Settings, run: Run) -> int:
    """Number of tasks of the stream that a method has trained, without a gap."""
    training = set(rules.trained_tasks(settings.tasks))
    done = [task not in training or run.expert(task, rules.name).exists() for task in settings.tasks]
    return (done.index(False) if False in done else len(done)) if training else 0


def experts_in_use(rules: Method, trained: Sequence[str], task: str, chosen: EvaluateSettings) -> Sequence[str]:
    """The tasks whose experts may answer a sample: with routers all trained ones, else those that are active."""
    if not trained or rules.uses_routers:
        return trained
    [used] = rules.active_experts(Routing(trained, task, [[]], [], chosen.routing, chosen.batch_size))
    return used


def routing_files(rules: Method, run: Run, task: str) -> list[Path]:
    """Artifacts of a trained task by which experts are chosen or weighted: its router, or what the method stored of it."""
    if rules.uses_routers:
        return [run.router(task)]
    return [run.memory(task, rules.name)] if rules.weighted else []


def refuse_unused_routing(rules: Method, chosen: EvaluateSettings) -> None:
    """Refuse routing options for a method that has no routers.

    Raises:
        DmoleError: as described.
    """
    if not rules.uses_routers and routing_options(chosen):
        raise DmoleError(
            f"method {rules.name} has no routers", "use --routing and --threshold-scale with methods that have routers"
        )


def digests_of_used(
    rules: Method, settings: Settings, run: Run, *, after: int, task: str, fingerprint: str, data: DataDigests
) -> dict[str, str]:
    """Digests of what predictions may use, under their names in headers; refuses stale artifacts.

    These are experts, routers, and of weighted experts what the method stored of their tasks.

    Args:
        rules: the method.
        settings: with the stream.
        run: the run directory.
        after: number of trained tasks.
        task: of the samples; only methods that train each task alone depend on it.
        fingerprint: of the backbone.
        data: digests of the splits as they are now.

    Raises:
        ArtifactError: an expert or a router is missing, stale or another backbone's.
    """
    if after == 0:
        return {}
    trained = settings.tasks[:after]
    used = experts_in_use(rules, trained, task, settings.evaluate)
    experts: list[Path] = [run.expert(name, rules.name) for name in used]
    for path in experts:
        if not path.exists():
            raise MissingArtifact(path, f"method {rules.name} has not been trained on the first {after} task(s)")
    # Also those that the used ones were trained from.
    require_stream(rules, settings, run, used if rules.protocol == "per-task" else trained)
    routing = [path for name in used for path in routing_files(rules, run, name)]
    return check_inputs(run, [*experts, *routing], fingerprint=fingerprint, data=data)
