"""Markers in a text: the places where a sample's images stand.

In a `Sample`, each `<image>` of the question is the place of the next image. A question without markers follows its images,
and markers in front of a question are removed, because they say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

IMAGE = "<image>"
# Spellings in the data of common training tools: `<image>`, alone or in MiniCPM-V's brackets; a number (Phi, MMMU); the
# placeholders of Qwen-VL, GLM-V, Llama, Gemma, InternVL, InternLM-XComposer and DeepSeek-VL.
_SPELLINGS = re.compile(
    r"\(<image>\./</image>\)|<image>|<\|?image[ _]?(?P<number>\d{1,3})\|?>"
    r"|<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image_pad\|>"
    r"|<\|begin_of_image\|><\|image\|><\|end_of_image\|>|<\|image\|>"
    r"|<start_of_image>|<image_soft_token>|<IMG_CONTEXT>|<ImageHere>|<image_placeholder>"
)
_LEADING = re.compile(rf"(?:\s*{IMAGE})+\s*")


def count(text: str) -> int:
    """Number of image markers, in any spelling."""
    return sum(1 for _ in _SPELLINGS.finditer(text)) if "<" in text else 0


def with_plain_markers(text: str) -> str:
    """The text with every marker spelled `<image>`.

    Raises:
        ValueError: markers have numbers that are not in order, so they do not stand for the images in order.
    """
    if "<" not in text:  # no spelling is without it
        return text
    numbers = [int(found["number"]) for found in _SPELLINGS.finditer(text) if found["number"]]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError(f"its image markers have the numbers {', '.join(map(str, numbers))}, which are not in order")
    return _SPELLINGS.sub(IMAGE, text)


def leading(text: str) -> tuple[int, str]:
    """Number of markers in front of the text, and the text without them; markers are spelled `<image>`."""
    found = _LEADING.match(text)
    return (found[0].count(IMAGE), text[found.end() :]) if found else (0, text)


def placed(text: str, images: int) -> str:
    """The question of a sample with this number of images: every marker that is not in front of the text stays.

    Raises:
        ValueError: the number of markers is neither zero nor the number of images.
    """
    text = with_plain_markers(text)
    markers = text.count(IMAGE)
    if not markers:
        return text
    if markers != images:
        raise ValueError(f"its text has {markers} image marker(s) ({IMAGE}), but it has {images} image(s)")
    before, rest = leading(text)
    return rest if before == markers else IMAGE * before + rest


def without(question: str) -> str:
    """The text of a sample's question alone."""
    return question.replace(IMAGE, "")


def parts(question: str, *, images: int) -> Iterator[str | None]:
    """The question of a sample in parts: None for an image, else text.

    Raises:
        ValueError: the number of markers is neither zero nor the number of images.
    """
    texts = question.split(IMAGE)
    if len(texts) == 1:
        yield from [None] * images
    elif len(texts) != images + 1:
        raise ValueError(f"its question has {len(texts) - 1} image marker(s) ({IMAGE}), but it has {images} image(s)")
    for number, text in enumerate(texts):
        if number:
            yield None
        if text or len(texts) == 1:
            yield text


def with_markers_of(question: str, rest: str) -> str:
    """The end of a question's text, with the question's markers: those of the missing part move to the front.

    Args:
        question: the whole question, with markers.
        rest: the end of its text, without markers.
    """
    out, behind = rest, 0
    for text in reversed(question.split(IMAGE)[1:]):
        behind += len(text)
        place = max(len(rest) - behind, 0)
        out = out[:place] + IMAGE + out[place:]
    return out
