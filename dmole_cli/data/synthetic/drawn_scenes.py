"""Counting shapes in a drawn scene: a task that is never trained, to measure the remaining zero-shot ability."""

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

OPTIONS: Mapping[str, Any] = {"side": 72, "most": 6}

Shape = tuple[int, str, str]  # square of the grid, shape, colour


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Draw scenes of up to six shapes and ask for the number of one shape or of all; every count is equally frequent."""
    rows = []
    for index in range(getattr(card.sizes, split)):
        source = generator(card.name, split, index)
        count = index % card.data["most"] + 1
        asked = source.choice((*SHAPES, "shape"))
        total = count if asked == "shape" else source.randint(count, card.data["most"])
        others = tuple(SHAPES) if asked == "shape" else tuple(name for name in SHAPES if name != asked)
        names = [asked if place < count and asked != "shape" else source.choice(others) for place in range(total)]
        squares = source.sample(range(GRID * GRID), total)
        scene = tuple(
            (square, name, source.choice(tuple(COLOURS))) for square, name in zip(squares, names, strict=True)
        )
        plural = SHAPES.get(asked, "shapes")
        rows.append(
            Sample(
                sample_id=f"{split}-{index:05d}",
                question=f"How many {plural} are there?",
                answer=str(count),
                references=(str(count),),
                images=(partial(_compose, scene, seed=(card.name, split, index), side=card.data["side"]),),
                sources=(f"drawn:{card.name}:{split}:{index}",),
            )
        )
    return rows


def _compose(scene: tuple[Shape, ...], *, seed: tuple[object, ...], side: int) -> Image.Image:
    source = generator(*seed, "picture")
    image = Image.new("RGB", (side, side), light_colour(source, lowest=220))
    draw = ImageDraw.Draw(image)
    pitch = side / GRID
    for square, name, colour in scene:
        size = source.uniform(0.55, 0.85) * pitch
        left = (square % GRID) * pitch + source.uniform(1, pitch - size - 1)
        top = (square // GRID) * pitch + source.uniform(1, pitch - size - 1)
        box = (left, top, left + size, top + size)
        if name == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif name == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            corners = ((left, top + size), (left + size / 2, top), (left + size, top + size))
            draw.polygon(corners, fill=COLOURS[colour])
    return image
