"""What SmolVLM shares with Idefics3: pictures split into tiles, the whole of it behind them under a mark of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import PIXELS, View, runs


def global_pictures(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, *, mark: str
) -> list[View]:
    """The tiles [1, tiles, channels, height, width] whose tokens stand behind the mark of a global picture."""
    wanted = processor.tokenizer.convert_tokens_to_ids(mark)
    before = [tokens[start - 1].item() for start, _ in runs(tokens, processor.image_token_id)]
    return [{PIXELS: tile} for tile, token in zip(vision[PIXELS][0], before, strict=True) if token == wanted]


def split_tokens(processor: Any, size: tuple[int, int]) -> int:
    """Tokens of a picture (height, width): of each tile, a mark in front of it and at the end, and the line breaks."""
    _, rows, columns = processor.image_processor.get_number_of_image_patches(*size)
    text = processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
