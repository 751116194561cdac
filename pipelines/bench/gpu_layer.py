"""On a GPU: one routed layer over the plain linear; bfloat16, width 2048, two of nine experts per sample.

8 x 256 tokens forward and backward, and a decoding step of 8 x 1 token. The batch is planned once. Both layers are also measured
as CUDA graphs, as training and decoding compute them: without the time that Python takes to launch kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmole_cli.inference.graphs import Graphs
from pipelines.bench._gpu import BATCH, NEWEST, TASKS, device_for, measure, routes
from pipelines.bench._models import attached, linears, random_expert, sharing_weights
from pipelines.bench._timing import Row, Variant

CALLS = 20  # timed together
FIGURES = {
    "": ("layer, 8 x 256 tokens forward and backward", 1.5),
    " captured": ("layer, 8 x 256 tokens forward and backward as a CUDA graph", 1.5),
    " step": ("layer, decoding step", None),
    " step captured": ("layer, decoding step as a CUDA graph", None),
}


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Time and kernels of the layer."""
    device = device_for(tiny=tiny)
    if device is None:
        return
    calls = 1 if tiny else CALLS
    with layers(device, tiny=tiny) as variants:
        makers = {name: lambda run=run: _repeated(run, calls) for name, run in variants.items()}
        makers |= {f"{name} captured": lambda make=make: _captured(make(), device) for name, make in makers.items()}
        found = measure(makers, device=device, rounds=rounds or (1 if tiny else CALLS))
        for suffix, (words, target) in FIGURES.items():
            name, ours, plain = f"gpu {words}", f"ours{suffix}", f"plain{suffix}"
            yield found.time(f"{name}: time over the plain linear", ours, plain, target)
            yield found.milliseconds(name, ours, calls=calls)
            yield found.launched_beyond(f"{name}: kernels beyond the plain linear", ours, plain, of=calls)


def _repeated(run: Variant, calls: int) -> Variant:
    def repeated() -> None:
        for _ in range(calls):
            run()

    return repeated


def _captured(run: Variant, device: torch.device) -> Variant:
    """The same as one CUDA graph; on the CPU as it is."""
    if device.type != "cuda":
        return run
    graphs = Graphs(device)
    run()
    graphs.capture("run", run)
    return lambda: graphs.replay("run")


@contextmanager
def layers(device: torch.device, *, tiny: bool) -> Iterator[dict[str, Variant]]:
    """The plain and the routed layer; the latter's batch is routed inside the block."""
    hidden, dtype = 16 if tiny else 2048, torch.bfloat16
    model = linears(1, hidden, dtype).to(device)
    own = sharing_weights(model)
    experts = {n: random_expert(model, ["0"], seed=i, trainable=n == NEWEST) for i, n in enumerate(TASKS)}
    trained = list(experts[NEWEST].parameters())
    x = torch.randn(BATCH, 2 if tiny else 256, hidden, device=device, dtype=dtype, requires_grad=True)
    token, grad = x[:, :1].detach().contiguous(), torch.randn_like(x)

    def forward_and_backward(layer: torch.nn.Module) -> None:
        for tensor in (x, *trained):
            tensor.grad = None
        layer(x).backward(grad)

    with attached(own, experts).route(routes(BATCH), device=device, dtype=dtype):
        yield {
            "plain": lambda: forward_and_backward(model),
            "ours": lambda: forward_and_backward(own),
            "plain step": torch.no_grad()(lambda: model(token)),
            "ours step": torch.no_grad()(lambda: own(token)),
        }
