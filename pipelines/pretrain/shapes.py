"""Shapes and backgrounds: masks of ten kinds of shape, and plain or textured squares of color."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

SIDE = 72  # pixels of a scene's width and height
COLORS = {
    "red": (220, 30, 35), "green": (35, 150, 50), "blue": (40, 70, 220), "yellow": (245, 220, 40),
    "black": (15, 15, 15), "white": (250, 250, 250), "gray": (128, 128, 128), "orange": (245, 140, 20),
    "purple": (130, 45, 160), "brown": (125, 75, 35), "teal": (0, 130, 130), "pink": (245, 140, 185),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "diamond", "cross", "ring", "pentagon", "oval")


def _polygon(kind: str, width: float, height: float) -> list[tuple[float, float]]:
    if kind == "triangle":
        return [(width / 2, 0), (width, height), (0, height)]
    if kind == "diamond":
        return [(width / 2, 0), (width, height / 2), (width / 2, height), (0, height / 2)]
    if kind == "cross":
        a, b = width / 3, height / 3
        return [(a, 0), (2 * a, 0), (2 * a, b), (width, b), (width, 2 * b), (2 * a, 2 * b), (2 * a, height), (a, height),
                (a, 2 * b), (0, 2 * b), (0, b), (a, b)]  # fmt: skip
    points = 5 if kind == "pentagon" else 10
    out = []
    for i in range(points):
        radius = 0.42 if kind == "star" and i % 2 else 1.0
        angle = 2 * math.pi * i / points - math.pi / 2
        out.append((width / 2 * (1 + radius * math.cos(angle)), height / 2 * (1 + radius * math.sin(angle))))
    return out


def shape_mask(kind: str, width: int, height: int, angle: float) -> Image.Image:
    """Mask (mode L) of a shape of `width` x `height` pixels, rotated by `angle` degrees."""
    scale = 3
    mask = Image.new("L", (width * scale, height * scale), 0)
    draw = ImageDraw.Draw(mask)
    box = (0, 0, width * scale - 1, height * scale - 1)
    if kind in ("circle", "oval"):
        draw.ellipse(box, fill=255)
    elif kind == "ring":
        draw.ellipse(box, outline=255, width=max(3, width * scale // 5))
    elif kind in ("square", "rectangle"):
        draw.rectangle(box, fill=255)
    else:
        draw.polygon(_polygon(kind, width * scale - 1, height * scale - 1), fill=255)
    if angle:
        mask = mask.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
    size = (max(1, mask.width // scale), max(1, mask.height // scale))
    return mask.resize(size, Image.Resampling.BOX)


def draw_background(rng: np.random.Generator) -> tuple[Image.Image, str | None, str]:
    """A random background: (image, color name or None, texture name)."""
    texture = rng.choice(["plain", "plain", "plain", "gradient", "noise", "stripes", "dots"])
    if rng.random() < 0.35:
        name: str | None = None
        base = rng.integers(150, 256, 3) if rng.random() < 0.7 else rng.integers(0, 256, 3)
    else:
        name = str(rng.choice(list(COLORS)))
        base = np.clip(np.array(COLORS[name]) + rng.integers(-15, 16, 3), 0, 255)
    base = base.astype(np.float32)
    other = np.clip(base + rng.choice([-1, 1]) * rng.integers(25, 60, 3), 0, 255).astype(np.float32)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    if texture == "plain":
        weight = np.zeros((SIDE, SIDE), np.float32)
    elif texture == "gradient":
        weight = x if rng.random() < 0.5 else y
    elif texture == "noise":
        side = int(rng.integers(3, 14))
        coarse = Image.fromarray(rng.integers(0, 256, (side, side)).astype(np.uint8))
        weight = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    elif texture == "stripes":
        weight = ((x if rng.random() < 0.5 else y) * rng.integers(4, 12) % 1.0 > 0.5).astype(np.float32)
    else:
        step = int(rng.integers(6, 12))
        weight = (((x * SIDE % step) < 2) & ((y * SIDE % step) < 2)).astype(np.float32)
    pixels = base + weight[..., None] * (other - base)
    return Image.fromarray(pixels.astype(np.uint8)), name, str(texture)
