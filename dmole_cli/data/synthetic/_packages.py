"""Finds the installed pip packages that contain the data of the built-in tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dmole_cli.errors import DmoleError


def package_folder(package: str) -> Path:
    """Return an installed package's folder without importing the package.

    Raises:
        DmoleError: the package is not installed.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DmoleError(f"the data package '{package}' is not installed", "pip install 'dmole[stream]'")
    return Path(next(iter(spec.submodule_search_locations)))
