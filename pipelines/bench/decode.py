"""One decoding step of 8 samples x 1 token through layers of width 2048, 9 experts, two active per sample.

Compared with the plain layers and with peft's mixed batch, which allows one adapter per sample, so that each pair of experts
in the batch is built as one adapter of twice the rank beforehand.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from dmole_cli.experts.expert import Expert
from pipelines.bench._models import RANK, SCALE, attached, linears, random_expert, sharing_weights
from pipelines.bench._timing import Row, Variant, interleaved, timed

EXPERTS = [str(number) for number in range(9)]
PAIRS = [("8", earlier) for earlier in ("0", "3", "3", "5", "1", "0", "6", "2")]


def case(
    hidden: int, layers: int, dtype: torch.dtype = torch.float32
) -> tuple[nn.Sequential, dict[str, Expert], torch.Tensor]:
    """Layers, nine experts on each, and the hidden states of eight samples' last tokens [8, 1, hidden]."""
    torch.manual_seed(0)
    model = linears(layers, hidden, dtype)
    names = [str(i) for i in range(layers)]
    experts = {name: random_expert(model, names, seed=i) for i, name in enumerate(EXPERTS)}
    return model, experts, torch.randn(len(PAIRS), 1, hidden, dtype=dtype)


def plain(model: nn.Sequential, x: torch.Tensor) -> Variant:
    """The layers without experts."""
    return torch.no_grad()(lambda: model(x))


def routed(model: nn.Sequential, experts: dict[str, Expert], x: torch.Tensor) -> Variant:
    """The routed layer; the batch is planned once, as for a whole answer."""
    twin = sharing_weights(model)
    return _inside(attached(twin, experts).route(PAIRS, dtype=x.dtype), lambda: twin(x))


def peft_mixed(model: nn.Sequential, experts: dict[str, Expert], x: torch.Tensor) -> Variant:
    """peft with `adapter_names`; its hooks are registered once, as in its `generate`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2 * RANK, lora_alpha=2 * RANK * SCALE, lora_dropout=0.0, target_modules=[str(i) for i in range(len(model))]
    )
    first, *others = sorted(set(PAIRS))
    mixed = get_peft_model(sharing_weights(model), config, adapter_name="+".join(first))
    for pair in others:
        mixed.add_adapter("+".join(pair), config)
    with torch.no_grad():
        for pair in (first, *others):
            for i in range(len(model)):
                layer = mixed.base_model.model[i]
                blocks = [experts[name].sites[str(i)] for name in pair]
                layer.lora_A["+".join(pair)].weight.copy_(torch.cat([a for a, _ in blocks]))
                layer.lora_B["+".join(pair)].weight.copy_(torch.cat([b for _, b in blocks], dim=1))
    mixed.eval()
    hooks = mixed.base_model._enable_peft_forward_hooks(adapter_names=["+".join(pair) for pair in PAIRS])
    return _inside(hooks, lambda: mixed.base_model.model(x))


def _inside(block: AbstractContextManager, step: Variant) -> Variant:
    """A step inside a context that is entered once and lives as long as the returned function."""
    stack = ExitStack()
    stack.enter_context(block)

    @torch.no_grad()
    def run() -> object:
        assert stack
        return step()

    return run


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time of a step in one layer, whose weights stay in the cache, and in a stack, whose weights are read from memory."""
    rows = []
    whole, half = (1.12, 0.80), (None, None)
    for layers, dtype, words, (over_plain, over_peft) in (
        (1, torch.float32, "one layer", whole),
        (8, torch.float32, "stack of layers", whole),
        (8, torch.bfloat16, "stack of layers, bfloat16", half),
    ):
        model, experts, x = case(16, 2, dtype) if tiny else case(2048, layers, dtype)
        variants = {
            "plain": plain(model, x),
            "ours": routed(model, experts, x),
            "peft": peft_mixed(model, experts, x),
        }
        times = interleaved(variants, rounds=rounds or (1 if tiny else 11), repeats=1 if tiny else 16 // layers)
        name = f"decoding step, hidden 2048, {words}"
        rows.append(timed(f"{name}: time over the plain linear", times, "ours", "plain", over_plain))
        rows.append(timed(f"{name}: time over peft's mixed batch", times, "ours", "peft", over_peft))
    return rows
