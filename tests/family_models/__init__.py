"""Tiny models of model types of transformers: one function per type writes a folder with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from family_models import more, older, packed, rows, tiled


def _public(*modules: ModuleType) -> dict[str, Callable[[Path], Path]]:
    """The functions of modules, by name."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }


MODELS = _public(more, older, packed, rows, tiled)
