"""The folder that a backbone's name refers to, and the fingerprint of its files; needs no library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.errors import DmoleError

EMBEDDED = Path(__file__).with_name("embedded_model")  # the small model that ships with the package, see its README.md
FILE_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def resolve(name: str) -> str:
    """Turn `embedded` into the folder of the shipped model; folders and hub ids stay as they are."""
    return str(EMBEDDED) if name == "embedded" else name


def local_folder(name: str) -> Path | None:
    """The folder of a backbone; None for a hub id.

    Raises:
        DmoleError: the name is neither an existing folder nor a hub id.
    """
    folder = Path(resolve(name))
    if folder.is_dir():
        return folder
    # A hub id is `name` or `owner/name`; anything else must be a path.
    if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise not_a_backbone(name, f"{folder} is not a folder")
    return None


def fingerprint_of(name: str) -> str:
    """sha256 over names and digests of a backbone's files; over the id for a hub id.

    Raises:
        DmoleError: the folder contains no model.
    """
    folder = local_folder(name)
    if folder is None:
        return hashlib.sha256(f"hub:{name}".encode()).hexdigest()
    files = sorted({f for pattern in FILE_PATTERNS for f in folder.glob(pattern)})
    if not (folder / "config.json").exists() or not any(f.suffix == ".safetensors" for f in files):
        raise not_a_backbone(name, "it holds no config.json with safetensors weights")
    return hashlib.sha256(json.dumps([[f.name, digest_of_file(f)] for f in files]).encode()).hexdigest()


def not_a_backbone(name: str, why: str) -> DmoleError:
    """The error for a name that no image-text-to-text model can be loaded from."""
    return DmoleError(
        f"backbone '{name}' cannot be loaded as an image-text-to-text model: {why}",
        "pass --backbone a folder written by save_pretrained (with its processor), a hub id, or 'embedded'",
    )
