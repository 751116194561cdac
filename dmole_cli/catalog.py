"""The folder listing is the registry: a shelf's file names are the names a user may type."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from dmole_cli.errors import DmoleError

PACKAGE = Path(__file__).parent


def names(shelf: str) -> list[str]:
    """Names on a shelf (`methods`, `metrics`, `formats`); a file's underscores are typed as hyphens for methods."""
    found = sorted(
        p.stem for p in (PACKAGE / shelf).glob("*.py") if not p.stem.startswith("_") and p.stem != "contract"
    )
    return [name.replace("_", "-") for name in found] if shelf == "methods" else found


def load(shelf: str, name: str) -> ModuleType:
    """Import the module of one name on a shelf.

    Raises:
        DmoleError: the shelf has no such file; the message lists what it has.
    """
    if name not in names(shelf):
        raise DmoleError(f"unknown {shelf.removesuffix('s')} '{name}'", f"choose one of: {', '.join(names(shelf))}")
    return importlib.import_module(f"dmole_cli.{shelf}.{name.replace('-', '_')}")
