"""Activation checkpointing of the transformer blocks of both towers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
    vision, language = (blocks_of(backbone.model, modality) for modality in ("vision", "language"))
    blocks = [*vision, *language[:-1]]
    for block in blocks:
        # Reading a generator's state waits for the device, and cannot be recorded as a CUDA graph.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
