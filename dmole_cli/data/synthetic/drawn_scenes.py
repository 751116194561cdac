"""Counting shapes in a drawn scene."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator
from dmole_cli.data.synthetic._painting import Colour, light_colour

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

SHAPES = {"circle": "circles", "square": "squares", "triangle": "triangles"}
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 90, 214),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 190),
    "black": (30, 30, 30),
}
GRID = 3  # shapes lie in different squares of a 3 x 3 grid, so they never touch

# `asked` are shapes, or `shape` and `object` for all of them.
OPTIONS: Mapping[str, Any] = {"side": 72, "most": 6, "asked": (*SHAPES, "shape"), "outlines": False}
OF_ALL = ("shape", "object")

Shape = tuple[int, str, str]  # square of the grid, shape, colour


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Draw scenes of up to six shapes and ask for the number of one shape or of all; every count is equally frequent."""
    rows = []
    for index in range(getattr(card.sizes, split)):
        source = generator(card.name, split, index)
        count = index % card.data["most"] + 1
        asked = source.choice(card.data["asked"])
        total = count if asked in OF_ALL else source.randint(count, card.data["most"])
        others = tuple(name for name in SHAPES if name != asked)
        names = [asked if place < count and asked in SHAPES else source.choice(others) for place in range(total)]
        squares = source.sample(range(GRID * GRID), total)
        scene = tuple(
            (square, name, source.choice(tuple(COLOURS))) for square, name in zip(squares, names, strict=True)
        )
        plural = SHAPES.get(asked, f"{asked}s")
        compose = partial(_compose, side=card.data["side"], outlines=card.data["outlines"])
        rows.append(
            Sample(
                sample_id=f"{split}-{index:05d}",
                question=f"How many {plural} are there?",
                answer=str(count),
                references=(str(count),),
                images=(partial(compose, scene, seed=(card.name, split, index)),),
                sources=(f"drawn:{card.name}:{split}:{index}",),
            )
        )
    return rows


def _compose(scene: tuple[Shape, ...], *, seed: tuple[object, ...], side: int, outlines: bool) -> Image.Image:
    source = generator(*seed, "picture")
    image = Image.new("RGB", (side, side), light_colour(source, lowest=220))
    draw = ImageDraw.Draw(image)
    pitch = side / GRID
    for square, name, colour in scene:
        size = source.uniform(0.55, 0.85) * pitch
        left = (square % GRID) * pitch + source.uniform(1, pitch - size - 1)
        top = (square // GRID) * pitch + source.uniform(1, pitch - size - 1)
        box = (left, top, left + size, top + size)
        paint: dict[str, Any] = {"fill": COLOURS[colour]}
        if outlines:
            paint = {"outline": COLOURS[colour], "width": 2}
        if name == "circle":
            draw.ellipse(box, **paint)
        elif name == "square":
            draw.rectangle(box, **paint)
        else:
            corners = ((left, top + size), (left + size / 2, top), (left + size, top + size))
            draw.polygon(corners, **paint)
    return image
