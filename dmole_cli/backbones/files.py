"""The folder that a backbone's name refers to, and the fingerprint of its files; needs no library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.errors import DmoleError
from dmole_cli.settings.documents import require_regular

EMBEDDED = Path(__file__).with_name("embedded_model")  # the small model that ships with the package, see its README.md
FILE_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def resolve(name: str) -> str:
    """Turn `embedded` into the folder of the shipped model; folders and hub ids stay as they are."""
    return str(EMBEDDED) if name == "embedded" else name


def local_folder(name: str) -> Path | None:
    """The folder of a backbone; None for a hub id.

    Raises:
        DmoleError: the name is neither an existing folder nor a hub id, or the folder cannot be read or holds a pipe.
    """
    folder = Path(resolve(name))
    try:
        if folder.is_dir():
            _require_regular_files(folder)
            return folder
        exists = folder.exists()
    except OSError as error:
        raise not_a_backbone(name, f"{error.filename or folder}: {error.strerror or error}") from error
    # A hub id is `name` or `owner/name`; anything else must be a path.
    if exists or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
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
    try:
        files = sorted({f for pattern in FILE_PATTERNS for f in folder.glob(pattern)})
        if not (folder / "config.json").exists() or not any(f.suffix == ".safetensors" for f in files):
            raise not_a_backbone(name, "it holds no config.json with safetensors weights")
        return hashlib.sha256(json.dumps([[f.name, digest_of_file(f)] for f in files]).encode()).hexdigest()
    except OSError as error:
        raise not_a_backbone(name, f"{error.filename or folder}: {error.strerror or error}") from error


def _require_regular_files(folder: Path) -> None:
    """Refuse a folder with a device or a pipe, which a library might read forever.

    Raises:
        OSError: names the file.
    """
    for file in folder.iterdir():
        if not file.is_dir():
            try:
                require_regular(file)
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def not_a_backbone(name: str, why: str) -> DmoleError:
    """The error for a name that no image-text-to-text model can be loaded from."""
    return DmoleError(
        f"backbone '{name}' cannot be loaded as an image-text-to-text model: {why}",
        "pass --backbone a folder written by save_pretrained (with its processor), a hub id, or 'embedded'",
    )
