"""Randomly drawn scenes, the images that the embedded backbone is pre-trained on.

A scene is a 72 x 72 image of shapes, characters or emoji (from the set reserved for pre-training) with the ground truth of
every object. questions.py derives questions and answers from the ground truth. No image or question of a task is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from emoji_images import emoji_color, emoji_image, emoji_names
from glyphs import CHARACTERS, WORDS, handwritten, printed
from PIL import Image
from shapes import COLORS, SHAPES, SIDE, draw_background, shape_mask

PATCH = 12
GRID = SIDE // PATCH


@dataclass
class Thing:
    """One drawn object: kind, family (`shape`, `emoji` or `character`), color (None if mixed) and box (x1, y1, x2, y2) in pixels."""

    kind: str
    family: str
    color: str | None
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Center of the box in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


@dataclass
class Scene:
    """An image with its ground truth.

    Attributes:
        image: RGB, SIDE x SIDE.
        things: the drawn objects, in drawing order.
        owner: [SIDE, SIDE], index + 1 of the thing that covers each pixel, 0 for none.
        background: its color, None for a random one without a name.
        texture: of the background.
        text: the written characters, empty if there are none.
        slots: of a regular scene: slots per side of its grid, and the (column, row) pairs that are still free.
    """

    image: Image.Image
    things: list[Thing]
    owner: np.ndarray
    background: str | None
    texture: str
    text: str = ""
    slots: tuple[int, list[tuple[int, int]]] | None = None


def kinds() -> list[str]:
    """Names of the classes that a patch may have: background, shapes, characters, emoji."""
    return ["background", *SHAPES, *(f"character {c}" for c in CHARACTERS), *(f"emoji {n}" for n in emoji_names())]


def _place(
    rng: np.random.Generator, width: int, height: int, scene: Scene, gap: int = 1
) -> tuple[int, int, int, int] | None:
    """A free box of this size, or None if none was found; takes a slot of a regular scene."""
    taken = scene.things
    if width > SIDE or height > SIDE:
        return None
    if scene.slots:
        per_side, free = scene.slots
        slot = SIDE // per_side
        if not free or width > slot or height > slot:
            return None
        column, row = free.pop(int(rng.integers(len(free))))
        left, top = column * slot + (slot - width) // 2, row * slot + (slot - height) // 2
        return (left, top, left + width, top + height)
    for _ in range(12):
        left, top = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
        box = (left, top, left + width, top + height)
        if all(box[2] + gap <= t.box[0] or t.box[2] + gap <= box[0] or box[3] + gap <= t.box[1] or t.box[3] + gap <= box[1]
               for t in taken):  # fmt: skip
            return box
    return None


def _stamp(scene: Scene, image: Image.Image, mask: Image.Image, thing: Thing) -> None:
    """Paste a thing into a scene and record it as the owner of its pixels."""
    scene.image.paste(image, thing.box[:2], mask)
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
    mask = shape_mask(kind, width, height, float(rng.uniform(-40, 40)) if turned else 0.0)
    box = _place(rng, mask.width, mask.height, scene)
    if box is None:
        return
    rgb = np.clip(np.array(COLORS[color]) + rng.integers(-14, 15, 3), 0, 255)
    image = Image.new("RGB", mask.size, tuple(int(v) for v in rgb))
    _stamp(scene, image, mask, Thing(kind, "shape", color, box))


def _add_emoji(scene: Scene, rng: np.random.Generator, size: int) -> None:
    index = int(rng.integers(len(emoji_names())))
    name = emoji_names()[index]
    if any(t.kind == name for t in scene.things):
        return
    image = emoji_image(index).resize((size, size), Image.Resampling.BILINEAR)
    bounds = image.getchannel("A").point(lambda v: 255 if v > 64 else 0).getbbox()
    if bounds is None:
        return
    image = image.crop(bounds)
    box = _place(rng, image.width, image.height, scene)
    if box is not None:
        _stamp(scene, image.convert("RGB"), image.getchannel("A"), Thing(name, "emoji", emoji_color(index), box))


def _write(scene: Scene, rng: np.random.Generator) -> None:
    style = rng.random()
    if style < 0.6:
        text, hand = "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(1, 5)))), rng.random() < 0.75
    elif style < 0.8:
        text, hand = str(rng.choice(WORDS)), False
    else:
        text, hand = "".join(rng.choice(list(CHARACTERS), int(rng.integers(1, 5)))), False
    longest = min(34, int(66 / max(1.0, len(text) * 0.78)))
    height = longest if scene.slots else int(rng.integers(max(10, longest - 10), longest + 1))
    ink = rng.integers(0, 90, 3)
    if np.asarray(scene.image).mean() < 128:
        ink = 255 - ink
    glyphs = []
    for character in text:
        glyph = handwritten(character, height, rng) if hand else printed(character, height, rng)
        turn = float(rng.normal(0, 3 if scene.slots else 6))
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
    left = (SIDE - total) // 2 if scene.slots else int(rng.integers(0, SIDE - total + 1))
    top = highest // 2 if scene.slots else int(rng.integers(0, highest))
    for character, glyph in zip(text, glyphs, strict=True):
        shift = int(np.clip(top + rng.integers(-2, 3), 0, SIDE - glyph.height))
        box = (left, shift, left + glyph.width, shift + glyph.height)
        image = Image.new("RGB", glyph.size, tuple(int(v) for v in ink))
        _stamp(scene, image, glyph, Thing(f"character {character}", "character", None, box))
        left += glyph.width + gap
    scene.text = text


def draw_scene(rng: np.random.Generator, *, regular: float = 0.0) -> Scene:
    """One random scene: shapes, one big object, text, emoji or a mixture.

    Args:
        rng: random generator.
        regular: share of scenes whose things are centered in the slots of a grid and whose text is large and centered;
            the model learns there first to find an object by its position or its appearance.
    """
    image, background, texture = draw_background(rng)
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
    scene.slots = (side, [(column, row) for column in range(side) for row in range(side)])
    slot = SIDE // side
    style = rng.random()
    if style < 0.4:
        _write(scene, rng)
        return scene
    for _ in range(int(rng.integers(2, 5))):
        if style < 0.8:
            _add_shape(scene, rng, int(rng.integers(slot // 2 + 2, slot - 1)), {scene.background or ""})
        else:
            _add_emoji(scene, rng, int(rng.integers(slot - 6, slot + 1)))
    return scene


def patch_labels(scene: Scene, kind_index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Class and color index of the thing that covers each patch: two arrays [GRID * GRID], color -1 where it has none."""
    names = list(COLORS)
    kind, color = np.zeros(GRID * GRID, np.int64), np.full(GRID * GRID, -1, np.int64)
    patches = scene.owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    for patch, owners in enumerate(patches):
        counts = np.bincount(owners, minlength=1)
        counts[0] = 0
        best = int(counts.argmax())
        if best == 0 or counts[best] < PATCH * PATCH // 6:
            continue
        thing = scene.things[best - 1]
        kind[patch] = kind_index[f"emoji {thing.kind}" if thing.family == "emoji" else thing.kind]
        color[patch] = names.index(thing.color) if thing.color else -1
    return kind, color
