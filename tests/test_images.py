"""Images are what a viewer shows on a white page: modes, ranges, transparency, orientation; everything else is refused."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmole_cli.artifacts.image_digests import MISSING, ImageDigests
from dmole_cli.backbones.inputs import DEFAULT_SIZE, image_sizes
from dmole_cli.data import images
from dmole_cli.data.images import MAX_PIXELS, open_bytes, open_image, read_image_file, shown_size
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

RAMP = np.linspace(1000, 65535, 576).reshape(24, 24)


def opened(folder: Path, image: Image.Image, name: str, **options) -> np.ndarray:
    """The pixels of a stored image, the same from its file and from its bytes."""
    image.save(folder / name, **options)
    shown = open_image(folder / name, row="row 1")
    assert shown.mode == "RGB" and shown.size == shown_size(folder / name)
    pixels = np.asarray(shown).astype(int)
    assert (pixels == np.asarray(open_bytes((folder / name).read_bytes(), row="row 1"))).all()
    return pixels


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.floor(values + 0.5)[..., None], 3, axis=2).astype(int)


@pytest.mark.parametrize(
    ("values", "name", "shown"),
    [
        (RAMP.astype("uint16"), "a.png", RAMP.astype("uint16") / 257),
        (RAMP.astype("uint16"), "a.tif", RAMP.astype("uint16") / 257),
        (RAMP.astype("uint16"), "a.jp2", RAMP.astype("uint16") / 257),
        ((RAMP / 100).astype("uint16"), "dark.png", (RAMP / 100).astype("uint16") / 257),
        (RAMP.astype("int32"), "i.tif", RAMP.astype("int32") / 257),
        ((RAMP / 257).astype("int32"), "bytes.tif", (RAMP / 257).astype("int32")),
        ((RAMP / 65535).astype("float32"), "unit.tif", RAMP / 257),
        ((RAMP / 257).astype("float32"), "f255.tif", RAMP / 257),
        (RAMP.astype("float32"), "f16.tif", RAMP / 257),
        ((RAMP * 0).astype("float32"), "black.tif", RAMP * 0),
    ],
)
def test_wide_values_are_scaled_by_their_range(tmp_path, values, name, shown):
    assert np.abs(opened(tmp_path, Image.fromarray(values), name) - gray(shown)).max() <= (name == "f16.tif")


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype("float32") - 2000,
        (RAMP / 65535 * 2 - 1).astype("float32"),
        (RAMP / 65535 * 3).astype("float32"),
        (RAMP * np.nan).astype("float32"),
        (RAMP * 1000).astype("int32"),
        -RAMP.astype("int32"),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DmoleError, match=r"a\.tif \(row 1\)"):
        open_image(tmp_path / "a.tif", row="row 1")


@pytest.mark.parametrize(
    ("mode", "colour", "name", "shown"),
    [
        ("1", 1, "a.png", (255, 255, 255)),
        ("L", 77, "a.png", (77, 77, 77)),
        ("LA", (0, 0), "a.png", (255, 255, 255)),
        ("LA", (100, 255), "a.png", (100, 100, 100)),
        ("PA", (0, 255), "a.tif", (0, 0, 0)),
        ("RGBA", (0, 0, 255, 255), "a.png", (0, 0, 255)),
        ("RGBA", (0, 0, 255, 0), "a.webp", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), "a.png", (255, 127, 127)),
        ("RGBA", (255, 0, 0, 0), "a.gif", (255, 255, 255)),
        ("RGBX", (1, 2, 3, 0), "a.tif", (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), "a.jpg", (254, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("YCbCr", (128, 128, 128), "a.tif", (128, 128, 128)),
        ("LAB", (255, 128, 128), "a.tif", (255, 255, 255)),
        ("HSV", (0, 255, 255), "a.tif", None),
    ],
)
def test_every_mode_is_shown_on_white(tmp_path, mode, colour, name, shown):
    try:
        image = Image.new(mode, (9, 7), colour)
        pixels = opened(tmp_path, image, name)
    except OSError:
        assert shown is None  # PIL writes no such file
    else:
        assert np.abs(pixels - shown).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_a_transparent_colour_is_white(tmp_path, mode):
    image = Image.new(mode, (8, 8), (9, 9, 9) if mode == "RGB" else 9)
    image.putpixel((3, 2), (40, 40, 40) if mode == "RGB" else 40)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    key = (9, 9, 9) if mode == "RGB" else 9
    pixels = opened(tmp_path, image, "a.png", transparency=key)
    assert (pixels[0, 0] == 255).all() and (pixels[2, 3] < 255).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_orientation_of_the_metadata_is_applied(tmp_path, name, orientation):
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 16, 8))  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = opened(tmp_path, image, name, exif=exif)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert pixels.shape[:2] == ((32, 16) if orientation > 4 else (16, 32))
    for row in (0, -1):
        for column in (0, -1):
            assert (pixels[row, column] < 99).all() == ((row, column) == corner)


def test_lengths_use_the_size_that_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    os.mkfifo(tmp_path / "fifo")
    files = (tmp_path / "a.jpg", tmp_path / "fifo")
    sample = Sample("s", "q", "a", ("a",), images=(lambda: None, lambda: None), files=files)
    assert image_sizes(sample) == [(6, 4), DEFAULT_SIZE]


def test_the_first_frame_or_page_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        pixels = opened(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert (np.abs(pixels - (255, 0, 0)) < 3).all(), name


def test_sixteen_bit_colours_keep_their_brightness(tmp_path):
    values = RAMP.astype(">u2")[..., None].repeat(3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(24, 24, rows, depth=16))
    shown = np.asarray(open_image(tmp_path / "a.png", row="row 1")).astype(int)
    assert np.abs(shown - gray(values[..., 0] / 257)).max() <= 1


def png(width: int, height: int, rows: bytes, *, depth: int = 8) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def cut(name: str, share: float = 0.6) -> bytes:
    stored = BytesIO()
    Image.effect_noise((64, 64), 90).save(stored, name)
    return stored.getvalue()[: int(len(stored.getvalue()) * share)]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "it is empty"),
        (b"not an image", "not an image that PIL can read"),
        (cut("PNG"), "truncated"),
        (cut("JPEG"), "truncated"),
        (cut("GIF"), "a.png"),
        (cut("TIFF", 0.2), "a.png"),
        (cut("WEBP"), "a.png"),
        (png(60_000, 60_000, b""), str(MAX_PIXELS)),
        (png(0, 5, b""), "a.png"),
        (b"P6 0 7 255\n", "a.png"),
        (EPS, "EPS files are not read"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, content, part):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DmoleError) as caught:
        open_image(tmp_path / "a.png", row="row 1")
    assert part in caught.value.message and "row 1" in caught.value.message and caught.value.hint
    if content:
        with pytest.raises(DmoleError, match="row 1"):
            open_bytes(content, row="row 1")


def test_a_fault_of_dmole_is_not_reported_as_a_damaged_image(tmp_path, monkeypatch):
    Image.fromarray(RAMP.astype("uint16")).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_gray", lambda image: image.no_such_attribute)
    with pytest.raises(AttributeError):
        open_image(tmp_path / "a.png", row="row 1")


def test_only_regular_files_are_read(tmp_path):
    """Neither a FIFO nor a device is opened, where an image is decoded, measured, copied or digested."""
    os.mkfifo(tmp_path / "fifo")
    digests = ImageDigests(tmp_path / "never-saved.sqlite")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), tmp_path / ("a" * 300), tmp_path / "a\0b"):
        for read in (open_image, shown_size, read_image_file):
            with pytest.raises(DmoleError, match="row 1"):
                read(path, row="row 1")
        assert digests[path] == MISSING
