"""Procedurally drawn scenes and questions about them: everything the embedded backbone is pre-trained on.

A scene is a 72 x 72 picture of shapes, characters or emoji (of the set reserved for pre-training) with the ground truth of
every object. Questions are made from the ground truth in many wordings, so that the backbone learns skills (colours, shapes,
counting, places, boxes, characters, names, options) rather than one prompt. No task's pictures or questions are used.
"""

from __future__ import annotations

import colorsys
import functools
import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 72
PATCH = 12
GRID = SIDE // PATCH
COLORS = {
    "red": (220, 30, 35), "green": (35, 150, 50), "blue": (40, 70, 220), "yellow": (245, 220, 40),
    "black": (15, 15, 15), "white": (250, 250, 250), "gray": (128, 128, 128), "orange": (245, 140, 20),
    "purple": (130, 45, 160), "brown": (125, 75, 35), "teal": (0, 130, 130), "pink": (245, 140, 185),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "diamond", "cross", "ring", "pentagon", "oval")
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple(
    word
    for line in (
        "CAT DOG SUN CAR BUS HAT CUP MAP BOX KEY PEN TOY SEA SKY ICE RED BIG OLD NEW ONE TWO SIX TEN EXIT STOP OPEN TAXI",
        "CAFE SHOP BANK PARK HOME FOOD FISH BIRD MILK SALT BOOK DOOR WAY",
    )
    for word in line.split()
)
# Strokes of handwriting on a unit square (x to the right, y down): each digit a list of polylines that jitter bends.
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


@dataclass
class Thing:
    """One drawn object: what it is, its colour (None where it has no single one) and its box in pixels."""

    kind: str
    family: str
    color: str | None
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box, pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """Area of the box, square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


@dataclass
class Scene:
    """A picture with its ground truth; `owner` says per pixel which thing (index + 1) covers it, 0 for none."""

    image: Image.Image
    things: list[Thing]
    owner: np.ndarray
    background: str | None
    texture: str
    text: str = ""
    cells: tuple[int, list[tuple[int, int]]] | None = None  # regular scenes: cells a side, the free ones
    extra: dict = field(default_factory=dict)


def emoji_items() -> list[tuple[str, str, str]]:
    """(character, PNG path, name) of the emoji reserved for pre-training."""
    from dmole_cli.data.synthetic._emoji_items import emoji_sets

    return list(emoji_sets()["pretraining"])


@functools.cache
def emoji_names() -> tuple[str, ...]:
    """Names of the pre-training emoji, in a fixed order."""
    return tuple(name for _, _, name in emoji_items())


@functools.cache
def _emoji_picture(index: int) -> Image.Image:
    return Image.open(emoji_items()[index][1]).convert("RGBA")


@functools.cache
def emoji_color(index: int) -> str | None:
    """The one colour most of an emoji's pixels have, or None."""
    pixels = np.asarray(_emoji_picture(index).resize((24, 24))).reshape(-1, 4)
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


def kinds() -> list[str]:
    """Every class of the dense supervision: background, shapes, characters, emoji."""
    return ["background", *SHAPES, *(f"character {c}" for c in CHARACTERS), *(f"emoji {n}" for n in emoji_names())]


# ---------------------------------------------------------------------------------------------------------- drawing


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


def _shape_mask(kind: str, width: int, height: int, angle: float) -> Image.Image:
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


def _background(rng: np.random.Generator) -> tuple[Image.Image, str | None, str]:
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
        cells = int(rng.integers(3, 14))
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells)).astype(np.uint8))
        weight = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    elif texture == "stripes":
        weight = ((x if rng.random() < 0.5 else y) * rng.integers(4, 12) % 1.0 > 0.5).astype(np.float32)
    else:
        step = int(rng.integers(6, 12))
        weight = (((x * SIDE % step) < 2) & ((y * SIDE % step) < 2)).astype(np.float32)
    pixels = base + weight[..., None] * (other - base)
    return Image.fromarray(pixels.astype(np.uint8)), name, str(texture)


def _place(rng: np.random.Generator, width: int, height: int, scene: Scene, gap: int = 1):
    taken = scene.things
    if width > SIDE or height > SIDE:
        return None
    if scene.cells:
        cell = SIDE // scene.cells[0]
        if not scene.cells[1] or width > cell or height > cell:
            return None
        column, row = scene.cells[1].pop(int(rng.integers(len(scene.cells[1]))))
        left, top = column * cell + (cell - width) // 2, row * cell + (cell - height) // 2
        return (left, top, left + width, top + height)
    for _ in range(12):
        left, top = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
        box = (left, top, left + width, top + height)
        if all(box[2] + gap <= t.box[0] or t.box[2] + gap <= box[0] or box[3] + gap <= t.box[1] or t.box[3] + gap <= box[1]
               for t in taken):  # fmt: skip
            return box
    return None


def _stamp(scene: Scene, picture: Image.Image, mask: Image.Image, thing: Thing) -> None:
    scene.image.paste(picture, thing.box[:2], mask)
    covered = np.asarray(mask) > 96
    left, top, right, bottom = thing.box
    region = scene.owner[top:bottom, left:right]
    region[covered[: region.shape[0], : region.shape[1]]] = len(scene.things) + 1
    scene.things.append(thing)


def _add_shape(scene: Scene, rng: np.random.Generator, size: int, avoid: set[str]) -> None:
    kind = str(rng.choice(SHAPES))
    color = str(rng.choice([c for c in COLORS if c not in avoid]))
    width = height = size
    if kind in ("rectangle", "oval"):
        ratio = rng.uniform(1.4, 2.2)
        width, height = (size, max(6, int(size / ratio))) if rng.random() < 0.5 else (max(6, int(size / ratio)), size)
    elif kind == "triangle":
        height = max(6, int(size * rng.uniform(0.7, 1.0)))
    turned = kind in ("triangle", "rectangle", "star", "pentagon", "oval") and rng.random() < 0.3
    mask = _shape_mask(kind, width, height, float(rng.uniform(-40, 40)) if turned else 0.0)
    box = _place(rng, mask.width, mask.height, scene)
    if box is None:
        return
    rgb = np.clip(np.array(COLORS[color]) + rng.integers(-14, 15, 3), 0, 255)
    picture = Image.new("RGB", mask.size, tuple(int(v) for v in rgb))
    _stamp(scene, picture, mask, Thing(kind, "shape", color, box))


def _add_emoji(scene: Scene, rng: np.random.Generator, size: int) -> None:
    index = int(rng.integers(len(emoji_names())))
    name = emoji_names()[index]
    if any(t.kind == name for t in scene.things):
        return
    picture = _emoji_picture(index).resize((size, size), Image.Resampling.BILINEAR)
    bounds = picture.getchannel("A").point(lambda v: 255 if v > 64 else 0).getbbox()
    if bounds is None:
        return
    picture = picture.crop(bounds)
    box = _place(rng, picture.width, picture.height, scene)
    if box is not None:
        _stamp(scene, picture.convert("RGB"), picture.getchannel("A"), Thing(name, "emoji", emoji_color(index), box))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _printed(character: str, height: int, rng: np.random.Generator) -> Image.Image:
    font = _font(int(height * 1.35))
    left, top, right, bottom = font.getbbox(character)
    stroke = int(rng.random() < 0.35)
    glyph = Image.new("L", (int(right - left) + 6, int(bottom - top) + 6), 0)
    ImageDraw.Draw(glyph).text((3 - left, 3 - top), character, fill=255, font=font, stroke_width=stroke)
    return glyph


def _handwritten(digit: str, height: int, rng: np.random.Generator) -> Image.Image:
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
    """Chaikin's corner cutting, twice: turns a polyline into a pen stroke."""
    for _ in range(2):
        head, tail = points[:-1], points[1:]
        cut = np.empty((2 * len(head), 2))
        cut[0::2], cut[1::2] = 0.75 * head + 0.25 * tail, 0.25 * head + 0.75 * tail
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def _write(scene: Scene, rng: np.random.Generator) -> None:
    style = rng.random()
    if style < 0.6:
        text, hand = "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(1, 5)))), rng.random() < 0.75
    elif style < 0.8:
        text, hand = str(rng.choice(WORDS)), False
    else:
        text, hand = "".join(rng.choice(list(CHARACTERS), int(rng.integers(1, 5)))), False
    longest = min(34, int(66 / max(1.0, len(text) * 0.78)))
    height = longest if scene.cells else int(rng.integers(max(10, longest - 10), longest + 1))
    ink = rng.integers(0, 90, 3)
    if np.asarray(scene.image).mean() < 128:
        ink = 255 - ink
    glyphs = []
    for character in text:
        glyph = _handwritten(character, height, rng) if hand else _printed(character, height, rng)
        turn = float(rng.normal(0, 3 if scene.cells else 6))
        glyph = glyph.rotate(turn, resample=Image.Resampling.BILINEAR, expand=True)
        bounds = glyph.getbbox()
        glyphs.append(glyph.crop(bounds) if bounds else glyph)
    gap = int(rng.integers(1, 4))
    total = sum(g.width for g in glyphs) + gap * (len(glyphs) - 1)
    if total > SIDE:
        factor = SIDE / total
        glyphs = [g.resize((max(2, int(g.width * factor) - 1), max(4, int(g.height * factor)))) for g in glyphs]
        total = sum(g.width for g in glyphs) + gap * (len(glyphs) - 1)
        if total > SIDE:
            return
    highest = max(1, SIDE - max(g.height for g in glyphs))
    left = (SIDE - total) // 2 if scene.cells else int(rng.integers(0, SIDE - total + 1))
    top = highest // 2 if scene.cells else int(rng.integers(0, highest))
    for character, glyph in zip(text, glyphs, strict=True):
        shift = int(np.clip(top + rng.integers(-2, 3), 0, SIDE - glyph.height))
        box = (left, shift, left + glyph.width, shift + glyph.height)
        picture = Image.new("RGB", glyph.size, tuple(int(v) for v in ink))
        _stamp(scene, picture, glyph, Thing(f"character {character}", "character", None, box))
        left += glyph.width + gap
    scene.text = text


def draw_scene(rng: np.random.Generator, *, regular: float = 0.0) -> Scene:
    """One random scene: shapes, one big object, writing, emoji or a mixture.

    Args:
        rng: source of randomness.
        regular: share of scenes whose things stand in the middle of the cells of a grid and whose writing is large and in
            the middle: looking something up by its place or its looks is learned there first.
    """
    image, background, texture = _background(rng)
    scene = Scene(image, [], np.zeros((SIDE, SIDE), np.int32), background, texture)
    if regular > 0 and rng.random() < regular:
        return _regular_scene(scene, rng)
    style = rng.random()
    if style < 0.22:
        for _ in range(int(rng.integers(1, 7))):
            _add_shape(scene, rng, int(rng.integers(10, 28)), {background or ""})
    elif style < 0.34:
        _add_shape(scene, rng, int(rng.integers(14, 56)), {background or ""})
    elif style < 0.62:
        _write(scene, rng)
    elif style < 0.74:
        _add_emoji(scene, rng, int(rng.integers(44, 73)))
    elif style < 0.92:
        for _ in range(int(rng.integers(2, 5))):
            _add_emoji(scene, rng, int(rng.integers(15, 37)))
    else:
        for _ in range(int(rng.integers(2, 5))):
            if rng.random() < 0.5:
                _add_emoji(scene, rng, int(rng.integers(15, 34)))
            else:
                _add_shape(scene, rng, int(rng.integers(12, 30)), {background or ""})
    return scene


def _regular_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    side = int(rng.integers(2, 4))
    scene.cells = (side, [(column, row) for column in range(side) for row in range(side)])
    cell = SIDE // side
    style = rng.random()
    if style < 0.4:
        _write(scene, rng)
        return scene
    for _ in range(int(rng.integers(2, 5))):
        if style < 0.8:
            _add_shape(scene, rng, int(rng.integers(cell // 2 + 2, cell - 1)), {scene.background or ""})
        else:
            _add_emoji(scene, rng, int(rng.integers(cell - 6, cell + 1)))
    return scene


def patch_labels(scene: Scene, kind_index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Class and colour of the thing that covers each patch: two arrays [GRID * GRID], colour -1 where it has none."""
    names = list(COLORS)
    kind, color = np.zeros(GRID * GRID, np.int64), np.full(GRID * GRID, -1, np.int64)
    cells = scene.owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    for cell, owners in enumerate(cells):
        counts = np.bincount(owners, minlength=1)
        counts[0] = 0
        best = int(counts.argmax())
        if best == 0 or counts[best] < PATCH * PATCH // 6:
            continue
        thing = scene.things[best - 1]
        kind[cell] = kind_index[f"emoji {thing.kind}" if thing.family == "emoji" else thing.kind]
        color[cell] = names.index(thing.color) if thing.color else -1
    return kind, color
