"""On a GPU: a layer, and training and generation with a model of two billion random parameters; bfloat16.

The sizes are those of InternVL2-2B. Rows with a unit in their name are not ratios. Without a GPU there are no rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.experts.expert import Expert
from dmole_cli.inference.decoding import generate
from pipelines.bench._models import (
    attached,
    half_of,
    linears,
    random_expert,
    random_samples,
    sharing_weights,
    vision_language,
)
from pipelines.bench._timing import Row, Variant, counted, interleaved, peak_bytes, timed
from pipelines.bench.step import TINY, Case, ours

TWO_BILLION = {"vision": (24, 1024), "language": (24, 2048), "words": 92_553, "side": 448}
TASKS = [str(number) for number in range(9)]
NEWEST = TASKS[-1]
BATCH, TOKENS = 8, 64
SETS = [(NEWEST, TASKS[i % 5]) for i in range(BATCH)]


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time and memory on the GPU; in tiny sizes on the CPU if there is no GPU."""
    if not torch.cuda.is_available() and not tiny:
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = rounds or (1 if tiny else 20)
    return [*_layer(device, rounds, tiny=tiny), *_model(device, rounds, tiny=tiny)]


def _clock(device: torch.device):
    """A clock that waits for all kernels launched so far."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def _peak(device: torch.device, function: Variant) -> float:
    """Peak memory of a call above the level before it, in bytes."""
    if device.type != "cuda":
        return peak_bytes(function)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def _moved(expert: Expert, device: torch.device) -> Expert:
    sites = {
        site: (
            a.detach().to(device).requires_grad_(expert.trainable),
            b.detach().to(device).requires_grad_(expert.trainable),
        )
        for site, (a, b) in expert.sites.items()
    }
    return Expert(sites, expert.scale, trainable=expert.trainable)


def _layer(device: torch.device, rounds: int, *, tiny: bool) -> list[Row]:
    """One layer of width 2048: 8 x 256 tokens forward and backward, and 8 x 1 token forward."""
    hidden, dtype = 16 if tiny else 2048, torch.bfloat16
    model = linears(1, hidden, dtype).to(device)
    twin = sharing_weights(model)
    experts = {
        n: _moved(random_expert(model, ["0"], seed=i, trainable=n == NEWEST), device) for i, n in enumerate(TASKS)
    }
    routed, trained = attached(twin, experts), list(experts[NEWEST].parameters())
    x = torch.randn(BATCH, 2 if tiny else 256, hidden, device=device, dtype=dtype, requires_grad=True)
    token, grad = x[:, :1].detach().contiguous(), torch.randn_like(x)
    variants = {
        "plain": lambda: torch.autograd.grad(model(x), [x], grad),
        "ours": lambda: torch.autograd.grad(twin(x), [x, *trained], grad),
        "plain step": torch.no_grad()(lambda: model(token)),
        "ours step": torch.no_grad()(lambda: twin(token)),
    }
    with routed.route(SETS, device=device, dtype=dtype):
        times = interleaved(variants, rounds=rounds, repeats=1 if tiny else 20, clock=_clock(device))
    return [
        timed("gpu: layer forward and backward over the plain linear", times, "ours", "plain"),
        timed("gpu: layer, decoding step over the plain linear", times, "ours step", "plain step"),
        counted("gpu: layer forward and backward, milliseconds", 1000 * min(times["ours"])),
        counted("gpu: layer, decoding step, milliseconds", 1000 * min(times["ours step"])),
    ]


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, new tensors are on this device, floating-point ones of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _model(device: torch.device, rounds: int, *, tiny: bool) -> list[Row]:
    """The model without experts, and with nine tasks' experts and mixed routes."""
    with _defaults(device, torch.bfloat16):
        backbone = vision_language(**(TINY if tiny else TWO_BILLION))
    names = [site.name for site in find_sites(backbone.model, "attention")]
    placed = {task: half_of(names, seed=i) for i, task in enumerate(TASKS)}
    tokens = 3 if tiny else TOKENS
    batch = random_samples(backbone, BATCH, text=4 if tiny else 64, answer=2 if tiny else 16, tiles=1)
    case = Case(backbone, placed, batch)
    experts = {task: _moved(expert, device) for task, expert in case.experts().items()}
    step = ours(case, experts, SETS)
    generating = {
        name: _generating(backbone, case, experts, tokens, routed=name == "ours") for name in ("plain", "ours")
    }
    peak = _peak(device, step)
    clock = _clock(device)
    times = interleaved({"step": step, **generating}, rounds=max(1, rounds // 4), clock=clock)
    length = sum(len(sample.tokens) for sample in batch)
    return [
        counted("gpu: training step, tokens per second", length / min(times["step"])),
        counted("gpu: training step, peak memory above the weights, GiB", peak / 2**30),
        counted("gpu: generating 8 answers with mixed routes, tokens per second", BATCH * tokens / min(times["ours"])),
        timed("gpu: generating with mixed routes over the plain model", times, "ours", "plain"),
    ]


def _generating(backbone: Backbone, case: Case, experts: dict[str, Expert], tokens: int, *, routed: bool) -> Variant:
    """Greedy answers of a fixed length; experts are attached during a call only."""

    def run() -> list[str]:
        layer = attached(backbone, experts)
        try:
            inputs, rows = backbone.collate(case.batch, left=True)
            sets = SETS if routed else [()] * len(SETS)
            with layer.route(sets, rows=rows, device=backbone.device, dtype=backbone.dtype):
                return generate(backbone, inputs, max_new_tokens=tokens, min_new_tokens=tokens, leave=layer.keep)
        finally:
            layer.close()

    return run
