"""Sensitivity of every candidate site."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch

from dmole_cli.artifacts.profile import SiteProfile
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.sites import Site
from dmole_cli.errors import DmoleError
from dmole_cli.profiling.gradients import SampleNorms, SiteGradients


@dataclass(frozen=True)
class SampledSiteProfile(SiteProfile):
    """Sensitivity of one site, with the norms of single samples' gradients beside those of batches.

    Attributes:
        sample_norm_mean: mean over the samples of || grad of the sample's own loss ||.
        sample_norm_std: their population standard deviation.
    """

    sample_norm_mean: float
    sample_norm_std: float


def draw_batches(count: int, portion: float, batch_size: int, *, seed: int) -> list[list[int]]:
    """Draw a seeded subset of `portion` of the rows in batches of equal size; at least one batch.

    Raises:
        DmoleError: the portion is not in (0, 1], or the batch size is below 1.
    """
    if not 0 < portion <= 1 or batch_size < 1:
        raise DmoleError(
            f"--portion {portion} with --batch-size {batch_size} cannot be",
            "use 0 < portion <= 1 and a batch size from 1",
        )
    wanted = max(1, round(count * portion))
    size = min(batch_size, wanted)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: wanted - wanted % size]
    return [rows.tolist() for rows in order.split(size)]


def measure_sensitivity(
    backbone: Backbone,
    sites: list[Site],
    batches: Iterable[list[Encoded]],
    *,
    checkpointing: bool = False,
    per_sample: bool = False,
) -> list[SiteProfile]:
    """Gradient norms of every site over encoded batches with answers; the backbone is left as it was.

    Args:
        backbone: with no expert attached.
        sites: the candidates.
        batches: encoded, with answers; each counts the same.
        checkpointing: keep the inputs of the towers' blocks alone and compute what lies between again on the way back:
            a fraction of the memory for about a third more time, and the same scores.
        per_sample: measure each sample's own gradient as well; the rows are `SampledSiteProfile` then.

    Raises:
        DmoleError: a loss or a gradient is not finite.
    """
    names = [site.name for site in sites]
    gradients = SiteGradients(backbone.model, names, scale=backbone.loss_scale)
    samples = SampleNorms(backbone, names) if per_sample else None
    count = 0
    with (
        gradients.collected(),
        activation_checkpointing(backbone) if checkpointing else nullcontext(),
        nullcontext() if samples is None else samples.watched(),
    ):
        for number, batch in enumerate(batches, start=1):
            inputs, rows = backbone.collate(batch, left=False)
            loss = backbone.answer_loss(inputs)
            if not math.isfinite(loss.item()):
                raise DmoleError(
                    f"the loss of profiling batch {number} is {loss.item()}",
                    "check the task's data with `dmole tasks --check`",
                )
            count += len(batch)
            with nullcontext() if samples is None else samples.batch(inputs["labels"], rows), gradients.batch():
                (loss * backbone.loss_scale).backward()
            # Its graph lies in pieces between the tensors' holes in memory, which the next batch could not fill otherwise.
            del loss
    found = [_row(site, gradients.sums(site.name), gradients.norms[site.name], count) for site in sites]
    for row in found:
        if not math.isfinite(row.score):
            raise DmoleError(
                f"the gradient of {row.site} is {row.score}",
                "profile with --dtype float32 or bfloat16, or check the task's data with `dmole tasks --check`",
            )
    return found if samples is None else [_sampled(row, samples.norms[row.site]) for row in found]


def _row(site: Site, sums: list[torch.Tensor], norms: list[float], samples: int) -> SiteProfile:
    return SiteProfile(
        site=site.name,
        modality=site.modality,
        block=site.block,
        kind=site.kind,
        in_features=site.in_features,
        out_features=site.out_features,
        parameters=site.parameters,
        score=sum(total.norm().item() for total in sums) / len(norms),
        norm_mean=statistics.fmean(norms),
        norm_std=statistics.pstdev(norms),
        batches=len(norms),
        samples=samples,
    )


def _sampled(row: SiteProfile, norms: list[float]) -> SampledSiteProfile:
    return SampledSiteProfile(
        **asdict(row), sample_norm_mean=statistics.fmean(norms), sample_norm_std=statistics.pstdev(norms)
    )
