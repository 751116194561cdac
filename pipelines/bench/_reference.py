"""The reference's algorithms in our own words: what D-MoLE's public code computes, in the order in which it does so.

They are here to be measured against and checked against, not to be used.
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
from dmole_cli.routing.rules import batch_vote

DROPOUT = 0.05  # as shipped


def looped_layer(
    base: torch.Tensor, x: torch.Tensor, blocks: Sequence[tuple[torch.Tensor, torch.Tensor]], *, scale: float, p: float
) -> torch.Tensor:
    """The expert layer: a buffer of zeros, then expert by expert, each with its own dropout mask over the whole input.

    Args:
        base: W x, which the sum is added to in place.
        x: the layer's input [rows, tokens, in].
        blocks: A and B of the experts that were voted for; they serve every sample of the batch.
        scale: alpha / rank.
        p: probability of dropping an input.
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
    """Let a model's linear modules run as the reference's do, with the experts that the batch has voted for."""
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
    """Route a batch as the reference does in every training step; gives the earlier task that joins, if any.

    The vision encoder runs over each sample's last tile alone, the language model over the instructions alone; the maximum
    over tokens is taken over padding, too, and the batch votes.
    """
    thumbnails = torch.stack([sample.vision["pixel_values"][-1] for sample in batch])
    sight = backbone.vision(pixel_values=thumbnails).last_hidden_state.amax(dim=1)
    tokens = pad([sample.instruction for sample in batch], backbone.tokenizer.pad_token_id, left=False)
    text = backbone.language(input_ids=tokens, use_cache=False).last_hidden_state.amax(dim=1)
    features = F.normalize(torch.cat([sight, text], dim=-1), dim=-1)
    losses = torch.stack([router.losses(features) for router in routers.values()], dim=1)
    return [list(routers)[t] for t in batch_vote(losses.tolist(), thresholds)[:1]]


def take_gradients(module: nn.Module, args: tuple, output):
    """A forward hook for embeddings: what comes out of them takes gradients, though nobody needs any."""
    states = output[0] if isinstance(output, tuple) else output
    if states.is_leaf:
        states.requires_grad_(True)
    return output
