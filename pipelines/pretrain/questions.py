"""Questions and answers about a drawn scene, in many wordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from emoji_images import emoji_names
from glyphs import WORDS
from phrases import (
    ASK_BOX,
    ASK_CAPTION,
    ASK_NUMBER,
    ASK_READ,
    SUFFIXES,
    article,
    box_text,
    expressions,
    name_of,
    pick,
)
from scenes import Scene
from shapes import COLORS, SHAPES, SIDE

Pair = tuple[str, str]  # a question and its answer
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def ask_box(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Grounding: an expression; its box."""
    things = [t for t in scene.things if t.family != "character"]
    if not things:
        return None
    thing = pick(rng, things)
    found = expressions(scene, thing)
    if not found:
        return None
    return pick(rng, ASK_BOX).format(e=pick(rng, found)), box_text(thing.box)


def ask_at_box(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The reverse of grounding: a box; the object inside."""
    things = [t for t in scene.things if t.family != "character"]
    if not things:
        return None
    thing = pick(rng, things)
    return pick(rng, ("What is at {b}?", "What is inside {b}?", "Name the object in {b}.")).format(
        b=box_text(thing.box)
    ), name_of(thing)


def ask_color(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The color of a thing that is given by its shape, name or position."""
    things = [t for t in scene.things if t.color]
    if not things:
        return None
    thing = pick(rng, things)
    found = [e for e in expressions(scene, thing) if thing.color not in e]
    if len(scene.things) == 1:
        found += ["the shape"] if thing.family == "shape" else ["it"]
    if not found:
        return None
    expression = pick(rng, found)
    asked = pick(
        rng,
        (
            "What color is {e}?",
            "What is the color of {e}?",
            "Which color does {e} have?",
            "{e}: what color?",
            "Tell me the color of {e}.",
        ),
    )
    return asked.format(e=expression), str(thing.color)


def ask_kind(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The shape or name of a thing that is given by its color or position."""
    things = [t for t in scene.things if t.family != "character"]
    if not things:
        return None
    thing = pick(rng, things)
    word = "shape" if thing.family == "shape" else "object"
    found = [e for e in expressions(scene, thing) if thing.kind not in e]
    if len(scene.things) == 1:
        found += [f"the {word}", f"the {word} in the image"]
    if not found:
        return None
    asked = ("What is {e}?", "Which " + word + " is {e}?", "Name {e}.", "What do you call {e}?")
    if thing.family == "shape":
        asked = (*asked, "What shape is {e}?", "What shape does {e} have?")
        if len(scene.things) == 1 and rng.random() < 0.3:
            return pick(
                rng, ("What shape is in the image?", "What shape is shown?", "Which shape does the image contain?")
            ), thing.kind
    return pick(rng, asked).format(e=pick(rng, found)), thing.kind


def ask_name(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The name of the only object, an emoji."""
    if len(scene.things) != 1 or scene.things[0].family != "emoji":
        return None
    return pick(
        rng, ("What is this?", "Name this.", "What is in the picture?", "Which object is shown?", "What does it show?")
    ), scene.things[0].kind


def ask_presence(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Whether something is present: yes or no; a quarter of the questions are negated."""
    shapes = [t for t in scene.things if t.family == "shape"]
    if not shapes:
        return None
    here = pick(rng, shapes)
    form = int(rng.integers(3))
    kind = here.kind if rng.random() < 0.5 else pick(rng, SHAPES)
    color = str(here.color) if rng.random() < 0.5 else pick(rng, list(COLORS))
    if form == 0:
        phrase, present = article(kind), any(t.kind == kind for t in scene.things)
    elif form == 1:
        phrase, present = f"{article(color)} shape", any(t.color == color and t.family == "shape" for t in scene.things)
        if any(t.color == color and t.family != "shape" for t in scene.things):
            return None
    else:
        phrase, present = f"{article(color)} {kind}", any(t.kind == kind and t.color == color for t in scene.things)
    if rng.random() < 0.25:
        asked = (
            "Is there not {p} in the image?",
            "Does the image not contain {p}?",
            "Is {p} missing?",
            "Is no {p} there?",
        )
        return pick(rng, asked).format(p=phrase).replace("no a ", "no ").replace(
            "no an ", "no "
        ), "no" if present else "yes"
    asked = (
        "Is there {p}?",
        "Is there {p} in the image?",
        "Does the image contain {p}?",
        "Is {p} present?",
        "Can you see {p}?",
        "Do you see {p} here?",
    )
    return pick(rng, asked).format(p=phrase), "yes" if present else "no"


def ask_count(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The number of things, of shapes of a kind, or of shapes of a color."""
    if any(t.family == "character" for t in scene.things):
        things, noun = scene.things, pick(rng, ("characters", "symbols"))
    else:
        things, noun = scene.things, pick(rng, ("objects", "things"))
        shapes = [t for t in scene.things if t.family == "shape"]
        choice = rng.random()
        if shapes and choice < 0.35:
            kind = pick(rng, shapes).kind if rng.random() < 0.75 else pick(rng, SHAPES)
            things, noun = [t for t in shapes if t.kind == kind], kind + ("es" if kind.endswith("s") else "s")
        elif shapes and choice < 0.6:
            color = pick(rng, shapes).color if rng.random() < 0.75 else pick(rng, list(COLORS))
            if any(t.color in (None, color) for t in scene.things if t.family != "shape"):
                return None
            things, noun = [t for t in shapes if t.color == color], f"{color} shapes"
        elif shapes and len(shapes) == len(scene.things):
            noun = pick(rng, ("shapes", "objects"))
    answer = str(len(things)) if rng.random() < 0.75 else NUMBERS[min(6, len(things))]
    if len(things) > 6:
        return None
    asked = (
        "How many {n} are there?",
        "How many {n}?",
        "Count the {n}.",
        "What is the number of {n}?",
        "How many {n} do you see?",
    )
    question = pick(rng, asked).format(n=noun)
    if not answer.isdigit():
        question += pick(rng, (" Write it as a word.", " Answer with a word."))
    return question, answer


def ask_place(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The position of a thing, in words."""
    things = [t for t in scene.things if t.family != "character"]
    if not things:
        return None
    thing = pick(rng, things)
    x, y = thing.center
    column = "left" if x < SIDE * 0.36 else "right" if x > SIDE * 0.64 else ""
    row = "top" if y < SIDE * 0.36 else "bottom" if y > SIDE * 0.64 else ""
    found = [e for e in expressions(scene, thing) if "most" not in e and "corner" not in e and "bottom" not in e]
    if not found:
        return None
    place = f"{row} {column}".strip() or "center"
    return pick(
        rng, ("In which part of the picture is {e}?", "Which corner or side is {e} in?", "Where in the image is {e}?")
    ).format(e=pick(rng, found)), place


def ask_read(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The text, or its first or last character."""
    if not scene.text:
        return None
    if scene.text.isdigit() and rng.random() < 0.6:
        return pick(rng, ASK_NUMBER), scene.text
    choice = rng.random()
    if choice < 0.7:
        return pick(rng, ASK_READ), scene.text
    if choice < 0.85:
        return pick(rng, ("What is the first character?", "Which character comes first?")), scene.text[0]
    return pick(rng, ("What is the last character?", "Which character comes last?")), scene.text[-1]


def ask_caption(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """A caption: the text, or all things from left to right."""
    if scene.text:
        return pick(rng, ASK_CAPTION), f"the text {scene.text}"
    if not 1 <= len(scene.things) <= 3:
        return None
    ordered = sorted(scene.things, key=lambda t: t.center[0])
    return pick(rng, ASK_CAPTION), " and ".join(article(name_of(t)) for t in ordered)


def ask_options(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Multiple choice, answered with an option's text or letter: colors, shapes, names, words, backgrounds."""
    answer, pool, question = _option_subject(scene, rng)
    if answer is None:
        return None
    wrong = [p for p in rng.permutation(np.array(pool, dtype=object)) if p != answer][: int(rng.integers(1, 4))]
    options = [str(o) for o in rng.permutation(np.array([answer, *wrong], dtype=object))]
    style = rng.random()
    if style < 0.6:
        listed = pick(rng, (", ", " or ", "; "))
        lead = pick(rng, (" Options: {o}.", " Choose from: {o}.", " Is it {o}?", " Choices: {o}."))
        return question + lead.format(o=listed.join(options)), answer
    lettered = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    if style < 0.8:
        return question + lettered + pick(
            rng, ("\nAnswer with the option's text.", "\nWrite out the right option.")
        ), answer
    letter = "ABCD"[options.index(answer)]
    return question + lettered + pick(
        rng, ("\nAnswer with the letter.", "\nAnswer with the option's letter from the given choices directly.")
    ), letter


def _option_subject(scene: Scene, rng: np.random.Generator) -> tuple[str | None, list[str], str]:
    """(answer or None, options to draw wrong ones from, question)."""
    if scene.background and rng.random() < 0.25:
        return (
            scene.background,
            list(COLORS),
            pick(rng, ("Which color is the background?", "What is the background color?")),
        )
    if rng.random() < 0.12:
        return (
            scene.texture,
            ["plain", "gradient", "noise", "stripes", "dots"],
            pick(rng, ("Which texture is behind?", "What kind of background is it?")),
        )
    if scene.text:
        if not scene.text.isalpha():
            return None, [], ""
        return (
            scene.text,
            [w for w in WORDS if abs(len(w) - len(scene.text)) < 2],
            pick(rng, ("Which word is written?", "What does it say?")),
        )
    if not scene.things:
        return None, [], ""
    thing = pick(rng, scene.things)
    question = pick(
        rng, ("Which of these is in the picture?", "What is shown?", "What can be seen?", "Which one do you see?")
    )
    present = {t.kind for t in scene.things} | {str(t.color) for t in scene.things}
    if thing.family == "emoji":
        return (
            thing.kind,
            [n for n in rng.permutation(np.array(emoji_names(), dtype=object))[:8] if n not in present],
            question,
        )
    if rng.random() < 0.5:
        return thing.kind, [s for s in SHAPES if s not in present], question
    return (
        str(thing.color),
        [c for c in COLORS if c not in present],
        pick(rng, ("Which color does a shape have?", "Which color is in the picture?")),
    )


def ask_background(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The color of the background."""
    if not scene.background:
        return None
    return pick(
        rng, ("What color is the background?", "What is the background color?", "Which color is behind the objects?")
    ), scene.background


FAMILIES: dict[str, tuple[float, Callable[[Scene, np.random.Generator], Pair | None]]] = {
    "box": (2.2, ask_box), "at_box": (0.7, ask_at_box), "color": (1.6, ask_color), "kind": (1.5, ask_kind), "name": (1.2, ask_name),
    "presence": (1.8, ask_presence), "count": (1.3, ask_count), "place": (0.6, ask_place), "read": (2.2, ask_read),
    "caption": (1.4, ask_caption), "options": (1.4, ask_options), "background": (0.4, ask_background),
}  # fmt: skip


def questions(
    scene: Scene, rng: np.random.Generator, *, count: int, weights_of: Mapping[str, float] | None = None
) -> list[tuple[str, str, str]]:
    """Up to `count` different (family, question, answer) of a scene, in random order.

    Args:
        scene: the scene.
        rng: random generator.
        count: maximum number of questions.
        weights_of: weights of question families that replace those of `FAMILIES`.
    """
    names = list(FAMILIES)
    weights = np.array([(weights_of or {}).get(n, FAMILIES[n][0]) for n in names])
    weights /= weights.sum()
    out: dict[str, tuple[str, str, str]] = {}
    given: set[str] = set()
    for name in rng.choice(names, size=4 * count, p=weights):
        pair = FAMILIES[name][1](scene, rng)
        if pair is None or pair[0] in out or (pair[1] in given and pair[1] not in ("yes", "no")):
            # The model could copy an answer that occurs earlier in the sequence instead of reading it from the image.
            continue
        given.add(pair[1])
        question = pair[0]
        if name in ("color", "kind", "presence", "count", "name", "read", "place", "background"):
            question += pick(rng, SUFFIXES)
        if rng.random() < 0.3 and not scene.text:
            question = question[0].lower() + question[1:]
        out[pair[0]] = (str(name), question, pair[1])
        if len(out) == count:
            break
    return list(out.values())
