"""Characters, printed with Pillow's default font or drawn by hand from polylines."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple(
    word
    for line in (
        "CAT DOG SUN CAR BUS HAT CUP MAP BOX KEY PEN TOY SEA SKY ICE RED BIG OLD NEW ONE TWO SIX TEN EXIT STOP OPEN TAXI",
        "CAFE SHOP BANK PARK HOME FOOD FISH BIRD MILK SALT BOOK DOOR WAY",
    )
    for word in line.split()
)
# Handwritten digits on a unit square (x to the right, y down): lists of polylines, which are drawn with jitter.
STROKES: dict[str, list[list[tuple[float, float]]]] = {
    "0": [[(0.5, 0.05), (0.2, 0.2), (0.12, 0.5), (0.22, 0.82), (0.5, 0.95), (0.78, 0.82), (0.88, 0.5), (0.8, 0.2), (0.5, 0.05)]],
    "1": [[(0.35, 0.2), (0.52, 0.05), (0.5, 0.95)]],
    "2": [[(0.18, 0.25), (0.35, 0.07), (0.65, 0.08), (0.8, 0.28), (0.6, 0.55), (0.2, 0.92), (0.85, 0.92)]],
    "3": [[(0.2, 0.12), (0.55, 0.05), (0.78, 0.22), (0.68, 0.42), (0.42, 0.48), (0.75, 0.58), (0.82, 0.78), (0.55, 0.95), (0.18, 0.86)]],
    "4": [[(0.35, 0.08), (0.18, 0.55), (0.85, 0.52)], [(0.7, 0.1), (0.64, 0.95)]],
    "5": [[(0.8, 0.07), (0.3, 0.08), (0.24, 0.45), (0.6, 0.4), (0.82, 0.62), (0.65, 0.9), (0.2, 0.92)]],
    "6": [[(0.7, 0.06), (0.35, 0.3), (0.18, 0.65), (0.35, 0.92), (0.68, 0.9), (0.78, 0.66), (0.55, 0.5), (0.22, 0.66)]],
    "7": [[(0.15, 0.1), (0.85, 0.1), (0.55, 0.5), (0.4, 0.95)]],
    "8": [[(0.72, 0.18), (0.45, 0.05), (0.25, 0.22), (0.5, 0.46), (0.78, 0.72), (0.55, 0.95), (0.24, 0.78), (0.5, 0.46), (0.75, 0.26), (0.72, 0.18)]],
    "9": [[(0.76, 0.28), (0.5, 0.06), (0.25, 0.25), (0.4, 0.48), (0.74, 0.38), (0.76, 0.25), (0.74, 0.6), (0.6, 0.95)]],
}  # fmt: skip


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def printed(character: str, height: int, rng: np.random.Generator) -> Image.Image:
    """Mask (mode L) of a printed character, about `height` pixels high."""
    font = _font(int(height * 1.35))
    left, top, right, bottom = font.getbbox(character)
    stroke = int(rng.random() < 0.35)
    glyph = Image.new("L", (int(right - left) + 6, int(bottom - top) + 6), 0)
    ImageDraw.Draw(glyph).text((3 - left, 3 - top), character, fill=255, font=font, stroke_width=stroke)
    return glyph


def handwritten(digit: str, height: int, rng: np.random.Generator) -> Image.Image:
    """Mask (mode L) of a handwritten digit, about `height` pixels high."""
    scale = 3
    tall, wide = height * scale, int(height * scale * rng.uniform(0.55, 0.95))
    glyph = Image.new("L", (wide + 6 * scale, tall + 6 * scale), 0)
    draw = ImageDraw.Draw(glyph)
    pen = int(scale * height * rng.uniform(0.06, 0.16)) + 2
    slant = rng.uniform(-0.15, 0.3)
    for stroke in STROKES[digit]:
        points = np.array(stroke) + rng.normal(0, 0.035, (len(stroke), 2))
        points = _smooth(points)
        pixels = [
            (float(3 * scale + (px - slant * (py - 0.5)) * wide), float(3 * scale + py * tall)) for px, py in points
        ]
        draw.line(pixels, fill=255, width=pen, joint="curve")
        for px, py in pixels:
            draw.ellipse((px - pen / 2, py - pen / 2, px + pen / 2, py + pen / 2), fill=255)
    glyph = glyph.resize((glyph.width // scale, glyph.height // scale), Image.Resampling.BOX)
    return glyph.filter(ImageFilter.GaussianBlur(0.5)) if rng.random() < 0.5 else glyph


def _smooth(points: np.ndarray) -> np.ndarray:
    """Smooth a polyline [points, 2] by two rounds of Chaikin's corner cutting."""
    for _ in range(2):
        head, tail = points[:-1], points[1:]
        cut = np.empty((2 * len(head), 2))
        cut[0::2], cut[1::2] = 0.75 * head + 0.25 * tail, 0.25 * head + 0.75 * tail
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points
