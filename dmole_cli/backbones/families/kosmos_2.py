"""Kosmos-2: refused; its sinusoidal positions count the padding of a batch."""

from __future__ import annotations

from dmole_cli.backbones.families.base import Family


class Kosmos2(Family):
    """Not a backbone."""

    refused = "its positions count the padding of a batch, so that a prediction would depend on the other samples of its batch"
