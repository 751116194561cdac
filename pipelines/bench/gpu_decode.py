"""On a GPU: greedy answers of 64 tokens for 8 and for 64 samples with mixed routes; a random 2-billion InternVL in bfloat16.

Samples have one tile and 64 tokens of text; their batch is on the device beforehand. Each call has other routes. Compared with
the same loop over the plain model, with transformers' `generate` of the plain model, and with the time to read the weights of
the language model and its output head once per token, which is that of a copy on the device of half as many bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.experts.expert import Expert
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.static_decoding import static_decoder
from pipelines.bench._gpu import BATCH, TEXT, Measured, all_cores, case_of, device_for, measure, routes, two_billion
from pipelines.bench._models import attached, random_samples, twin
from pipelines.bench._timing import Row, Variant
from pipelines.bench.step import Case

TOKENS = 64
# Number of samples -> targets: over the plain model in the same loop, over transformers' `generate`.
SIZES = {8: (1.05, 0.25), 64: (None, 0.40)}


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Time and kernels."""
    device = device_for(tiny=tiny)
    if device is None:
        return
    tokens = 2 if tiny else TOKENS
    case = case_of(two_billion(device, tiny=tiny), tiles=1, tiny=tiny)
    with all_cores(device):
        for count, targets in SIZES.items():
            samples = BATCH if tiny else count
            batch = random_samples(case.backbone, samples, text=4 if tiny else TEXT, answer=0, tiles=1, seed=3)
            found = measure(variants(case, batch, tokens), device=device, rounds=rounds or (1 if tiny else 3))
            name = f"gpu decoding, {TOKENS} tokens for {count} samples"
            yield found.time(f"{name}: time over the plain model in the same loop", "ours", "plain", targets[0])
            yield found.time(f"{name}: time over transformers' generate", "ours", "transformers", targets[1])
            yield found.time(f"{name}: time over reading the weights once per token", "ours", "reading")
            yield from _figures(name, found, samples * tokens, tokens)


def _figures(name: str, found: Measured, generated: int, tokens: int) -> Iterator[Row]:
    yield found.figure(f"{name}: generated tokens per second", ("ours",), lambda one: generated / found.median(one))
    for variant in ("ours", "plain", "transformers", "reading"):
        yield found.milliseconds(f"{name}, {variant}", variant)
    for variant in ("ours", "plain", "transformers"):
        yield found.gibibytes(f"{name}, {variant}", variant)
    for variant in ("ours", "plain"):
        yield found.launched(f"{name}, {variant}: kernels per token", variant, of=tokens)
        yield found.busy(f"{name}, {variant}", variant)


def variants(case: Case, batch: list[Encoded], tokens: int) -> dict[str, Callable[[], Variant]]:
    """Name -> maker of a function that generates so many tokens for every sample."""
    backbone = case.backbone
    return {
        "ours": lambda: routed(backbone, case.experts(), batch, tokens),
        "plain": lambda: plain(backbone, batch, tokens),
        "transformers": lambda: of_transformers(backbone, batch, tokens),
        "reading": lambda: reading(backbone, tokens),
    }


def routed(backbone: Backbone, experts: dict[str, Expert], batch: list[Encoded], tokens: int) -> Variant:
    """Answers with experts that stay attached; the routes move on by one sample from call to call."""
    own = twin(backbone)
    layer = attached(own, {name: frozen(expert) for name, expert in experts.items()})
    inputs, rows = own.collate(batch, left=True)
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    decoder, shifts = static_decoder(own, layer), itertools.count()

    def run() -> list[str]:
        sets = routes(len(batch), next(shifts))
        with layer.route(sets, rows=rows, device=own.device, dtype=own.dtype, every=decoder is not None):
            return generate(own, inputs, **limits, leave=layer.keep, decoder=decoder)

    return run


def frozen(expert: Expert) -> Expert:
    """An expert as `evaluate` reads it."""
    return Expert({site: (a.detach(), b.detach()) for site, (a, b) in expert.sites.items()}, expert.scale)


def plain(backbone: Backbone, batch: list[Encoded], tokens: int) -> Variant:
    """Answers of the model without experts, by the same function."""
    own = twin(backbone)
    inputs, _ = own.collate(batch, left=True)
    decoder = static_decoder(own)
    return lambda: generate(own, inputs, max_new_tokens=tokens, min_new_tokens=tokens, decoder=decoder)


def of_transformers(backbone: Backbone, batch: list[Encoded], tokens: int) -> Variant:
    """Answers of the model without experts, by transformers."""
    own = twin(backbone)
    inputs, _ = own.collate(batch, left=True)
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return torch.no_grad()(
        lambda: own.model.generate(**inputs, **lengths, do_sample=False, pad_token_id=own.inputs.pad_token_id)
    )


def reading(backbone: Backbone, tokens: int) -> Variant:
    """Copies that move as many bytes as one token's weights: each byte of the source is read, and one is written."""
    table = backbone.language.get_input_embeddings().weight
    weights = [p for p in backbone.language.parameters() if p is not table]
    weights.append(backbone.model.get_output_embeddings().weight)
    moved = sum(weight.numel() * weight.element_size() for weight in weights)
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=backbone.device)
    target = torch.empty_like(source)

    def run() -> None:
        for _ in range(tokens):
            target.copy_(source)

    return run
