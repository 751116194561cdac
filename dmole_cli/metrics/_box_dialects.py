"""Boxes in the notations in which today's model families write them.

Each notation is a pattern with four numbers and a rule that turns these into fractions of the image. Where a notation has no unit
of its own, the unit is that of the numbers' size: fractions sum to less than 4, a box over the whole image to 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dmole_cli.metrics._boxes import Box

LEAST_SUM_OF_THOUSANDTHS = 4.0
KOSMOS_CELLS = 32  # a side of the image has this many cells
# Digits are bounded, so that a text of digits alone takes linear time.
NUMBER = r"[-+]?(?:\d{1,9}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?"
_N = rf"\s*({NUMBER})\s*"
_POINT = rf"[\[(]{_N},{_N}[\])]"
_SPACED = rf"\s*({NUMBER})\s+({NUMBER})\s+({NUMBER})\s+({NUMBER})\s*"


def _named(*names: str) -> str:
    """Four named numbers, as in `{"x1": 10, "y1": 8, "x2": 30, "y2": 20}` or `x1=10, y1=8, x2=30, y2=20`."""
    return r"\s*[,;]\s*".join(rf"""["']?\b(?:{name})\b["']?\s*[:=]{_N}""" for name in names)


Rule = Callable[[Sequence[float], float, float], Box]


def _unit_by_size(values: Sequence[float], width: float, height: float) -> Box:
    """Thousandths, or fractions if the sum is less than 4."""
    unit = 1000.0 if sum(values) >= LEAST_SUM_OF_THOUSANDTHS else 1.0
    left, top, right, bottom = (value / unit for value in values)
    return left, top, right, bottom


def _pixels(values: Sequence[float], width: float, height: float) -> Box:
    """Pixels of the image; thousandths where these would lie outside of it; fractions where none is above 1."""
    left, top, right, bottom = values
    if max(values) <= 1:
        return left, top, right, bottom
    if right > width or bottom > height:
        return left / 1000, top / 1000, right / 1000, bottom / 1000
    return left / width, top / height, right / width, bottom / height


def _pixels_and_size(values: Sequence[float], width: float, height: float) -> Box:
    """As `_pixels`, from left, top, width and height."""
    left, top, wide, high = values
    return _pixels((left, top, left + wide, top + high), width, height)


def _scaled(unit: float, *, rows_first: bool = False) -> Rule:
    """Parts of width and height, of which there are `unit`; the vertical number is the first where `rows_first`."""

    def rule(values: Sequence[float], width: float, height: float) -> Box:
        a, b, c, d = (value / unit for value in values)
        return (b, a, d, c) if rows_first else (a, b, c, d)

    return rule


def _cells(values: Sequence[float], width: float, height: float) -> Box:
    """The centres of two cells, each the number of a cell in reading order."""
    (top, left), (bottom, right) = (divmod(int(value), KOSMOS_CELLS) for value in values)
    half = 0.0 if (top, left) == (bottom, right) else 0.5
    left_x, top_y = left + half, top + half
    right_x, bottom_y = right + 1 - half, bottom + 1 - half
    return left_x / KOSMOS_CELLS, top_y / KOSMOS_CELLS, right_x / KOSMOS_CELLS, bottom_y / KOSMOS_CELLS


@dataclass(frozen=True)
class Dialect:
    """A notation of boxes: the pattern whose groups are its numbers, and the rule that reads them."""

    pattern: re.Pattern[str]
    rule: Rule


_LOCATION = r"\s*".join([r"<loc(\d{4})>"] * 4)
_LOCATION_OF_1000 = r"\s*".join([r"<loc_(\d{1,4})>"] * 4)
_LIST = rf"\[{_N},{_N},{_N},{_N}\]"

# In the order of preference where two begin at the same character.
DIALECTS = (
    # Qwen2.5-VL, pixels; Qwen3-VL, thousandths.
    Dialect(re.compile(rf"""["']?bbox_2d["']?\s*[:=]\s*{_LIST}"""), _pixels),
    # Gemini and Gemma 3: top, left, bottom, right in thousandths.
    Dialect(re.compile(rf"""["']?box_2d["']?\s*[:=]\s*{_LIST}"""), _scaled(1000, rows_first=True)),
    # The lists of most families (InternVL, LLaVA, CogVLM, GLM-4V, Shikra, DeepSeek-VL2).
    Dialect(re.compile(_LIST), _unit_by_size),
    # Qwen-VL and Qwen2-VL: <box>(x1,y1),(x2,y2)</box>.
    Dialect(re.compile(rf"{_POINT}\s*,?\s*{_POINT}"), _unit_by_size),
    Dialect(re.compile(rf"\({_N},{_N},{_N},{_N}\)"), _unit_by_size),
    # MiniCPM-V: <box>x1 y1 x2 y2</box>.
    Dialect(re.compile(rf"<box>{_SPACED}</box>"), _unit_by_size),
    Dialect(re.compile(rf"<box>{_N},{_N},{_N},{_N}</box>"), _unit_by_size),
    # PaliGemma: top, left, bottom, right of 1024.
    Dialect(re.compile(_LOCATION), _scaled(1024, rows_first=True)),
    # Florence-2.
    Dialect(re.compile(_LOCATION_OF_1000), _scaled(1000)),
    # MiniGPT-v2.
    Dialect(re.compile(r"\{" + r"\s*".join([r"<(\d{1,3})>"] * 4) + r"\}"), _scaled(100)),
    Dialect(re.compile(r"<patch_index_(\d{4})>\s*<patch_index_(\d{4})>"), _cells),
    Dialect(
        re.compile(_named("x1|x_?min|left", "y1|y_?min|top", "x2|x_?max|right", "y2|y_?max|bottom"), re.I), _pixels
    ),
    Dialect(re.compile(_named("x", "y", "w|width", "h|height"), re.I), _pixels_and_size),
)


def first_box(answer: str, *, width: float, height: float) -> Box | None:
    """The first box of an answer in fractions of the image, None without one.

    Args:
        answer: the generated text.
        width, height: of the image in pixels.
    """
    found = [(match.start(), at, match) for at, d in enumerate(DIALECTS) if (match := d.pattern.search(answer))]
    if not found:
        return None
    _, at, match = min(found, key=lambda item: item[:2])
    values = [float(number) for number in match.groups()]
    if not all(map(math.isfinite, values)):
        return None
    return DIALECTS[at].rule(values, width, height)
