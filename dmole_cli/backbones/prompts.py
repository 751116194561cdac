"""Prompts of samples: the chat template around a question, images where the question says, and which tokens are images'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dmole_cli.backbones.families.base import Family
from dmole_cli.data import markers
from dmole_cli.errors import DmoleError

PLACEHOLDER, PLACE = "@@question@@", "@@image@@"
# Names of the tokens that stand for images, videos and sounds, or surround them.
_IMAGE_TOKEN = re.compile(r"image|img|video|vision|audio|<row_\d|<im_(start|end|patch|col|low)>", re.IGNORECASE)
_IMAGE_ATTRIBUTE = re.compile(r"(image|img|video|vision|audio|boi|eoi).*_(token|tag)$|^(boi|eoi)_token$")


class Prompts:
    """Renders prompts with a family's chat template.

    Args:
        processor: the backbone's processor.
        family: family-specific handling of its inputs.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        self.family = family
        self._image_tokens = image_tokens(processor)
        self._templates: dict[int, str | None] = {}
        self._in_place: str | None = None

    def render(self, question: str, *, images: int) -> str:
        """Text of one user turn with this number of images.

        Rendering a chat template costs more than tokenizing its result. It is rendered once per number of images, with a
        placeholder for the question; templates that modify the question (strip or escape it) are rendered for every sample,
        and so are questions with image markers.

        Raises:
            DmoleError: the template cannot place an image within a text.
        """
        if images and markers.IMAGE in question:
            return self._interleaved(question, images=images)
        if images not in self._templates:
            rendered = self.family.prompt(PLACEHOLDER, images=images)
            probe = "Is this  it?\n"
            literal = self.family.prompt(probe, images=images) == rendered.replace(PLACEHOLDER, probe)
            self._templates[images] = rendered if literal and rendered.count(PLACEHOLDER) == 1 else None
        template = self._templates[images]
        if template is None:
            return self.family.prompt(question, images=images)
        return template.replace(PLACEHOLDER, question)

    def refuse_image_tokens(self, text: str, what: str, *, hint: str) -> None:
        """Raise an error if a text contains an image token, which the model would take for an image.

        Args:
            text: a question or an answer.
            what: its description, for the message.
            hint: what to do.
        """
        if found := next((token for token in self._image_tokens if token in text), None):
            raise DmoleError(f"{what} contains '{found}', an image token of the backbone", hint)

    def _interleaved(self, question: str, *, images: int) -> str:
        if self._in_place is None:
            self._in_place = "" if keeps_order(self.family) else text_of_an_image(self.family)
        if not self._in_place:
            return self.family.prompt(question, images=images)
        # In two steps, because the template's text of an image may be `<image>`, too.
        text = self.family.prompt(question.replace(markers.IMAGE, PLACE), images=0)
        return text.replace(PLACE, self._in_place)


def image_tokens(processor: Any) -> list[str]:
    """Special tokens of a processor that stand for images, videos or sounds, or surround them; longer ones first."""
    added: Mapping[str, int] = getattr(processor.tokenizer, "get_added_vocab", dict)()
    found = {token for token in added if _IMAGE_TOKEN.search(token)}
    for owner in (processor, processor.tokenizer):
        for name in filter(_IMAGE_ATTRIBUTE.search, dir(owner)):
            value = getattr(owner, name, None)
            if isinstance(value, str) and len(value) > 2 and not value.isalnum():
                found.add(value)
    return sorted(found, key=lambda token: (-len(token), token))


def keeps_order(family: Family) -> bool:
    """Whether a family's template leaves an image between the texts where it is; many templates move images to the front."""
    first, second = "@@first@@", "@@second@@"
    mixed = family.prompt(first + markers.IMAGE + second, images=1)
    before, _, after = family.prompt(first + second, images=0).partition(first + second)
    start, end = before + first, second + after
    between = mixed[len(start) : len(mixed) - len(end)]
    return mixed.startswith(start) and mixed.endswith(end) and bool(between.strip())


def text_of_an_image(family: Family) -> str:
    """What a family's template writes for an image, without white space around it.

    Raises:
        DmoleError: an image changes the rest of the prompt, too.
    """
    without, with_image = family.prompt(PLACEHOLDER, images=0), family.prompt(PLACEHOLDER, images=1)
    length = len(with_image) - len(without)
    cuts = [
        cut
        for cut in range(len(without) + 1)
        if with_image == without[:cut] + with_image[cut : cut + length] + without[cut:]
    ]
    inserted = [with_image[cut : cut + length].strip() for cut in reversed(cuts)]
    # Neighbouring brackets fit at several places: in `<s><image>`, both `<image>` and `><image` were inserted into `<s>`.
    whole = [text for text in inserted if text[:1] + text[-1:] in ("<>", "[]", "()", "||")]
    if length < 1 or not any(inserted):
        raise DmoleError(
            "the backbone's chat template does not place images within a text",
            "move the image markers to the front of the questions, or use another backbone",
        )
    return (whole or inserted)[0]
