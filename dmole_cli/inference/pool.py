"""Experts in memory: loaded when a sample needs them first, unloaded when they were not used for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dmole_cli.backbones.device import return_memory
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts


class ExpertPool:
    """The experts that are attached to a backbone.

    Args:
        routed: the attached experts.
        load: reads a task's expert from its file.
        before_change: called before an expert is attached or detached.
    """

    def __init__(
        self, routed: RoutedExperts, load: Callable[[str], Expert], before_change: Callable[[], None] = lambda: None
    ) -> None:
        self.routed, self.load, self.before_change = routed, load, before_change
        self.requests = 0
        self._last: dict[str, int] = {}  # expert -> number of requests before the last one that used it

    @property
    def loaded(self) -> list[str]:
        """Names of the experts in memory, in the order in which they were loaded."""
        return list(self.routed.experts)

    def require(self, active: Sequence[Iterable[str]]) -> None:
        """Load the experts that a batch uses, and note their use.

        Args:
            active: names of the experts of each request.

        Raises:
            DmoleError: an expert is missing or damaged, or does not fit the backbone.
        """
        for names in active:
            own = list(names)
            self.preload(own)
            self._last |= dict.fromkeys(own, self.requests)
            self.requests += 1

    def preload(self, names: Iterable[str]) -> None:
        """Load experts that are not in memory.

        Raises:
            DmoleError: as for `require`.
        """
        for name in names:
            if name not in self.routed.experts:
                expert = self.load(name)
                self.before_change()
                self.routed.add(name, expert)
                self._last[name] = self.requests

    def idle(self, last: int) -> list[str]:
        """Loaded experts that none of the latest `last` requests has used."""
        return [name for name in self.loaded if self.requests - self._last.get(name, 0) > last]

    def unload(self, names: Iterable[str]) -> list[str]:
        """Detach experts and free their memory; returns those that were loaded."""
        found = [name for name in dict.fromkeys(names) if name in self.routed.experts]
        if found:
            self.before_change()
            for name in found:
                self.routed.remove(name)
                self._last.pop(name, None)
            return_memory()
        return found
