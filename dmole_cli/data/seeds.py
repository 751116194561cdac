"""Random numbers that depend only on names, so that a sample is the same on every machine and in every order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import TypeVar

from dmole_cli.artifacts.files import digest_of

Item = TypeVar("Item")


def stable_hash(*parts: object) -> int:
    """Hash names and numbers to 64 bits; unlike `hash`, the result is the same in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def generator(*parts: object) -> random.Random:
    """Return a random generator that is seeded by names, e.g. task, split and index."""
    return random.Random(stable_hash(*parts))


def shuffled(items: Iterable[Item], *parts: object) -> list[Item]:
    """Return the items in a random order that is seeded by names."""
    order = list(items)
    generator(*parts).shuffle(order)
    return order


def seed_for(*parts: object) -> int:
    """Derive a seed (60 bits) from all parts."""
    return int(digest_of([str(p) for p in parts])[:15], 16)
