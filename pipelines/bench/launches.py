"""Operators that a GPU would launch as kernels, counted on the CPU: per routed site, beyond the model without experts.

In a forward and backward pass of a training step, and in a decoding step, of a tiny InternVL in bfloat16 with nine experts. Each
sample uses the new one and an earlier one. What counts is every operator that reaches a backend, but no view and no allocation.
Planning the batch and casting the experts' matrices are part of a training step, clipping and the optimiser are not: PyTorch
handles the matrices of an expert together on a GPU, but one by one on a CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.training.loop import Batch, Schedule, Trainer
from pipelines.bench._gpu import NEWEST, case_of, random_internvl, routes
from pipelines.bench._models import attached
from pipelines.bench._stream import TRAIN_SETTINGS
from pipelines.bench._timing import Row, Variant, counted
from pipelines.bench.depth import forced_input_gradients
from pipelines.bench.step import RATE, TINY, Case

SIZES = TINY | {"vision": (6, 16), "language": (6, 32)}  # so many sites that what a batch costs once hardly counts
TRAINING, DECODING = 8.0, 3.0
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")
WAITING = ("_local_scalar_dense", "item")  # copies a number to the CPU


class Operators(TorchDispatchMode):
    """Counts operators inside a `with` block, also those of a backward pass.

    Attributes:
        counts: name -> number of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        """Count, and compute."""
        if computes(operator):
            self.counts[name_of(operator)] += 1
        return operator(*args, **(kwargs or {}))


def name_of(operator: torch._ops.OpOverload) -> str:
    """The name without namespace and overload."""
    return operator._schema.name.partition("::")[2]


def computes(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator launches a kernel: views and allocations do not."""
    view = any(value.alias_info is not None and not value.alias_info.is_write for value in operator._schema.returns)
    return not view and operator.namespace != "profiler" and name_of(operator) not in (*ALLOCATIONS, *WAITING)


def operators(function: Variant) -> Counter[str]:
    """The operators of a call."""
    with Operators() as found:
        function()
    return found.counts


def tiny_case() -> Case:
    """A model with 48 sites, and nine experts on half of them each."""
    return case_of(random_internvl(torch.device("cpu"), **SIZES), tiles=1, tiny=True)


def training(case: Case) -> dict[str, float]:
    """Operator -> calls per routed site in a forward and backward pass beyond those of the model without experts.

    With and without experts, the inputs of both towers require gradients, so that both backward passes end there.
    """
    backbone, experts = case.backbone, case.experts()
    routed = attached(backbone, {name: experts[name] for name in {*sum(routes(len(case.batch)), ())}})
    trainer = Trainer(backbone, routed, experts[NEWEST], schedule=Schedule(1, RATE, TRAIN_SETTINGS))
    batch = Batch([str(i) for i in range(len(case.batch))], routes(len(case.batch)), case.batch)

    def ours() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.forward_and_backward(batch)

    def plain() -> None:
        backbone.answer_loss(backbone.collate(case.batch, left=False)[0]).backward()

    with forced_input_gradients(backbone):
        ours()  # what is prepared once is no part of a step
        found = operators(ours)
        sites = sites_of(case, routed, ("vision", "language"))
        routed.close()
        return _per_site(found, operators(plain), sites)


def decoding(case: Case, answer: Callable[..., object] = generate) -> dict[str, float]:
    """Operator -> calls per routed site in a decoding step beyond those of the model without experts.

    Args:
        case: model, experts and samples.
        answer: as `generate`.
    """
    backbone = case.backbone
    routed = attached(backbone, case.experts())
    inputs, rows = backbone.collate(case.batch, left=True)

    def step(sets: list[tuple[str, ...]]) -> Counter[str]:
        def tokens(count: int) -> Counter[str]:
            with routed.route(sets, rows=rows, device=backbone.device, dtype=backbone.dtype):
                lengths = {"max_new_tokens": count, "min_new_tokens": count}
                return operators(partial(answer, backbone, inputs, **lengths, leave=routed.keep))

        tokens(3)
        more = tokens(5)
        more.subtract(tokens(4))
        return more

    found, without = step(routes(len(case.batch))), step([()] * len(case.batch))
    sites = sites_of(case, routed, ("language",))
    routed.close()
    return _per_site(found, without, sites)


def sites_of(case: Case, routed: RoutedExperts, towers: tuple[str, ...]) -> int:
    """Number of sites of these towers with an active expert."""
    active = {name for names in routes(len(case.batch)) for name in names}
    found = {site for name in active for site in case.placed[name]}
    return sum(routed.modality_of(site) in towers for site in found)


def _per_site(found: Counter[str], plain: Counter[str], sites: int) -> dict[str, float]:
    """Calls beyond those without experts, divided; fewer of an operator count as negative."""
    return {name: (found[name] - plain[name]) / sites for name in sorted(found | plain) if found[name] != plain[name]}


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """The counts; they do not depend on `rounds`, and the sizes are always tiny."""
    case = tiny_case()
    words = "operators per routed site"
    return [
        counted(f"{words}, training step, forward and backward", sum(training(case).values()), TRAINING),
        counted(f"{words}, decoding step", sum(decoding(case).values()), DECODING),
    ]
