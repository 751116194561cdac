"""Progress display of anything that takes longer than two seconds: a protocol, and the display that shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Wraps an iterable so that its progress is shown."""

    def __call__(
        self,
        items: Iterable[Item],
        description: str,
        total: int,
        *,
        done: int = 0,
        status: Callable[[], str] | None = None,
    ) -> Iterable[Item]:
        """Iterate and show progress.

        Args:
            items: what is worked on.
            description: of the work.
            total: number of all items.
            done: number of items that were done before.
            status: figures of the work so far, in a few words.
        """
        ...


def quiet(
    items: Iterable[Item],
    description: str,
    total: int,
    *,
    done: int = 0,
    status: Callable[[], str] | None = None,
) -> Iterable[Item]:
    """Iterate without showing progress."""
    return items
