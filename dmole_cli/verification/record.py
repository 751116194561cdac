"""Whether `run.toml` is as dmole wrote it, and the configuration states the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from dmole_cli.data.recorded import Recorded
from dmole_cli.errors import DmoleError
from dmole_cli.settings.record import FILE
from dmole_cli.verification.inspection import Inspection


def check_record(inspection: Inspection, differing: Mapping[str, str]) -> None:
    """Report a record that is missing or was edited, and settings that the configuration states otherwise.

    Args:
        inspection: of the run directory.
        differing: setting -> change from the record to the configuration, in words.
    """
    path = inspection.run.root / FILE
    if not inspection.found:
        return
    if not path.is_file():
        message = f"{path} does not exist: nothing says with which settings the run was made"
        inspection.report(
            path, DmoleError(message, "pass the run's settings to any stage, which writes it: dmole profile")
        )
        return
    for name, change in differing.items():
        message = f"the configuration differs from {path}: {name} {change}"
        inspection.report(path, DmoleError(message, f"restore `{name}` in the configuration, or pass another --run"))
    try:
        expected = Recorded.read(path.parent, type(inspection.settings)).text
        text = path.read_text(encoding="utf-8")
    except (DmoleError, ValueError, OSError) as error:
        wrong = error if isinstance(error, DmoleError) else DmoleError(f"{path} cannot be read: {error}")
        inspection.report(path, wrong)
        return
    for number, (line, wanted) in enumerate(zip_longest(text.split("\n"), expected.split("\n")), start=1):
        if line != wanted:
            message = f"line {number} of {path} is {line!r}, where dmole writes {wanted!r}"
            inspection.report(path, DmoleError(message, "restore the line; dmole writes this file itself"))
            return
