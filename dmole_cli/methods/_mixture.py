"""What D-MoLE and its ablations share: a router per task, and at most one earlier expert that transfers to a training sample.

Paper: arXiv 2506.11672, sections 4.1 to 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.allocation import ranks_of, read_allocation, scale_of
from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.router import read_router
from dmole_cli.methods._overlap import overlap_penalty
from dmole_cli.methods.base import LoadedContext, Method, Option, Routing, TaskContext, Training

if TYPE_CHECKING:
    from dmole_cli.settings.model import Settings
    from dmole_cli.training.loop import Penalty


class RoutedMixture(Method):
    """Experts that routers choose per sample, on every candidate site."""

    paper = "https://arxiv.org/abs/2506.11672"
    options = {
        "orthogonal": Option(
            0.0, "Weight of O-LoRA's penalty (arXiv 2310.14152) between new and earlier experts; not in the paper."
        )
    }
    uses_routers = True
    uses = frozenset({"train.transfer", "train.training_vote"})

    def inputs(self, context: TaskContext) -> list[Path]:
        """The earlier experts with their routers, and the task's features: they decide which expert transfers."""
        features = [context.run.features(context.task)] if context.earlier else []
        routers = [context.run.router(task) for task in context.earlier]
        return [*features, *routers, *(context.run.expert(task, self.name) for task in context.earlier)]

    def header_settings(self, settings: Settings) -> dict[str, Any]:
        """Those of a uniform placement, and those of the transfer expert."""
        return {**super().header_settings(settings), **_transfer_settings(settings)}

    def transfer_experts(self, context: LoadedContext) -> list[tuple[str, ...]]:
        """For each sample the nearest of the earlier tasks whose threshold accepts it (section 4.3, knowledge transfer).

        Raises:
            DmoleError: features or a router are missing, or the features are stale.
        """
        from dmole_cli.routing.rules import top_candidates

        train, earlier = context.settings.train, context.earlier
        if not earlier or not train.transfer or train.training_vote == "batch":
            return [()] * len(context.samples)
        rows, thresholds = _earlier_losses(context)
        return [tuple(earlier[t] for t in top_candidates(row, thresholds, most=1)) for row in rows]

    def voted_experts(self, context: LoadedContext, batches: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
        """With `training_vote = "batch"`, the earlier task that each batch votes for, as in the reference implementation.

        Raises:
            DmoleError: features or a router are missing, or the features are stale.
        """
        from dmole_cli.routing.rules import training_vote

        train, earlier = context.settings.train, context.earlier
        if not earlier or not train.transfer or train.training_vote != "batch":
            return [()] * len(batches)
        rows, thresholds = _earlier_losses(context)
        votes = (training_vote([rows[i] for i in batch], thresholds) for batch in batches)
        return [tuple(earlier[t] for t in voted) for voted in votes]

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """`orthogonal` x the overlap of row spaces with the earlier experts, at the sites that they share."""
        return overlap_penalty(context, training, weight=context.options["orthogonal"])

    def active_experts(self, routing: Routing) -> list[tuple[str, ...]]:
        """The nearest tasks whose threshold accepts a sample, at most two; other modes are other rules, or diagnoses."""
        from dmole_cli.routing.rules import as_trained, batch_vote, top_candidates

        tasks, rows, thresholds = routing.tasks, routing.losses, routing.thresholds
        if routing.mode == "oracle":
            return [(routing.task,) if routing.task in tasks else () for _ in rows]
        if routing.mode == "always-all":
            return [tuple(tasks) for _ in rows]
        if routing.mode == "batch-vote":
            batches = [rows[i : i + routing.batch_size] for i in range(0, len(rows), routing.batch_size)]
            return [tuple(tasks[t] for t in batch_vote(batch, thresholds)) for batch in batches for _ in batch]
        if routing.mode == "as-trained":
            return [tuple(tasks[t] for t in as_trained(row, thresholds)) for row in rows]
        most = 1 if routing.mode == "top-1" else 2
        return [tuple(tasks[t] for t in top_candidates(row, thresholds, most=most)) for row in rows]


class AllocatedMixture(RoutedMixture):
    """Experts that routers choose per sample, on the sites and at the ranks that `dmole allocate` chose (section 4.2)."""

    uses_allocation = True

    def placement(self, context: LoadedContext) -> dict[str, int]:
        """The sites of the task's allocation, at their ranks."""
        return ranks_of(self._allocation(context))

    def scale(self, context: TaskContext) -> float:
        """alpha / rank of the task's allocation."""
        return scale_of(self._allocation(context))

    def _allocation(self, context: TaskContext) -> dict[str, Any]:
        return read_allocation(context.run.allocation(context.task, self.name))[0]

    def inputs(self, context: TaskContext) -> list[Path]:
        """The allocation, and what decides which earlier expert transfers."""
        return [context.run.allocation(context.task, self.name), *super().inputs(context)]

    def header_settings(self, settings: Settings) -> dict[str, Any]:
        """Those of the transfer expert; the allocation is an input with settings of its own."""
        return _transfer_settings(settings)


def _transfer_settings(settings: Settings) -> dict[str, Any]:
    """Whether and how an earlier expert may transfer, for headers."""
    train = settings.train
    # Recorded only where it differs from the default: headers of experts made before the setting existed stay equal.
    vote = {"training_vote": train.training_vote} if train.transfer and train.training_vote != "sample" else {}
    return {"transfer": train.transfer, **vote}


def _earlier_losses(context: LoadedContext) -> tuple[list[list[float]], list[float]]:
    """Reconstruction errors of the training samples under the earlier tasks' routers [samples][routers], and the thresholds.

    Raises:
        DmoleError: features or a router are missing, or the features are stale.
    """
    from dmole_cli.routing.autoencoder import from_tensors

    path = context.run.features(context.task)
    ids, features, _ = read_features(path)
    if ids != [sample.sample_id for sample in context.samples]:
        raise StaleArtifact(path, "the task's samples have changed")
    routers = [read_router(context.run.router(task)) for task in context.earlier]
    columns = [from_tensors(r.tensors, decoder=r.decoder).losses(features).tolist() for r in routers]
    return [list(row) for row in zip(*columns, strict=True)], [router.threshold for router in routers]
