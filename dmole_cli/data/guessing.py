"""Recognises the format of a user's annotations by asking every format of the shelf."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from dmole_cli.data.formats._json import members
from dmole_cli.data.formats._recognition import no_format
from dmole_cli.data.formats.base import Guess, Source, annotation_formats
from dmole_cli.errors import DmoleError

SHOWN = 8  # keys that a message lists


def guess_format(path: Path) -> tuple[str, Guess]:
    """Return the name and the guess of the format that is most certain that a file or folder is its own.

    Raises:
        DmoleError: no format fits, or the file is unreadable or incomplete.
    """
    source = Source.of(path)
    guesses = {name: found.recognise(source) for name, found in annotation_formats().items()}
    matching = {name: guess for name, guess in guesses.items() if guess is not None}
    if not matching:
        raise source.problem or _nothing_fits(source)
    name = max(matching, key=lambda name: matching[name].certainty)
    problem = matching[name].problem
    if problem is not None:
        raise problem
    return name, matching[name]


def _nothing_fits(source: Source) -> DmoleError:
    if source.records and not source.is_document:
        fields = ", ".join(sorted(source.fields)) or "no field in common"
        return no_format(source.path, f"its records have {fields}, and none of them is known to be an answer")
    if not source.is_document:
        return no_format(source.path, "no format reads such a file or folder")
    keys = sorted({member.group for member in islice(members(source.path), 10_000)})
    return DmoleError(
        f"no format fits {source.path}: it is one object with {', '.join(keys[:SHOWN])}",
        "docs/tasks.md lists the formats; if the records are in a list, extract that list into a file of its own",
    )
