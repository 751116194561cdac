"""Names of the colours of a sprite."""

from __future__ import annotations

from functools import cache

from PIL import Image


def colour_shares(sprite: Image.Image) -> tuple[dict[str, float], int]:
    """Return the share of the opaque pixels per colour name, and the number of opaque pixels."""
    opaque = sprite.getchannel("A").tobytes()
    pixels = sprite.convert("RGB").convert("HSV").tobytes()
    counts: dict[str, int] = {}
    for index, alpha in enumerate(opaque):
        if alpha >= 128:
            name = colour_name(*pixels[3 * index : 3 * index + 3])
            counts[name] = counts.get(name, 0) + 1
    ink = sum(counts.values())
    return {name: count / ink for name, count in counts.items()}, ink


@cache
def colour_name(hue: int, saturation: int, value: int) -> str:
    """Name a colour given as PIL's HSV bytes; ambiguous colours are `other`."""
    degrees, strength = hue * 360 / 256, saturation / 255
    if value < 80:
        return "black"
    if strength < 0.22:
        return "white" if value > 224 else "grey"
    if degrees < 12 or degrees >= 344:
        return "pink" if strength < 0.66 and value > 215 else "red"
    if degrees < 40:
        return "brown" if value < 205 else "orange" if strength > 0.6 else "other"
    if degrees < 68:
        return "yellow" if value > 215 else "brown"
    if degrees < 165:
        return "green"
    if degrees < 192:
        return "other"
    if degrees < 250:
        return "blue" if strength > 0.3 else "other"
    return "purple" if degrees < 315 else "pink"
