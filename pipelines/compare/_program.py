"""How the programs of the comparison report errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dmole_cli.errors import DmoleError


@contextmanager
def reported_errors() -> Iterator[None]:
    """Exit with a message on errors of the user and on an interrupt, instead of a traceback."""
    try:
        yield
    except DmoleError as error:
        sys.exit(f"error: {error.message}\n  -> {error.hint}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to resume")


def exit_with(failed: Sequence[object], *, of: int, what: str) -> None:
    """Exit with code 0, or with code 1 and the names of what has failed."""
    sys.exit(f"{len(failed)} of {of} {what} failed: {'; '.join(map(str, failed))}" if failed else 0)
