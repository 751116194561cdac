"""Progress display of anything that takes longer than two seconds: a protocol, and the display that shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
# Wraps an iterable so that its progress is shown: (items, description, total) -> the same items.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def quiet(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Iterate without showing progress."""
    return items
