"""Ablation v2 of D-MoLE: only the vision encoder gets experts. Paper: arXiv 2506.11672."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.methods._mixture import AllocatedMixture

if TYPE_CHECKING:
    from dmole_cli.settings.model import AllocateSettings


class V2(AllocatedMixture):
    """D-MoLE, only the vision encoder gets experts."""

    def allocation_settings(self, settings: AllocateSettings) -> AllocateSettings:
        """The whole budget for the vision encoder."""
        return settings.updated(modalities=("vision",))
