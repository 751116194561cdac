"""Qianfan-OCR: an image becomes tiles and, where there are several, a thumbnail behind them; all in one flat tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families._tiles import whole_tiles
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import View, runs_of


class QianfanOCR(Family):
    """The last tile of an image is its thumbnail."""

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The last tile of each image; the lengths of the runs of image tokens give the number of its tiles."""
        runs = runs_of(tokens, self.processor.image_token_id)
        return whole_tiles(vision, [length // self.processor.image_seq_length for _, length in runs], which=-1)
