"""The routed expert layer, forward and backward: 4 samples of 256 tokens, each with the newest of 9 experts and one earlier.

Compared with the plain frozen linear, with plain LoRA in peft (one expert for all samples), and with the reference's loop, which
runs the same two experts for the whole batch and so computes something else unless all samples have the same route.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dmole_cli.experts.expert import Expert
from pipelines.bench._models import RANK, SCALE, attached, linears, random_expert, sharing_weights
from pipelines.bench._reference import DROPOUT, looped_experts
from pipelines.bench._timing import Row, Variant, counted, interleaved, peak_bytes, timed

EXPERTS = [str(number) for number in range(9)]
NEWEST = EXPERTS[-1]
PAIRS = [(NEWEST, earlier) for earlier in ("0", "3", "3", "5")]  # sets of two, three distinct ones
ALONE = [(NEWEST,)] * len(PAIRS)  # the same expert for all samples
SPREAD = [(NEWEST,), ("0",), ("3",), ("5",)]  # a different expert for each sample
TARGETS = {
    896: (1.20, 1.00, 0.60),
    2048: (1.10, 1.00, 0.70),
}  # over plain, over peft, over the reference with its dropout
MEMORY, FLAT = 1.05, 1.10
ROUNDS = {896: 15, 2048: 7}


@dataclass(frozen=True)
class Case:
    """One layer in the middle of a network: its input requires gradients.

    Attributes:
        model: the layer, named `0`.
        experts: name -> expert; the newest trains.
        x: its input [samples, tokens, hidden].
        grad: gradient of its output, of the same shape.
    """

    model: nn.Sequential
    experts: dict[str, Expert]
    x: torch.Tensor
    grad: torch.Tensor

    @property
    def trained(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the newest expert."""
        return self.experts[NEWEST].sites["0"]


def case(hidden: int, tokens: int = 256, dtype: torch.dtype = torch.float32, *, rank: int = RANK) -> Case:
    """A layer, nine experts of the same rank and a batch."""
    torch.manual_seed(0)
    model = linears(1, hidden, dtype)
    experts = {
        name: random_expert(model, ["0"], seed=index, trainable=name == NEWEST, rank=rank)
        for index, name in enumerate(EXPERTS)
    }
    x = torch.randn(len(PAIRS), tokens, hidden, dtype=dtype, requires_grad=True)
    return Case(model, experts, x, torch.randn(len(PAIRS), tokens, hidden, dtype=dtype))


def plain(case: Case) -> Variant:
    """The frozen linear; gives (output, gradient of the input)."""

    def run() -> tuple[torch.Tensor, ...]:
        y = case.model(case.x)
        return y, *torch.autograd.grad(y, [case.x], case.grad)

    return run


def forward_backward(case: Case, model: nn.Sequential) -> tuple[torch.Tensor, ...]:
    """Output, gradients of the input and of the newest expert's A and B."""
    y = model(case.x)
    return y, *torch.autograd.grad(y, [case.x, *case.trained], case.grad)


def routed(case: Case, sets: list[tuple[str, ...]], names: list[str] = EXPERTS) -> Variant:
    """The routed layer; each call plans the batch anew."""
    model = sharing_weights(case.model)
    layer = attached(model, {name: case.experts[name] for name in names})

    def run() -> tuple[torch.Tensor, ...]:
        with layer.route(sets, dtype=case.x.dtype):
            return forward_backward(case, model)

    return run


def routed_peak(case: Case) -> int:
    """Peak memory of the routed layer without the batch's plan, because stacked matrices are weights, not activations."""
    model = sharing_weights(case.model)
    with attached(model, case.experts).route(PAIRS):
        return peak_bytes(lambda: forward_backward(case, model))


def looped(case: Case, names: tuple[str, ...], *, p: float) -> Variant:
    """The reference's layer."""

    def run() -> tuple[torch.Tensor, ...]:
        with looped_experts(case.model, case.experts, names, p=p):
            return forward_backward(case, case.model)

    return run


def peft_lora(case: Case) -> Variant:
    """The newest expert as a LoRA of peft."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, lora_dropout=0.0, target_modules=["0"])
    model = get_peft_model(sharing_weights(case.model), config)
    pair = {name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, p in pair.items():
            p.copy_(case.trained["lora_B" in name])

    def run() -> tuple[torch.Tensor, ...]:
        y = model(case.x)
        return y, *torch.autograd.grad(y, [case.x, *pair.values()], case.grad)

    return run


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time and memory at both widths, the cost of inactive experts, and time in bfloat16."""
    rows = _in_bfloat16(rounds, tiny=tiny)
    for hidden, (over_plain, over_peft, over_reference) in TARGETS.items():
        made = case(16, tokens=4) if tiny else case(hidden)
        variants = {
            "plain": plain(made),
            "ours": routed(made, PAIRS),
            "peft": peft_lora(made),
            "with dropout": looped(made, PAIRS[0], p=DROPOUT),
            "without dropout": looped(made, PAIRS[0], p=0.0),
            "one": routed(made, ALONE, [NEWEST]),
            "nine": routed(made, SPREAD),
        }
        peaks = {name: peak_bytes(variants[name]) for name in ("plain", "with dropout")} | {"ours": routed_peak(made)}
        times = interleaved(variants, rounds=rounds or (1 if tiny else ROUNDS[hidden]))
        at = f"hidden {hidden}"
        rows += [
            timed(f"layer {at}, 2 of 9 experts: time over the plain linear", times, "ours", "plain", over_plain),
            timed(f"layer {at}: time over the reference's loop", times, "ours", "with dropout", over_reference),
            timed(f"layer {at}: time over that loop without dropout", times, "ours", "without dropout"),
            timed(f"layer {at}: 9 experts in the layer over 1, one active", times, "nine", "one", FLAT),
            counted(f"layer {at}: peak memory over the plain linear", peaks["ours"] / peaks["plain"], MEMORY),
            counted(f"layer {at}: the reference's peak over the plain linear", peaks["with dropout"] / peaks["plain"]),
            timed(f"layer {at}: time over peft's LoRA, one expert", times, "ours", "peft", over_peft),
        ]
    return rows


def _in_bfloat16(rounds: int | None, *, tiny: bool) -> list[Row]:
    made = case(16, 4, torch.bfloat16) if tiny else case(2048, dtype=torch.bfloat16)
    variants = {"plain": plain(made), "ours": routed(made, PAIRS), "peft": peft_lora(made)}
    times = interleaved(variants, rounds=rounds or (1 if tiny else ROUNDS[2048]))
    against = {"plain": "the plain linear", "peft": "peft's LoRA, one expert"}
    return [
        timed(f"layer hidden 2048, bfloat16: time over {words}", times, "ours", name) for name, words in against.items()
    ]
