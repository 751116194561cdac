"""The routed layer's hand-written backward pass (dmole_cli/experts/layer.py) against plain autograd.

    python pipelines/bench/run.py --only backward

The layer is that of `layer`, the training step that of `step`; both variants run in one process, interleaved. The last row counts
how many values of the trained expert differ after one step: both variants compute the same gradients in exact arithmetic, but
autograd adds the terms of an input's gradient in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.experts import routed
from dmole_cli.experts.routing_plan import GroupPlan
from pipelines.bench import layer, step
from pipelines.bench._timing import Row, Variant, counted, interleaved, peak_bytes, timed

HAND, AUTOGRAD = "hand-written", "autograd"
ROUNDS = {896: 15, 2048: 9}
STEP_ROUNDS = 9


def output_by_autograd(site: str, x: torch.Tensor, plan: GroupPlan, modules: list[nn.Linear]) -> torch.Tensor:
    """The same as `output_of`, site by site, with differentiable stacking and products."""
    index = plan.stack.sites.index(site)
    ranks, own = plan.stack.ranks[index], [found for found in plan.trained if found.site == index]
    trained = sum(len(found.a) for found in own)
    a = torch.cat([*(found.a.to(x.device, x.dtype) for found in own), plan.stack.a[ranks][trained:]])
    b = torch.cat([*(found.b.to(x.device, x.dtype).t() for found in own), plan.stack.b[index][trained:]])
    output = F.linear(x, modules[index].weight, modules[index].bias)
    columns = slice(plan.columns.start + ranks.start, plan.columns.start + ranks.stop)
    low = F.linear(x, a) * plan.scales.like(x, columns)
    return torch.addmm(output.flatten(0, -2), low.flatten(0, -2), b).view_as(output)


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Inside the block, routed layers leave their backward pass to autograd."""
    with mock.patch.object(routed, "output_of", output_by_autograd):
        yield


def both(make: Variant) -> dict[str, Variant]:
    """A function with the hand-written backward pass and with autograd's."""

    def by_autograd() -> object:
        with plain_autograd():
            return make()

    return {HAND: make, AUTOGRAD: by_autograd}


def steps(case: step.Case, *, checkpointing: bool) -> dict[str, Variant]:
    """A training step with each backward pass."""
    return both(step.ours(case, case.experts(), step.SETS, checkpointing=checkpointing))


def differing(case: step.Case) -> float:
    """Share of the trained expert's values that differ between both backward passes after one step from the same start."""
    trained = []
    for context in (nullcontext(), plain_autograd()):
        experts = case.experts()
        with context:
            step.ours(case, experts, step.SETS)()
        trained.append(torch.cat([p.detach().flatten() for p in experts[case.newest].parameters()]))
    return (trained[0] != trained[1]).float().mean().item()


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time and peak memory of the hand-written backward pass over those of autograd, and differing values."""
    rows = []
    for hidden, enough in ROUNDS.items():
        made = layer.case(16, tokens=4) if tiny else layer.case(hidden)
        variants = both(layer.routed(made, layer.PAIRS))
        rows += _compared(f"backward, layer hidden {hidden}", variants, rounds or (1 if tiny else enough))
    case = step.case(tiny=tiny)
    for name, checkpointing in (("training step", False), ("training step with checkpointing", True)):
        variants = steps(case, checkpointing=checkpointing)
        rows += _compared(f"backward, {name}", variants, rounds or (1 if tiny else STEP_ROUNDS))
    rows.append(counted("backward: share of a trained expert's values that differ after a step", differing(case)))
    return rows


def _compared(name: str, variants: dict[str, Variant], rounds: int) -> list[Row]:
    for function in variants.values():
        function()
    peaks = {variant: peak_bytes(function) for variant, function in variants.items()}
    times = interleaved(variants, rounds=rounds, warm=True)
    return [
        timed(f"{name}: time over autograd", times, HAND, AUTOGRAD),
        counted(f"{name}: peak memory over autograd", peaks[HAND] / peaks[AUTOGRAD]),
    ]
