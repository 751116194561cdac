"""Wordings of common questions, and phrases for the things of a scene: names, boxes, unambiguous descriptions."""

from __future__ import annotations

import numpy as np
from scenes import Scene, Thing
from shapes import SIDE

SUFFIXES = (
    "", "", "", " Answer in one word.", " Answer briefly.", " Reply with a short phrase.",
    " Answer the question using a single word or phrase.", " Keep it short.",
)  # fmt: skip
ASK_BOX = (
    "Where is {e}? Give the box.", "Give the bounding box of {e}.", "Find {e}.", "Locate {e} in the picture.", "Box of {e}?",
    "Please provide the bounding box of {e}.", "Point at {e} with a box.", "Please provide the bounding box coordinate of {e}.",
    "Bounding box: <ref>{e}</ref>", "Detect <ref>{e}</ref>.", "Provide the region of this: <ref>{e}</ref>",
)  # fmt: skip
ASK_CAPTION = (
    "Describe the picture.", "What does the picture show?", "Write a caption.", "Caption this image.", "What do you see?",
    "Give a short caption for the image.", "Provide a one-sentence caption for the image.",
)  # fmt: skip
ASK_READ = (
    "Read the text.", "What is written?", "What does it say?", "Which characters are shown?", "Read what is written here.",
    "Transcribe the text in the image.", "What text is in the picture?",
)  # fmt: skip
ASK_NUMBER = (
    "Which number is shown?",
    "Read the number.",
    "What number is written?",
    "Give the digits.",
    "What number is this?",
)


def pick(rng: np.random.Generator, items):
    """One of the items, drawn uniformly."""
    return items[int(rng.integers(len(items)))]


def box_text(box: tuple[int, int, int, int]) -> str:
    """A box in pixels as the text `[x1, y1, x2, y2]`, in thousandths of the side, rounded to multiples of 20."""
    return "[" + ", ".join(str(round(v / SIDE * 50) * 20) for v in box) + "]"


def article(name: str) -> str:
    """A name with its indefinite article."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def name_of(thing: Thing) -> str:
    """What a caption calls a thing; a shape has its color in front."""
    return f"{thing.color} {thing.kind}" if thing.family == "shape" else thing.kind


def expressions(scene: Scene, thing: Thing) -> list[str]:
    """Phrases that describe this thing and no other one of the scene; repeated ones are drawn more often."""
    others = [t for t in scene.things if t is not thing]
    out = []
    if all(t.kind != thing.kind for t in others):
        out += [f"the {thing.kind}"]
        if thing.family == "shape" and thing.color:
            out += [f"the {thing.color} {thing.kind}"]
    elif thing.family == "shape" and all((t.kind, t.color) != (thing.kind, thing.color) for t in others):
        out += [f"the {thing.color} {thing.kind}"] * 2
    if thing.color and all(t.color is not None and t.color != thing.color for t in others):
        out += [f"the {thing.color} " + ("object" if thing.family == "emoji" else "shape")] * 2
    if not others:
        return [*out, "the object", "the only object"]
    if all(thing.area > 1.4 * t.area for t in others):
        out += ["the largest object", "the biggest object"]
    if all(thing.area * 1.4 < t.area for t in others):
        out += ["the smallest object"]
    x, y = thing.center
    for name, fits in (
        ("leftmost", all(x + 8 < t.center[0] for t in others)), ("rightmost", all(x - 8 > t.center[0] for t in others)),
        ("topmost", all(y + 8 < t.center[1] for t in others)), ("bottom", all(y - 8 > t.center[1] for t in others)),
    ):  # fmt: skip
        if fits:
            out.append(f"the {name} object")
    for name, corner in (
        ("top left", (0, 0)),
        ("top right", (SIDE, 0)),
        ("bottom left", (0, SIDE)),
        ("bottom right", (SIDE, SIDE)),
    ):
        distances = [abs(t.center[0] - corner[0]) + abs(t.center[1] - corner[1]) for t in others]
        if abs(x - corner[0]) + abs(y - corner[1]) + 10 < min(distances):
            out.append(f"the object nearest the {name} corner")
    return out
