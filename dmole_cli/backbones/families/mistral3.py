"""Mistral 3: images keep their aspect ratio; a Pixtral encoder packs their patches into one sequence."""

from __future__ import annotations

from dmole_cli.backbones.families._pixtral import PackedImages


class Mistral3(PackedImages):
    """The encoder's rows are patches."""
