"""Sprites and backgrounds of the synthetic tasks, drawn with PIL."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from dmole_cli.data.images import opened, pil_errors

Colour = tuple[int, int, int]

CACHED_SPRITES = 4096  # decoding a sprite takes longer than composing an image from decoded ones


@lru_cache(maxsize=CACHED_SPRITES)
def open_sprite(path: Path) -> Image.Image:
    """Open an image with transparency as RGBA. The result is cached: callers must not modify it.

    Raises:
        DmoleError: the file is missing or is not an image.
    """
    with opened(path, hint="reinstall the package it belongs to") as image, pil_errors():
        return image.convert("RGBA")


def light_colour(random_source: random.Random, *, lowest: int = 205) -> Colour:
    """Draw a light colour with a slight tint; every channel lies in [lowest, 255]."""
    return (
        random_source.randint(lowest, 255),
        random_source.randint(lowest, 255),
        random_source.randint(lowest, 255),
    )


def background(side: int, *, colour: Colour, texture: str, random_source: random.Random) -> Image.Image:
    """Paint a square RGB background of `side` pixels.

    Args:
        side: width and height in pixels.
        colour: the main colour; a texture differs from it by at most 16 levels.
        texture: `plain`, `stripes`, `dots` or `gradient`.
        random_source: draws the spacing of stripes and dots.
    """
    image = Image.new("RGB", (side, side), colour)
    shade: Colour = tuple(max(0, value - 12) for value in colour)  # type: ignore[assignment]
    draw = ImageDraw.Draw(image)
    if texture == "stripes":
        step, slope = random_source.randint(6, 10), random_source.choice((-side, 0, side))
        for start in range(-side, 2 * side, step):
            draw.line((start, 0, start + slope, side), fill=shade, width=2)
    elif texture == "dots":
        step = random_source.randint(7, 11)
        for left in range(step // 2, side, step):
            for top in range(step // 2, side, step):
                draw.rectangle((left, top, left + 1, top + 1), fill=shade)
    elif texture == "gradient":
        for top in range(side):
            line: Colour = tuple(value - 16 * top // side for value in colour)  # type: ignore[assignment]
            draw.line((0, top, side, top), fill=line)
    return image


def trimmed(sprite: Image.Image) -> Image.Image:
    """Crop a sprite to the bounding box of its pixels with alpha >= 128."""
    box = sprite.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox()
    return sprite.crop(box) if box else sprite
