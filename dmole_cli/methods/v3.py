"""Ablation v3 of D-MoLE: no curriculum. Paper: arXiv 2506.11672."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.methods._mixture import AllocatedMixture

if TYPE_CHECKING:
    from dmole_cli.settings.model import AllocateSettings


class V3(AllocatedMixture):
    """D-MoLE, no curriculum."""

    def allocation_settings(self, settings: AllocateSettings) -> AllocateSettings:
        """The budget is split by the capacity of the modalities, independent of the task's difficulty."""
        return settings.updated(curriculum=False)
