"""What D-MoLE and its ablations share: placed experts, a router per task, one earlier expert that may join.

Paper: arXiv 2506.11672, sections 4.1 to 4.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.router import read_router
from dmole_cli.errors import DmoleError
from dmole_cli.methods._overlap import overlap_penalty
from dmole_cli.methods.base import LoadedStage, Penalty, Routing, Stage, Training, needs_earlier
from dmole_cli.routing.autoencoder import batch_vote, from_tensors, top_candidates
from dmole_cli.settings.model import Config

# Weight of the penalty between a task's expert and the earlier ones (O-LoRA's, arXiv 2310.14152); off in the paper.
OPTIONS = {"orthogonal": 0.0}


def place(stage: Stage) -> dict[str, int]:
    """The sites of the task's allocation."""
    document = _allocation(stage)
    return {site: int(document["rank"]) for site in document["sites"]}


def scale(stage: Stage) -> float:
    """As allocated."""
    document = _allocation(stage)
    return float(document["alpha"]) / int(document["rank"])


def _allocation(stage: Stage) -> dict[str, Any]:
    name = stage.method.name
    option = "" if name == "d-mole" else f" --method {name}"
    hint = f"make it with: dmole allocate --task {stage.task}{option}"
    return read_allocation(stage.run.allocation(stage.task, name), hint=hint)[0]


def needs(stage: Stage) -> list[Path]:
    """The allocation; the earlier experts with their routers and the task's features, since one of them may join."""
    return [stage.run.allocation(stage.task, stage.method.name), *needs_to_join(stage)]


def needs_to_join(stage: Stage) -> list[Path]:
    """What decides which earlier expert joins, and those experts."""
    joining = [stage.run.features(stage.task)] if stage.earlier else []
    return [*joining, *(stage.run.router(task) for task in stage.earlier), *needs_earlier(stage)]


def settings(config: Config) -> dict[str, Any]:
    """Whether an earlier expert may join."""
    return {"transfer": config.train.transfer}


def joins(stage: LoadedStage) -> list[tuple[str, ...]]:
    """Per sample, of the earlier tasks whose threshold accepts it, the nearest (section 4.3, knowledge transfer)."""
    earlier = stage.earlier
    if not earlier or not stage.config.train.transfer:
        return [() for _ in stage.samples]
    hint = f"make it with: dmole train-router --task {stage.task}"
    ids, features, _ = read_features(stage.run.features(stage.task), hint=hint)
    if ids != [sample.sample_id for sample in stage.samples]:
        raise DmoleError(
            f"{stage.run.features(stage.task)} is stale: the task's samples have changed", f"{hint} --force"
        )
    files = [read_router(stage.run.router(t), hint=f"make it with: dmole train-router --task {t}") for t in earlier]
    columns = [from_tensors(f.tensors, decoder=f.decoder).losses(features).tolist() for f in files]
    thresholds = [f.threshold for f in files]
    rows = zip(*columns, strict=True)
    return [tuple(earlier[t] for t in top_candidates(row, thresholds, most=1)) for row in rows]


def penalty(stage: LoadedStage, training: Training) -> Penalty | None:
    """`--orthogonal`: the new expert keeps away from the row spaces of the earlier ones where they share a site."""
    return overlap_penalty(stage, training, weight=stage.options["orthogonal"])


def active(routing: Routing) -> list[tuple[str, ...]]:
    """The nearest tasks that accept a sample, at most two; the other modes are for comparison and diagnosis."""
    tasks, rows, thresholds = routing.tasks, routing.losses, routing.thresholds
    if routing.mode == "oracle":
        return [(routing.task,) if routing.task in tasks else () for _ in rows]
    if routing.mode == "always-all":
        return [tuple(tasks) for _ in rows]
    if routing.mode == "batch-vote":
        batches = [rows[i : i + routing.batch_size] for i in range(0, len(rows), routing.batch_size)]
        return [tuple(tasks[t] for t in batch_vote(batch, thresholds)) for batch in batches for _ in batch]
    most = 1 if routing.mode == "top-1" else 2
    return [tuple(tasks[t] for t in top_candidates(row, thresholds, most=most)) for row in rows]
