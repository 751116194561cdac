"""BLIP-2: no chat template; 32 queries about the image, before the start token, then the question."""

from __future__ import annotations

from dmole_cli.backbones.families._one_image import OneImage


class Blip2(OneImage):
    """One image per question."""
