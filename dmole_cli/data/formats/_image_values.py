"""Images in the columns of tables: content or path, as `datasets` and other tools write them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.data.formats._image_fields import SUFFIXES
from dmole_cli.data.images import is_image, read_image_file
from dmole_cli.errors import DmoleError

LONGEST_PATH = 1024  # characters up to which a text may be a path


def image_bytes(value: Any, folders: Sequence[Path]) -> bytes:
    """The content of an image file.

    Args:
        value: the content; a path, a data URI or the content in base64; or an object with `bytes` or `path`.
        folders: where relative paths start, in the order of preference.

    Raises:
        DmoleError: there is no such file, it is unreadable or empty, or the value is none of these.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if content is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise DmoleError(f"a value of type {type(value).__name__} is no image", "give its content or its path")
    content = _decoded(value)
    if content is not None:
        return content
    path = _file(value, folders)
    if path is None:
        places = " or ".join(map(str, folders))
        what = f"missing image {value[:LONGEST_PATH]} in {places}"
        hint = "check the path" if "://" not in value else "download it: images are not downloaded"
        raise DmoleError(what, hint)
    return read_image_file(path)


def is_no_image(value: Any) -> bool:
    """Whether a value stands for the absence of an image: null, an empty text, or an object without content and path."""
    if isinstance(value, Mapping):
        return value.get("bytes") is None and not value.get("path")
    return value is None or value == ""


def are_images(values: Iterable[Any], folders: Sequence[Path]) -> bool:
    """Whether values without a declared type are images: there is one, and all are content that opens, or paths of images."""
    given = [value for value in values if not is_no_image(value)]
    return bool(given) and all(_is_image(value, folders) for value in given)


def _is_image(value: Any, folders: Sequence[Path]) -> bool:
    if isinstance(value, Mapping):
        return value.keys() <= {"bytes", "path"}
    if isinstance(value, bytes):
        return is_image(value)
    if not isinstance(value, str):
        return False
    content = _decoded(value)
    return content is not None or (len(value) <= LONGEST_PATH and Path(value).suffix.lower() in SUFFIXES)


def _decoded(text: str) -> bytes | None:
    """The content of a data URI or of an image in base64; None for other texts."""
    head, comma, body = text.partition(",")
    is_uri = head.startswith("data:image/") and head.endswith(";base64") and bool(comma)
    if not is_uri and len(text) < 64:  # no image is as short
        return None
    try:
        content = base64.b64decode("".join(body.split()) if is_uri else text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if is_uri or is_image(content) else None


def _file(name: str, folders: Sequence[Path]) -> Path | None:
    if not name or len(name) > LONGEST_PATH:
        return None
    for folder in folders:
        try:
            if (folder / name).is_file():
                return folder / name
        except (OSError, ValueError):  # a part of the name is too long, or contains a zero byte
            return None
    return None
