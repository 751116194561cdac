"""InstructBLIP: BLIP-2 whose querying transformer also reads the question, through a tokenizer of its own."""

from __future__ import annotations

from dmole_cli.backbones.families._one_image import OneImage


class InstructBlip(OneImage):
    """One image per question."""
