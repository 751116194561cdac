"""Shelves: folders whose file names are the names that a user may type."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from dmole_cli.errors import DmoleError

PACKAGE = Path(__file__).parent
# The folders of each shelf. Files that begin with an underscore, and `base.py`, are no entries of a shelf.
SHELVES = {
    "figures": ("figures",),
    "families": ("backbones/families",),
    "formats": ("data/formats", "data/synthetic"),
    "methods": ("methods",),
    "metrics": ("metrics",),
}


def names(shelf: str) -> list[str]:
    """Names on a shelf, sorted; underscores in file names are typed as hyphens for methods."""
    found = sorted(_files(shelf))
    return [name.replace("_", "-") for name in found] if shelf == "methods" else found


def load(shelf: str, name: str) -> ModuleType:
    """Import the module of one name on a shelf.

    Raises:
        DmoleError: the shelf has no such file; the message lists what it has.
    """
    stem = name.replace("-", "_") if shelf == "methods" else name
    files = _files(shelf)
    if name not in names(shelf):
        raise DmoleError(f"unknown {shelf.removesuffix('s')} '{name}'", f"choose one of: {', '.join(names(shelf))}")
    return importlib.import_module(f"dmole_cli.{files[stem].replace('/', '.')}.{stem}")


def _files(shelf: str) -> dict[str, str]:
    """File name -> folder, for all folders of a shelf."""
    return {
        path.stem: folder
        for folder in SHELVES[shelf]
        for path in (PACKAGE / folder).glob("*.py")
        if not path.stem.startswith("_") and path.stem != "base"
    }
