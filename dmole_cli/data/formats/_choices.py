"""The options of a multiple-choice record and its correct one, in the spellings that data sets use."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._fields import MAX_OPTIONS, Record, as_text, is_missing, shown
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

UNDECLARED = -1  # value of `first_index`: the card does not say whether numbers count from 0 or from 1
FIRST_INDEX_HINT = "if answers are numbers, say what they count from with first_index = 0 or 1 in [data] of the card"
# Names of the label and the text where an option is an object, or where options are lists beside each other.
LABELS, TEXTS = ("label", "key", "id", "letter"), ("text", "value", "option", "content")
LONGEST_LIST = 10_000  # characters of a list that is written as a text

# A label in front of an option: "A. ", "(a) ", "B: ", "2) ", also with full-width marks.
LABELLED = re.compile(r"\s*(?:[(\[（]\s*([A-Za-z]|\d{1,2})\s*[)\]）]|([A-Za-z]|\d{1,2})\s*[.):：．、）])(\s*)(?=\S)")
ABBREVIATION = re.compile(r"[A-Za-z](\W|$)")
# An answer that is a label, with or without marks around it, and perhaps the option's text behind it.
ANSWERED = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is\b)?\s*[:：]?\s*)?"
    r"(?:[(\[（<]\s*([A-Za-z]|\d{1,4})\s*[)\]）>]\s*[.:：]?|([A-Za-z]|\d{1,4})\s*(?:[.):：．、）]|$))\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)


def check_first_index(card: TaskCard) -> None:
    """Raise an error if the card's `first_index` is none."""
    if card.data["first_index"] not in (UNDECLARED, 0, 1):
        raise DmoleError(f"{card.path}: invalid data.first_index {card.data['first_index']}", "choose 0 or 1")


@dataclass(frozen=True)
class Options:
    """The options of one record.

    Attributes:
        texts: the options, without labels in front of them.
        written: the options as the record has them.
        first: the number of the first option if the record numbers its options, else None.
        numbers: whether the record's options are numbers and not texts.
    """

    texts: list[str]
    written: list[str]
    first: int | None = None
    numbers: bool = False


def options_of(record: Record, key: str) -> Options:
    """The options of a question: 2 to 26 texts, without the labels that they may have.

    They are a list of texts, an object of texts by their letters or numbers, a list of objects with label and text, an object
    with a list of each, or one of these as a text.

    Raises:
        InvalidRecord: there are fewer or more, or the labels are not those of a list.
    """
    value = record.value.get(key)
    if isinstance(value, str):
        value = _parsed(value)
    labels, texts = _labelled(value)
    if texts is None:
        record.invalid(
            f"'{key}' must be a list of texts, or texts by their letters, not {shown(record.value.get(key))}"
        )
    if not 2 <= len(texts) <= MAX_OPTIONS:
        record.invalid(f"a question needs 2 to {MAX_OPTIONS} options, not {len(texts)}")
    first = None
    if labels is not None:
        order = _order(labels)
        if order is None:
            record.invalid(f"the labels of '{key}' are not the first letters or numbers: {', '.join(labels)}")
        texts = [text for _, text in sorted(zip(labels, texts, strict=True), key=lambda pair: order[pair[0]])]
        first = min(order.values()) if labels[0].strip().isdigit() else None
    found = [as_text(text) for text in texts]
    written = [text for text in found if text is not None]
    if len(written) < len(found):
        record.invalid(f"'{key}' must be a list of texts, not {shown(value)}")
    bare, numbered = _without_labels(written)
    return Options(bare, written, numbered if first is None else first, not any(isinstance(t, str) for t in texts))


def _parsed(text: str) -> Any:
    """A list or an object that is written as a text, as JSON or as Python prints it; tables contain such texts."""
    if len(text) > LONGEST_LIST or text.strip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _labelled(value: Any) -> tuple[list[str] | None, list[Any] | None]:
    """Labels, None without them, and texts of options; no texts if they are in no known form."""
    if isinstance(value, Mapping):
        lists = [next((value[n] for n in names if isinstance(value.get(n), list)), None) for names in (LABELS, TEXTS)]
        if lists[0] is not None and lists[1] is not None:
            same = len(lists[0]) == len(lists[1])
            return ([str(label) for label in lists[0]], lists[1]) if same else (None, None)
        # A table has a field for every label that any of its rows has.
        pairs = {str(label): text for label, text in value.items() if not is_missing(text)}
        return list(pairs), list(pairs.values())
    if not isinstance(value, list):
        return None, None
    if value and all(isinstance(item, Mapping) for item in value):
        labels = [next((item[name] for name in LABELS if not is_missing(item.get(name))), None) for item in value]
        texts = [next((item[name] for name in TEXTS if name in item), None) for item in value]
        return (None if None in labels else [str(label) for label in labels]), texts
    return None, value


def _order(labels: Sequence[str]) -> dict[str, int] | None:
    """Label -> position, if the labels are the first letters, or numbers that begin with 0 or 1."""
    bare = [label.strip().strip("().:").upper() for label in labels]
    if sorted(bare) == list(ascii_uppercase[: len(bare)]):
        return {label: ascii_uppercase.index(letter) for label, letter in zip(labels, bare, strict=True)}
    if all(label.isdecimal() and len(label) < 4 for label in bare):
        numbers = list(map(int, bare))
        if sorted(numbers) in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
            return dict(zip(labels, numbers, strict=True))
    return None


def _without_labels(texts: list[str]) -> tuple[list[str], int | None]:
    """Texts without the labels in front of them, if all have the right one; and the first label if it is a number."""
    found = [LABELLED.match(text) for text in texts]
    labels = [(match[1] or match[2]) if match else "" for match in found]
    order = _order(labels) if all(labels) else None
    if order is None or [order[label] - min(order.values()) for label in labels] != list(range(len(labels))):
        return texts, None
    rest = [text[match.end() :].strip() if match else text for text, match in zip(texts, found, strict=True)]
    # "A.D." and "B.C.", or the numbers 1.5 and 2.5, have no label.
    if any(
        match and match[2] and not match[3] and (match[2].isdigit() or ABBREVIATION.match(left))
        for match, left in zip(found, rest, strict=True)
    ):
        return texts, None
    return rest, min(order.values()) if labels[0].isdigit() else None


class OptionReader:
    """Reads options and letter of the correct option from the records of one file.

    Args:
        first_index: what a number as an answer counts from, 0 or 1. `UNDECLARED`: an integer counts from 0; a text such as
            "2" is only read if it can mean one option, by the same count in all records of the file.
    """

    def __init__(self, first_index: int) -> None:
        self.declared = None if first_index == UNDECLARED else first_index
        self.implied: int | None = None

    def read(self, record: Record, choices: str, answer: str) -> tuple[list[str], str]:
        """The options in the field `choices`, and the letter of the one that the field `answer` names.

        Args:
            record: the record.
            choices, answer: names of its fields.

        Raises:
            InvalidRecord: the options are invalid, or the answer is none of them, or could be two of them.
        """
        options = options_of(record, choices)
        value = record.value.get(answer)
        if isinstance(value, list) and len(value) == 1:
            [value] = value
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            record.invalid(f"'{answer}' has no value", kind="empty")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        found = self._positions(value, options)
        if len(found) != 1:
            several = f"could be the options {' or '.join(ascii_uppercase[at] for at in found)}"
            what = several if found else f"is none of the {len(options.texts)} options"
            record.invalid(f"the answer {shown(value)} {what}", FIRST_INDEX_HINT)
        return options.texts, ascii_uppercase[found[0]]

    def _positions(self, value: Any, options: Options) -> list[int]:
        """Positions of the options that an answer can mean."""
        if type(value) is int:
            return self._of_number(value, options)
        if not isinstance(value, str):
            return []
        text = value.strip().strip("*`\"'").strip()
        base = options.first if self.declared is None else self.declared
        named = _equal(text, options)
        label = ANSWERED.fullmatch(text)
        short, rest = ((label[1] or label[2]), label[3].strip()) if label else ("", "")
        if short.isdecimal():
            if base is not None and (not rest or _equal(rest, options) == [int(short) - base]):
                return _within(int(short) - base, options)
            return named or ([] if rest else self._undeclared(int(short), options))
        position = ascii_uppercase.find(short.upper()) if short else -1
        if position not in range(len(options.texts)) or (rest and _equal(rest, options) != [position]):
            return named
        # "B" is a letter; only an option that reads "B" can be meant, too. "b" is first an option that reads "b".
        return named if named and not short.isupper() else sorted({position, *named})

    def _of_number(self, value: int, options: Options) -> list[int]:
        base = options.first if self.declared is None else self.declared
        found = _within(value - (base or 0), options)
        if base is None and options.numbers:  # an index, or one of the numbers?
            return sorted({*found, *_equal(str(value), options)})
        return found

    def _undeclared(self, number: int, options: Options) -> list[int]:
        """Positions of a number that is written as a text, for each first index that the file can have."""
        bases = [base for base in (0, 1) if self.implied in (None, base) and _within(number - base, options)]
        if len(bases) == 1:
            self.implied = bases[0]
        return [number - base for base in reversed(bases)]


def _within(position: int, options: Options) -> list[int]:
    return [position] if 0 <= position < len(options.texts) else []


def _equal(text: str, options: Options) -> list[int]:
    """Positions of the options that equal a text; case and a final period count only if one is equal with them."""
    for fold in (str.strip, _folded):
        same = {
            at
            for texts in (options.texts, options.written)
            for at, option in enumerate(texts)
            if fold(option) == fold(text) != ""
        }
        if same:
            return sorted(same)
    return []


def _folded(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()


def number_of(value: Any) -> int:
    """Number of options that a field has; 0 if it has none in a known form."""
    _, texts = _labelled(_parsed(value) if isinstance(value, str) else value)
    return len(texts or ())


def implied_first_index(answers: Iterable[tuple[Any, int]]) -> int:
    """What the numbers among a file's answers count from: 1 if one equals the number of options and none is 0.

    Args:
        answers: (answer, number of options) of each record.

    Returns:
        0 or 1; `UNDECLARED` if no number decides it, or if numbers contradict each other.
    """
    found = set()
    for answer, count in answers:
        text = as_text(answer) or ""
        number = int(float(text)) if re.fullmatch(r"\d{1,4}(\.0)?", text.strip()) else None
        found |= {0} if number == 0 else {1} if number == count else set()
        if len(found) == 2:
            return UNDECLARED
    return found.pop() if found else UNDECLARED
