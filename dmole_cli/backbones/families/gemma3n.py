"""Gemma 3n: refused; its vision encoder is convolutional."""

from __future__ import annotations

from dmole_cli.backbones.families.base import Family


class Gemma3n(Family):
    """Not a backbone."""

    refused = "its vision encoder is convolutional, without transformer blocks in which experts could be placed"
