"""Activation checkpointing of the transformer blocks of both towers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import blocks_of


@contextmanager
def activation_checkpointing(backbone: Backbone, *, random: bool = False) -> Iterator[None]:
    """Inside the context, backward passes recompute the activations of the blocks of both towers.

    `gradient_checkpointing_enable` of transformers works in training mode only, where a model may apply dropout, and its
    hooks make the input embeddings require gradients, so that the backward pass no longer ends at the lowest module that
    needs it. The last block of the language model is not checkpointed: the backward pass starts with it, so that
    recomputing it would take time and save no memory.

    Args:
        backbone: frozen.
        random: whether blocks draw random numbers, as the dropout of experts does: recomputing them draws the same ones then.
    """
    blocks = _recomputed_blocks(backbone)
    for block in blocks:
        # Reading a generator's state waits for the device, and CUDA graphs do not support it.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputed_blocks(backbone: Backbone) -> list[nn.Module]:
    vision, language = (blocks_of(backbone.model, modality) for modality in ("vision", "language"))
    return [*vision, *language[:-1]]


@contextmanager
def recomputing(backbone: Backbone, modules: Collection[nn.Module]) -> Iterator[None]:
    """As `activation_checkpointing`, for a model without randomness whose frozen modules are observed by autograd functions.

    A block's forward pass records nothing for autograd, which takes less of the processor's time than the hooks of
    torch.utils.checkpoint. These stop a recomputation before the products that no gradient needs, which is faster where
    products take most of the time.

    Args:
        backbone: frozen.
        modules: the observed ones. Their blocks get a backward pass also where no input requires gradients.
    """
    anchor = torch.zeros((), requires_grad=True)
    blocks, observed = _recomputed_blocks(backbone), set(modules)
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        own_anchor = anchor if any(module in observed for module in block.modules()) else None
        block.forward = partial(_recompute, backbone, block.forward, own_anchor)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:  # such as that of accelerate, which moves the inputs
                block.forward = forward


def _recompute(
    backbone: Backbone, forward: Callable[..., Any], anchor: torch.Tensor | None, *args: Any, **kwargs: Any
) -> Any:
    """Call a block's forward pass, whose activations are recomputed if it needs a backward pass."""
    leaves, layout = tree_flatten((args, kwargs))
    if anchor is None and not any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves):
        return forward(*args, **kwargs)
    layouts: list[Any] = []

    def block(own: list[Any]) -> list[Any]:
        args, kwargs = tree_unflatten(own, layout)
        with backbone.autocast():
            outputs, made = tree_flatten(forward(*args, **kwargs))
        layouts[:] = [made]
        return outputs

    outputs = _Recomputed.apply(block, anchor, *leaves)
    return tree_unflatten(list(outputs), layouts[0])


class _Recomputed(torch.autograd.Function):
    """A function of a list that keeps no activations for its backward pass; `anchor` makes its outputs require gradients."""

    @staticmethod
    def forward(ctx, function: Callable[[list[Any]], list[Any]], anchor: torch.Tensor | None, *leaves: Any):
        ctx.set_materialize_grads(False)
        ctx.function = function
        ctx.others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        ctx.tensors = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        ctx.save_for_backward(*(leaves[number] for number in ctx.tensors))
        return tuple(function(list(leaves)))

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None):
        leaves = list(ctx.others)
        for number, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            leaves[number] = tensor.detach().requires_grad_(tensor.requires_grad)
        with torch.enable_grad():
            outputs = ctx.function(leaves)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [grad for _, grad in pairs])
        return None, None, *(leaf.grad if isinstance(leaf, torch.Tensor) else None for leaf in leaves)
