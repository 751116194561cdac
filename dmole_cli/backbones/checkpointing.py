"""Activation checkpointing of both towers' blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import block_stack


@contextmanager
def activation_checkpointing(backbone: Backbone) -> Iterator[None]:
    """Let backward passes inside the block compute again what happens within the blocks of both towers.

    The switch of transformers would do this in training mode only, where a model may drop out, and lets the input
    embeddings of every tower take gradients, by hooks that it does not remove: a backward pass would no longer end below
    the lowest module that needs it. The last block of the language model keeps what it has: the backward pass begins with
    it, so that computing it again would take time and free nothing.
    """
    towers = (backbone.vision, backbone.language)
    vision, language = (list(tower.get_submodule(block_stack(tower)).children()) for tower in towers)
    blocks = [*vision, *language[:-1]]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
