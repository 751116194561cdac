"""Emoji of the set that is reserved for pre-training: their names, images and dominant colors."""

from __future__ import annotations

import colorsys
import functools

import numpy as np
from PIL import Image


def emoji_items() -> list[tuple[str, str, str]]:
    """(character, PNG path, name) of the emoji reserved for pre-training."""
    from dmole_cli.data.synthetic._emoji_items import emoji_sets

    return list(emoji_sets()["pretraining"])


@functools.cache
def emoji_names() -> tuple[str, ...]:
    """Names of the pre-training emoji, in a fixed order."""
    return tuple(name for _, _, name in emoji_items())


@functools.cache
def emoji_image(index: int) -> Image.Image:
    """The image of an emoji, RGBA."""
    return Image.open(emoji_items()[index][1]).convert("RGBA")


@functools.cache
def emoji_color(index: int) -> str | None:
    """Name of the color of at least 60 % of an emoji's opaque pixels, or None."""
    pixels = np.asarray(emoji_image(index).resize((24, 24))).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 128][:, :3]
    if len(pixels) == 0:
        return None
    counts: dict[str, int] = {}
    for red, green, blue in pixels:
        name = _name_of_color(int(red), int(green), int(blue))
        counts[name] = counts.get(name, 0) + 1
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= 0.6 * len(pixels) else None


def _name_of_color(red: int, green: int, blue: int) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    degrees = hue * 360
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.85 else "gray"
    for limit, name in ((15, "red"), (40, "brown" if value < 0.72 else "orange"), (70, "yellow"), (165, "green"), (195, "teal"),
                        (255, "blue"), (300, "purple"), (345, "pink")):  # fmt: skip
        if degrees < limit:
            return name
    return "red"
