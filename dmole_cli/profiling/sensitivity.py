"""Sensitivity of each site of the pretrained backbone to a task's loss.

score = || sum over batches b of grad L_b ||_2 / B, beside mean and standard deviation of the per-batch norms || grad L_b ||_2.
The norm of a bias is added to its weight's, as in the reference implementation (D-MoLE, arXiv 2506.11672, section 4.2; a
zero-cost proxy in the sense of arXiv 2101.08134). Only the gradients of candidate sites are computed, and the backward pass ends
at the lowest of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.artifacts.profile import SiteProfile
from dmole_cli.backbones.backbone import IGNORED, Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing, recomputing
from dmole_cli.backbones.sites import Site
from dmole_cli.errors import DmoleError
from dmole_cli.processes import ALONE, World
from dmole_cli.profiling.gradients import SampleNorms, SiteGradients
from dmole_cli.profiling.observing import Parts
from dmole_cli.profiling.passes import Pass


@dataclass(frozen=True)
class DetailedSiteProfile(SiteProfile):
    """Sensitivity of one site, with what is measured on request; None where it was not requested.

    Attributes:
        sample_norm_mean: mean over the samples of || grad of the sample's own loss ||.
        sample_norm_std: population standard deviation of these norms.
        spectrum: the largest singular values of the weight's accumulated gradient, divided by the number of batches; at most
            `gradients.SINGULAR_VALUES` of them, largest first.
    """

    sample_norm_mean: float | None = None
    sample_norm_std: float | None = None
    spectrum: tuple[float, ...] | None = None


def draw_batches(count: int, portion: float, batch_size: int, *, seed: int) -> list[list[int]]:
    """Draw a random subset of the rows 0..count-1 in batches of equal size; at least one batch.

    Args:
        count: number of rows.
        portion: share of the rows, 0 < portion <= 1.
        batch_size: maximum number of rows per batch, at least 1.
        seed: seed of the subset.

    Raises:
        DmoleError: portion or batch size is out of range.
    """
    if not 0 < portion <= 1 or batch_size < 1:
        raise DmoleError(
            f"invalid --portion {portion} or --batch-size {batch_size}",
            "use 0 < portion <= 1 and a batch size of at least 1",
        )
    wanted = max(1, round(count * portion))
    size = min(batch_size, wanted)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: wanted - wanted % size]
    return [rows.tolist() for rows in order.split(size)]


@dataclass(frozen=True)
class _Batch:
    """Gradient norms of one batch.

    Attributes:
        samples: number of its samples.
        norms: site -> norm of the batch's gradient.
        sample_norms: site -> norm of each sample's gradient; empty if they are not measured.
    """

    samples: int
    norms: Mapping[str, float]
    sample_norms: Mapping[str, Sequence[float]]


def measure_sensitivity(
    backbone: Backbone,
    sites: Sequence[Site],
    batches: Iterable[list[Encoded] | Pass],
    *,
    checkpointing: bool = False,
    per_sample: bool = False,
    spectrum: bool = False,
    processes: World = ALONE,
    count: int = 0,
) -> list[SiteProfile]:
    """Gradient norms of every site over encoded batches; the backbone is unchanged afterwards.

    Several processes give the same result as one, in each of them.

    Args:
        backbone: without experts attached.
        sites: candidate sites.
        batches: encoded samples with answers, or passes of several batches; all batches have equal weight. Of several
            processes, those that `World.own` assigns to this one.
        checkpointing: recompute activations in the backward pass: less memory, about a third more time, the same scores.
            Passes of several batches do so anyway.
        per_sample: also measure the gradient of each sample; the rows are `DetailedSiteProfile` then.
        spectrum: also measure the singular values of the accumulated gradients; the rows are `DetailedSiteProfile` then.
        processes: those that deal the batches, or passes, out among them.
        count: number of the batches, or passes, of several processes.

    Raises:
        DmoleError: a loss or a gradient is not finite.
    """
    names = [site.name for site in sites]
    gradients = SiteGradients(backbone, names, processes=processes)
    samples = SampleNorms(backbone, names) if per_sample else None
    own: list[list[_Batch]] = []
    with ExitStack() as stack:
        stack.enter_context(gradients.collecting())
        if samples is not None:
            stack.enter_context(samples.collecting())
        saving = False
        for index, batch in enumerate(batches):
            number = index * processes.size + processes.rank + 1
            one = batch if isinstance(batch, Pass) else Pass(number, [batch])
            if not saving and (checkpointing or len(one.batches) > 1):
                stack.enter_context(_recomputation(backbone, gradients, one))
                saving = True
            own.append(_measure(backbone, one, gradients, samples))
            gradients.end_round()
        if len(own) * processes.size < count:  # this process has no pass in the last round
            gradients.end_round()
    found = [batch for one in processes.combine(own) for batch in one]
    norms = gradients.sum_norms()
    spectra = gradients.sum_spectra() if spectrum else {}
    rows = [_row(site, norms[site.name], found, spectra.get(site.name), per_sample=per_sample) for site in sites]
    for row in rows:
        if not math.isfinite(row.score):
            raise DmoleError(
                f"the gradient of {row.site} is {row.score}",
                "profile with --dtype float32 or bfloat16, or check the task's data with `dmole tasks check`",
            )
    return rows


def _recomputation(backbone: Backbone, gradients: SiteGradients, one: Pass) -> AbstractContextManager[None]:
    # Launching its kernels limits a pass of several small batches, computing products one of a large batch.
    several = len(one.batches) > 1
    return recomputing(backbone, gradients.modules) if several else activation_checkpointing(backbone)


def _measure(backbone: Backbone, one: Pass, gradients: SiteGradients, samples: SampleNorms | None) -> list[_Batch]:
    """One forward and backward pass over the sum of the batches' losses."""
    sizes = [len(batch) for batch in one.batches]
    inputs, rows = backbone.collate([sample for batch in one.batches for sample in batch], left=False)
    answers = (inputs["labels"][:, 1:] != IGNORED).sum(dim=1).split(sizes)
    owners = {modality: index.cpu() for modality, index in rows.items()} if len(sizes) > 1 or samples else {}
    losses = _losses(backbone, inputs, [int(own.sum()) for own in answers])
    by_sample: AbstractContextManager[list[dict[str, list[float]]]] = nullcontext(
        [dict[str, list[float]]() for _ in sizes]
    )
    if samples is not None:
        by_sample = samples.backward(answers, Parts(torch.arange(sum(sizes)), owners))
    batches = Parts(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), owners)
    with by_sample as sample_norms, gradients.backward(batches) as norms:
        (torch.stack(losses).sum() * backbone.loss_scale).backward()
        values = torch.stack([loss.detach() for loss in losses]).tolist()
        for number, loss in enumerate(values, one.first):
            if not math.isfinite(loss):
                raise DmoleError(
                    f"the loss of profiling batch {number} is {loss}",
                    "check the task's data with `dmole tasks check`",
                )
    return [_Batch(*parts) for parts in zip(sizes, norms, sample_norms, strict=True)]


def _losses(backbone: Backbone, inputs: Mapping[str, torch.Tensor], answers: Sequence[int]) -> list[torch.Tensor]:
    """The loss of each batch of a pass, from the number of its answer tokens."""
    if len(answers) == 1:
        return [backbone.answer_loss(inputs)]
    logits, tokens = backbone.answer_logits(inputs)
    return [part.mean() for part in F.cross_entropy(logits.float(), tokens, reduction="none").split(answers)]


def _row(
    site: Site, total: float, batches: Sequence[_Batch], spectrum: Sequence[float] | None, *, per_sample: bool
) -> SiteProfile:
    norms = [batch.norms[site.name] for batch in batches]
    row = SiteProfile(
        site=site.name,
        modality=site.modality,
        block=site.block,
        kind=site.kind,
        in_features=site.in_features,
        out_features=site.out_features,
        parameters=site.parameters,
        score=total / len(norms),
        norm_mean=statistics.fmean(norms),
        norm_std=statistics.pstdev(norms),
        batches=len(norms),
        samples=sum(batch.samples for batch in batches),
    )
    details: dict[str, Any] = {}
    if per_sample:
        own = [norm for batch in batches for norm in batch.sample_norms[site.name]]
        details = {"sample_norm_mean": statistics.fmean(own), "sample_norm_std": statistics.pstdev(own)}
    if spectrum is not None:
        details["spectrum"] = tuple(value / len(norms) for value in spectrum)
    return DetailedSiteProfile(**asdict(row), **details) if details else row
