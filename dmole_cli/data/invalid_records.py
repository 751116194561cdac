"""Invalid records: an error where data are used, counted and skipped while data are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from dmole_cli.errors import DmoleError

Parsed = TypeVar("Parsed")
# Called with (kind, number of records, messages of the first few). Kinds: `empty` (the answer is empty), `record` (it does
# not have the form that the format expects), `annotation` (its id is missing in another file).
Report = Callable[[str, int, Sequence[str]], None]
_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


class InvalidRecord(DmoleError):
    """A record does not have the form that its format expects; for `kind` see `Report`."""

    def __init__(self, message: str, hint: str, *, kind: str = "record") -> None:
        super().__init__(message, hint)
        self.kind = kind


@contextmanager
def skipping_invalid(report: Report) -> Iterator[None]:
    """Within this context, invalid records are reported and skipped instead of raising an error.

    Only for checking data: a run must never train on a part of a file unnoticed.
    """
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


def skips_invalid() -> bool:
    """Whether invalid records are skipped at present."""
    return _REPORT.get() is not None


def report_or_raise(error: InvalidRecord, *, count: int = 1, messages: Sequence[str] = ()) -> None:
    """Report `count` invalid records within `skipping_invalid`, else raise the error.

    Args:
        error: raised outside of `skipping_invalid`.
        count: number of records.
        messages: of the first few records; default: the error's message.
    """
    report = _REPORT.get()
    if report is None:
        raise error
    report(error.kind, count, messages or [error.message])


def valid_records(places: Iterable[tuple[str, Any]], parse: Callable[[str, Any], Iterable[Parsed]]) -> Iterator[Parsed]:
    """Yield what `parse(place, value)` makes of each record; of an invalid record nothing is yielded.

    Raises:
        InvalidRecord: a record is invalid, outside of `skipping_invalid`.
    """
    for place, value in places:
        try:
            parsed = list(parse(place, value))
        except InvalidRecord as error:
            report_or_raise(error)
        else:
            yield from parsed
