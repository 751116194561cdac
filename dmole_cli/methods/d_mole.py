"""D-MoLE: experts where a task pulls, a router per task, only the new expert trains. Paper: arXiv 2506.11672."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.layout import Run
from dmole_cli.artifacts.router import read_router
from dmole_cli.config import Config
from dmole_cli.errors import DmoleError
from dmole_cli.experts.autoencoder import batch_vote, from_tensors, top_candidates
from dmole_cli.methods.contract import Routing, Stage, every_cell

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = True
cells = every_cell


def place(stage: Stage) -> dict[str, int]:
    """The sites of the task's allocation."""
    path = stage.run.allocation(stage.task)
    document, _ = read_allocation(path, hint=f"make it with: dmole allocate --task {stage.task}")
    return {site: int(document["rank"]) for site in document["sites"]}


def scale(stage: Stage) -> float:
    """As allocated."""
    document, _ = read_allocation(
        stage.run.allocation(stage.task), hint=f"make it with: dmole allocate --task {stage.task}"
    )
    return float(document["alpha"]) / int(document["rank"])


def needs(run: Run, tasks: Sequence[str], task: str) -> list[Path]:
    """The allocation; the earlier experts with their routers and the task's features, since one of them may join."""
    earlier = tasks[: list(tasks).index(task)]
    joining = [run.features(task)] if earlier else []
    return [run.allocation(task), *joining, *(run.router(t) for t in earlier), *(run.expert(t) for t in earlier)]


def settings(config: Config) -> dict[str, Any]:
    """Whether an earlier expert may join."""
    return {"transfer": config.train.transfer}


def start(tasks: Sequence[str], task: str) -> str | None:
    """Every task starts afresh."""
    return None


def joins(stage: Stage) -> list[tuple[str, ...]]:
    """Per sample, of the earlier tasks whose threshold accepts it, the nearest (section 4.3, knowledge transfer)."""
    earlier = stage.config.earlier(stage.task)
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
