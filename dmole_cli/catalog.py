"""Shelves: folders whose file names are the names that a user may type."""

from __future__ import annotations

import functools
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
        name: folder
        for folder in SHELVES[shelf]
        for name in _names_in(PACKAGE / folder, (PACKAGE / folder).stat().st_mtime_ns)
    }


@functools.lru_cache(maxsize=64)
def _names_in(folder: Path, changed: int) -> list[str]:
    """Names of the entries of a folder; a report asks for them thousands of times.

    Args:
        folder: of a shelf.
        changed: when the folder was changed, so that a new file is found.
    """
    stems = (path.stem for path in folder.glob("*.py"))
    return [stem for stem in stems if not stem.startswith("_") and stem != "base"]
