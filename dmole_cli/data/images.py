"""The only place that decodes images: as a viewer shows them on a white page, as 8-bit RGB.

- The orientation in the metadata (EXIF) is applied.
- Transparent images are composited on white.
- 16-bit images are scaled by their range (value / 257). Floats in [0, 1] are multiplied by 255; floats and 32-bit integers
  in [0, 255] are taken as they are, those up to 65535 are scaled as 16-bit images, and everything else is refused, because
  viewers disagree about it.
- Of several frames or pages, the first is used.
- Colour profiles (ICC) and gamma are not applied.

Only regular files are read: a FIFO or a device would block or never end. Errors name the file and the record.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from dmole_cli.errors import DmoleError, first_line

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 178_956_970  # PIL's limit, twice `Image.MAX_IMAGE_PIXELS`: half a gigabyte as RGB
REPLACE = "replace or remove the file"
# Formats that PIL hands to an interpreter (Ghostscript) or to a plugin.
REFUSED = ("BUFR", "EPS", "GRIB", "HDF5", "WMF")
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # tags of EXIF and TIFF
WHITE_IS_ZERO = 0  # value of `PHOTOMETRIC`
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
# Largest value of a float image -> its range. Between these intervals the range is not clear.
FLOAT_RANGES = ((0.0, 1.0, 1.0), (16.0, 255.0, 255.0), (4096.0, 65535.0, 65535.0))


class NotAnImage(ValueError):
    """The content cannot be shown as an image; the message says why."""


def open_image(path: Path, *, row: str) -> Image.Image:
    """Open an image file as RGB.

    Args:
        path: the file.
        row: location of the record that names it, for error messages.

    Raises:
        DmoleError: the file is missing, is not a regular file, or cannot be decoded.
    """
    with opened(path, row=row) as image:
        return as_rgb(image)


def open_bytes(content: bytes, *, row: str, most: int = MAX_PIXELS) -> Image.Image:
    """Decode the content of an image file as RGB.

    Args:
        content: of the file.
        row: location of the record that has it, for error messages.
        most: maximum number of pixels; larger images are refused by their header, before they are decoded.

    Raises:
        DmoleError: it cannot be decoded; the message names the row.
    """
    with _explained(f"an image of {row}", "replace or remove it"), _checked(BytesIO(content)) as image:
        _check_size(image, most)
        return as_rgb(image)


def converted(image: Image.Image, *, row: str) -> Image.Image:
    """An image that PIL has opened, as RGB.

    Raises:
        DmoleError: it is damaged or too large, or its values have no known range; the message names the row.
    """
    with _explained(f"an image of {row}", REPLACE):
        return as_rgb(image)


def is_image(content: bytes) -> bool:
    """Whether this is the content of an image file, by its header; the pixels are not decoded."""
    try:
        with _checked(BytesIO(content)):
            return True
    except (OSError, NotAnImage):
        return False


def shown_size(path: Path, *, row: str = "") -> tuple[int, int]:
    """Width and height of an image file as it is shown, read from its header.

    Raises:
        DmoleError: as `open_image`.
    """
    with opened(path, row=row) as image:
        # PIL has exchanged the sides of a TIFF already.
        turned = image.format != "TIFF" and _orientation(image) in SIDEWAYS
        return (image.height, image.width) if turned else (image.width, image.height)


def read_image_file(path: Path, *, row: str = "") -> bytes:
    """The content of an image file, not decoded.

    Raises:
        DmoleError: the file is missing, unreadable, or not a regular file.
    """
    with _explained(_named(path, row), REPLACE, path=path):
        _check_regular(path)
        return path.read_bytes()


@contextmanager
def opened(path: Path, *, row: str = "", hint: str = "") -> Iterator[Image.Image]:
    """An image file as PIL opens it, neither decoded nor converted; OSError and `NotAnImage` in the context are explained, too.

    Args:
        path: the file.
        row: location of the record that names it, for error messages.
        hint: what to do about an error.

    Raises:
        DmoleError: as `open_image`.
    """
    with _explained(_named(path, row), hint or REPLACE, path=path):
        _check_regular(path)
        with _checked(path) as image:
            yield image


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it on a white page, RGB.

    Raises:
        NotAnImage: it is damaged, or its values have no known range.
    """
    with pil_errors():
        image.load()
    _check_size(image)
    if (turn := UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _gray(image)
    with pil_errors():
        return _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # PIL converts it to nothing else
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # of 16-bit pixels, PIL keeps the upper byte
        image.info["transparency"] = tuple(value >> 8 for value in key)
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")


# ------------------------------------------------------------------------------------------------ values


def _gray(image: Image.Image) -> Image.Image:
    """A single channel of 16 bits, 32-bit integers or floats as 8 bits, with alpha if one value is transparent."""
    import numpy as np

    values = np.asarray(image).astype(np.float32)
    most = _range(image, values)
    shown = np.floor(values * np.float32(255.0 / most) + np.float32(0.5)).astype(np.uint8)
    if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
        shown = 255 - shown
    out = Image.fromarray(shown)
    key = image.info.get("transparency")
    if isinstance(key, int):
        out.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return out


def _range(image: Image.Image, values: np.ndarray) -> float:
    """The value that is shown as white; `values` [height, width] are those of the image."""
    import numpy as np

    if image.mode.startswith("I;16"):
        return 4095.0 if _tag(image, BITS) == (12,) else 65535.0
    if not np.isfinite(values).all():
        raise NotAnImage("it contains values that are not finite")
    least, most = float(values.min()), float(values.max())
    if image.mode == "I" and image.format == "PPM":
        return 65535.0  # PIL scales the values of a PGM to 16 bits
    known = ((0.0, 255.0, 255.0), (255.0, 65535.0, 65535.0)) if image.mode == "I" else FLOAT_RANGES
    for above, upto, found in known:
        if least >= 0 and above <= most <= upto:
            return found
    kind = "32-bit integers" if image.mode == "I" else "floats"
    raise NotAnImage(f"its {kind} from {least:g} to {most:g} have no known range; save it with 8 or 16 bits")


def _tag(image: Image.Image, tag: int) -> Any:
    """The value of a tag of a TIFF; None for other files."""
    tags = getattr(image, "tag_v2", None)
    with pil_errors():
        return None if tags is None else tags.get(tag)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # viewers ignore metadata that cannot be read
        return 1


# ------------------------------------------------------------------------------------------------ checks and errors


@contextmanager
def _checked(source: Path | BytesIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, and about sizes below PIL's limit
        with pil_errors():
            image = Image.open(source)
        with image:
            if image.format in REFUSED:
                raise NotAnImage(f"{image.format} files are not read")
            _check_size(image)
            yield image


def _check_size(image: Image.Image, most: int = MAX_PIXELS) -> None:
    if min(image.size) < 1:
        raise NotAnImage(f"it has no pixels ({image.width} x {image.height})")
    if image.width * image.height > most:
        raise NotAnImage(f"its {image.width} x {image.height} pixels are more than {most}")


def _check_regular(path: Path) -> None:
    try:
        status = path.stat()
    except ValueError as error:  # a null character in the name
        raise NotAnImage(f"{error} in its name") from error
    if not stat.S_ISREG(status.st_mode):
        raise NotAnImage("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if not status.st_size:
        raise NotAnImage("it is empty")


def _named(path: Path, row: str) -> str:
    return f"the image {path} ({row})" if row else f"the image {path}"


@contextmanager
def pil_errors() -> Iterator[None]:
    """Turn the errors of PIL, whose readers raise any exception on damaged files, into `NotAnImage`; for calls of PIL only."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise NotAnImage(first_line(error)) from error


@contextmanager
def _explained(what: str, hint: str, *, path: Path | None = None) -> Iterator[None]:
    """Turn OSError and `NotAnImage` into a `DmoleError` about `what`; other exceptions are faults of dmole and pass."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"missing {what.removeprefix('the ')}"
        hint = "check the record's path or --data-root" if hint == REPLACE else hint
        raise DmoleError(message, hint) from error
    except UnidentifiedImageError as error:
        raise DmoleError(f"cannot open {what}: it is not an image that PIL can read", hint) from error
    except OSError as error:
        reason = error.strerror if path and error.strerror else first_line(error)
        raise DmoleError(f"cannot open {what}: {reason}", hint) from error
    except NotAnImage as error:
        raise DmoleError(f"cannot open {what}: {error}", hint) from error
