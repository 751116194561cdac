"""Ablation v1 of D-MoLE: only the language model gets experts. Paper: arXiv 2506.11672."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.methods._mixture import AllocatedMixture

if TYPE_CHECKING:
    from dmole_cli.settings.model import AllocateSettings


class V1(AllocatedMixture):
    """D-MoLE, only the language model gets experts."""

    def allocation_settings(self, settings: AllocateSettings) -> AllocateSettings:
        """The whole budget for the language model."""
        return settings.updated(modalities=("language",))
