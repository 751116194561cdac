"""The backbones that a test can be run over: a tiny one of every family, and the one that ships."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from dmole_cli.backbones import embedded

PACKAGE = Path(embedded.__file__).parent


def _embedded(folder: Path) -> Path:
    return shutil.copytree(embedded.FOLDER, folder)


def _builders() -> dict[str, Callable[[Path], object]]:
    """Every file of the package that says how to make a tiny model of its family."""
    found: dict[str, Callable[[Path], object]] = {"plain": tiny.build_backbone, "embedded": _embedded}
    for file in sorted(PACKAGE.glob("*.py")):
        if re.search(r"^def tiny\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            found[file.stem] = importlib.import_module(f"dmole_cli.backbones.{file.stem}").tiny
    return found


BUILDERS = _builders()
every_family = pytest.mark.parametrize("family", sorted(BUILDERS), indirect=True)


@pytest.fixture(scope="session")
def family(request, tmp_path_factory) -> Path:
    """A folder with model and processor of a family, as `save_pretrained` writes them; read only."""
    folder = tmp_path_factory.mktemp("families") / request.param
    BUILDERS[request.param](folder)
    return folder
