"""Backbones that tests are parametrised over: a tiny one of every family, and the embedded one."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from dmole_cli.backbones.families.base import families
from dmole_cli.backbones.files import EMBEDDED


def _copy_embedded(folder: Path) -> Path:
    return shutil.copytree(EMBEDDED, folder)


def _family_builders() -> dict[str, Callable[[Path], object]]:
    return {name: importlib.import_module(f"dmole_cli.backbones.families.{name}").tiny for name in families()}


BUILDERS = {"plain": tiny.build_backbone, "embedded": _copy_embedded, **_family_builders()}
every_family = pytest.mark.parametrize("family", sorted(BUILDERS), indirect=True)


@pytest.fixture(scope="session")
def family(request, tmp_path_factory) -> Path:
    """A folder with model and processor of a family, as `save_pretrained` writes them; read only."""
    folder = tmp_path_factory.mktemp("families") / request.param
    BUILDERS[request.param](folder)
    return folder
