"""Random numbers that depend on names alone, so that a sample is the same on every machine and in every order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import TypeVar

from dmole_cli.artifacts.files import digest_of

Item = TypeVar("Item")


def stable_hash(*parts: object) -> int:
    """Hash names and numbers to a whole number; unlike Python's own hash, the same in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def generator(*parts: object) -> random.Random:
    """Give a random generator that is seeded by the names, e.g. task, split and index."""
    return random.Random(stable_hash(*parts))


def shuffled(items: Iterable[Item], *parts: object) -> list[Item]:
    """Give the items in an order that the names decide."""
    order = list(items)
    generator(*parts).shuffle(order)
    return order


def seed_for(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else."""
    return int(digest_of([str(p) for p in parts])[:15], 16)
