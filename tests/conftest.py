from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def stream(tmp_path_factory) -> Path:
    """A folder with a tiny backbone, tiny tasks and a dmole.toml; whoever changes it copies it first."""
    return tiny.write_stream(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="session")
def backbone(stream):
    """The tiny backbone, loaded."""
    from dmole_cli.backbones.adapter import load_backbone

    return load_backbone(str(stream / "backbone"))
