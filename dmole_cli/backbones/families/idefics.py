"""IDEFICS: refused; its processor has no chat template, and takes texts and images in turns."""

from __future__ import annotations

from dmole_cli.backbones.families.base import Family


class Idefics(Family):
    """Not a backbone."""

    refused = "its processor takes a list of texts and images in turns in place of a prompt with image tokens"
