"""Opening image files as RGB; errors name the file and the record."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from dmole_cli.errors import DmoleError


def open_image(path: Path, *, row: str) -> Image.Image:
    """Open an image file as RGB.

    Args:
        path: the file.
        row: location of the record that names it, for error messages.

    Raises:
        DmoleError: the file is missing or PIL cannot decode it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DmoleError(f"missing image {path} ({row})", "check the record's path or --data-root") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DmoleError(f"cannot open the image {path} ({row}): {error}", "replace or remove the file") from error


def open_bytes(content: bytes, *, row: str) -> Image.Image:
    """Decode the content of an image file as RGB.

    Raises:
        DmoleError: PIL cannot decode it; the message names the row.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DmoleError(f"cannot open an image of {row}: {error}", "replace or remove it") from error
