"""Opening image files as RGB, with errors that name the record."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from dmole_cli.errors import DmoleError


def open_image(path: Path, *, row: str) -> Image.Image:
    """Open a picture file as RGB.

    Args:
        path: the picture.
        row: where the record stands that names it, for the message.

    Raises:
        DmoleError: the file is missing or is not a picture that PIL can decode.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise DmoleError(f"missing picture {path} ({row})", "check the record's path or --data-root") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DmoleError(f"cannot open the picture {path} ({row}): {error}", "replace or remove the file") from error


def open_bytes(content: bytes, *, row: str) -> Image.Image:
    """Decode a picture file's content as RGB.

    Raises:
        DmoleError: it is not a picture that PIL can decode; names the row.
    """
    try:
        with Image.open(BytesIO(content)) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DmoleError(f"cannot open a picture of {row}: {error}", "replace or remove it") from error
