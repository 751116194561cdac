"""Shared by Idefics3 and SmolVLM: an image is split into tiles, followed by the whole image behind a special token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import PIXELS, View, runs_of


def global_images(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, *, marker: str
) -> list[View]:
    """The tiles of `pixel_values` [1, tiles, channels, height, width] whose image tokens follow the marker of a whole image."""
    wanted = processor.tokenizer.convert_tokens_to_ids(marker)
    before = [tokens[start - 1].item() for start, _ in runs_of(tokens, processor.image_token_id)]
    return [{PIXELS: tile} for tile, token in zip(vision[PIXELS][0], before, strict=True) if token == wanted]
