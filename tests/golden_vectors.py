"""Reference vectors: inputs and outputs of the public reference implementations, kept as JSON."""

import json
import os
from pathlib import Path
from typing import Any


def golden_vectors(name: str) -> Any:
    """Read `<name>.json` from the folder in the variable DMOLE_GOLDEN, else from `golden/` beside this file."""
    folder = Path(os.environ.get("DMOLE_GOLDEN") or Path(__file__).parent / "golden")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
