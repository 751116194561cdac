"""Reimplementations of the reference's algorithms: what D-MoLE's public code computes, in the same order.

The benchmarks measure against them, and the tests compare results with them; nothing else uses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.backbones.backbone import Backbone, Encoded, pad
from dmole_cli.experts.expert import Expert
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.routing.rules import training_vote

DROPOUT = 0.05  # the reference's default


def looped_layer(
    base: torch.Tensor, x: torch.Tensor, blocks: Sequence[tuple[torch.Tensor, torch.Tensor]], *, scale: float, p: float
) -> torch.Tensor:
    """The expert layer: a loop over experts that adds to a buffer of zeros, with a dropout mask per expert over the whole input.

    Args:
        base: W x, which the sum is added to in place.
        x: the layer's input [rows, tokens, in].
        blocks: A and B of the experts that the batch voted for; they apply to every sample of the batch.
        scale: alpha / rank.
        p: probability of dropping an input feature.
    """
    added = torch.zeros_like(base)
    for a, b in blocks:
        added += F.linear(F.linear(F.dropout(x, p), a.to(x.dtype)), b.to(x.dtype))
    base += added * scale
    return base


@contextmanager
def looped_experts(
    model: nn.Module, experts: Mapping[str, Expert], voted: Sequence[str], *, p: float
) -> Iterator[None]:
    """Inside the block, a model's linear modules compute the reference's layer with the experts that the batch voted for."""
    hooks = []
    for site in sorted({site for name in voted for site in experts[name].sites}):
        here = [experts[name] for name in voted if site in experts[name].sites]

        def layer(module, args, output, here=here, site=site):
            return looped_layer(output, args[0], [e.sites[site] for e in here], scale=here[0].scale, p=p)

        hooks.append(model.get_submodule(site).register_forward_hook(layer))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def voted(
    backbone: Backbone, batch: Sequence[Encoded], routers: Mapping[str, Autoencoder], thresholds: Sequence[float]
) -> list[str]:
    """Route a batch as the reference does in every training step; gives the transfer expert's task, if any.

    The vision encoder sees only each sample's last tile, the language model only the instruction; max pooling includes
    padding, and the batch votes.
    """
    thumbnails = torch.stack([sample.vision["pixel_values"][-1] for sample in batch])
    image = backbone.vision(pixel_values=backbone.to_device(thumbnails)).last_hidden_state.amax(dim=1)
    tokens = pad([sample.instruction for sample in batch], backbone.tokenizer.pad_token_id, left=False)
    text = backbone.language(input_ids=backbone.to_device(tokens), use_cache=False).last_hidden_state.amax(dim=1)
    features = F.normalize(torch.cat([image, text], dim=-1), dim=-1)
    losses = torch.stack([router.losses(features) for router in routers.values()], dim=1)
    return [list(routers)[t] for t in training_vote(losses.tolist(), thresholds)]


def require_gradients(module: nn.Module, args: tuple, output):
    """A forward hook for embeddings that makes their output require gradients, although no trainable weight lies below."""
    states = output[0] if isinstance(output, tuple) else output
    if states.is_leaf:
        states.requires_grad_(True)
    return output
