"""What a family is: a file named after a `model_type` of transformers; the folder's listing is the registry.

The adapter asks model, configuration and processor for everything. Where their answer is not enough for a family, its file
defines one of these functions, and nothing else:

- `tiny(folder, seed=0)`: writes the family made tiny (the one thing without a default; tests run on it).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


def families() -> list[str]:
    """Model types that have a file here, sorted."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem in CONFIG_MAPPING_NAMES)


def family_file(model_type: str) -> ModuleType | None:
    """The file of a model type, None where the generic way has to do."""
    return importlib.import_module(f"dmole_cli.backbones.{model_type}") if model_type in families() else None
