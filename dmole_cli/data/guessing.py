"""Says what format a user's annotations are in, from what their first records hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.data.card import SPLITS
from dmole_cli.data.formats._json import members, records
from dmole_cli.errors import DmoleError

PEEKED = 100  # records that the format is guessed from
TABLES = (".parquet", ".arrow", ".csv")

# What a record's field may be called, the usual name first.
IMAGE = ("image", "image_path", "img", "picture", "file_name", "filename", "path")
QUESTION = ("question", "query", "instruction", "prompt", "input", "text")
ANSWER = ("answer", "response", "output", "target", "label", "caption")
CHOICES = ("choices", "options")
BOX = ("bbox", "box")
EXPRESSION = ("sent", "sentence", "expression", "ref", "phrase", "description", *QUESTION)

SAY_SHORT = "Answer the question using a single word or phrase."
SAY_LETTER = "Answer with the option's letter from the given choices directly."
SAY_CAPTION = "Provide a one-sentence caption for the provided image."
SAY_BOX = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{question}</ref>"


@dataclass(frozen=True)
class Guess:
    """What a card will say.

    Attributes:
        format: a file of `formats/`.
        why: what showed it.
        data: keys of [data] beside the splits' files and the pictures' folder.
        prompt: empty where it depends on the answers.
        metric: empty where it depends on the answers.
    """

    format: str
    why: str
    data: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    metric: str = ""


def guess_format(source: Path) -> Guess:
    """Say what format a file or folder is in.

    Raises:
        DmoleError: none fits, or the file is unreadable.
    """
    if source.is_dir() or source.suffix in TABLES:
        return _guess_columns(source)
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.read(1 << 16).lstrip()[:1]
    try:
        peeked = [value for _, value in islice(records(source), PEEKED)]
    except DmoleError:
        if first != "{":
            raise
        return _guess_document(source)  # an object over many lines
    if not peeked:
        raise DmoleError(f"{source} holds no record", "one JSON object a line, or a JSON array of them")
    if first == "{" and len(peeked) == 1 and isinstance(peeked[0], dict) and not _fits(peeked[0]):
        return _guess_document(source)  # an object in a single line
    bad = next((value for value in peeked if not isinstance(value, dict)), None)
    if bad is not None:
        raise DmoleError(f"{source} holds {type(bad).__name__} where a record should be", "a record is a JSON object")
    return _guess_record(source, peeked)


def _fits(record: Mapping[str, Any]) -> bool:
    return "conversations" in record or any(name in record for name in (*ANSWER, "answers", *BOX, "answer_bbox"))


def _guess_document(source: Path) -> Guess:
    """Of a file that is one object."""
    peeked = list(islice(members(source), 10_000))
    groups = {member.group for member in peeked}
    captioned = any(
        member.group == "annotations" and isinstance(member.value, dict) and "caption" in member.value
        for member in members(source)
    )
    if "images" in groups and captioned:
        return Guess(
            "coco_captions", "it has 'images' and 'annotations' with captions", prompt=SAY_CAPTION, metric="cider"
        )
    if {"question", "choices", "answer"} <= {member.key for member in peeked}:
        names = {str(m.value) for m in members(source) if m.key == "split"}
        splits = {
            split: name
            for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
            if name in names
        }
        if len(splits) == len(SPLITS):
            return Guess(
                "scienceqa",
                "its problems have 'question', 'choices', 'answer' and 'split'",
                {"problems": str(source), **splits},
                prompt=f"{{context}}{{question}}\n{{options}}\n{SAY_LETTER}",
                metric="scienceqa",
            )
    raise DmoleError(
        f"no format fits {source}: it is one object with {', '.join(sorted(groups)[:8])}",
        "docs/tasks.md lists the formats; where records lie in a list, give a file with that list alone",
    )


def _guess_record(source: Path, peeked: Sequence[Mapping[str, Any]]) -> Guess:
    """Of a file of records."""
    keys = set(peeked[0]).intersection(*peeked)
    ever = {key for record in peeked for key in record}

    def named(names: Sequence[str]) -> str:
        return next((name for name in names if name in keys), "")

    image = next((name for name in IMAGE if name in ever), "image")
    question, answer, choices, box = named(QUESTION), named(ANSWER), named(CHOICES), named(BOX)
    if "conversations" in keys:
        return Guess("llava", "its records have 'conversations'", prompt="{question}")
    if "answer_bbox" in keys and "text" in keys:
        return Guess("coin", "its records have 'text' and 'answer_bbox'", prompt="{question}", metric="grounding")
    if box:
        expression = named(EXPRESSION)
        if expression and {"width", "height"} <= keys:
            found = [record[box] for record in peeked]
            # What is no number at all is said of its record by the format, when all are read.
            fractions = all(isinstance(v, int | float) and 0 <= v <= 1 for one in found for v in _listed(one))
            data = _renamed({"image": image, "question": expression, "box": box}, "grounding")
            data |= {"boxes": "fractions"} if fractions else {}
            why = f"its records have '{expression}' and '{box}' in {'fractions' if fractions else 'pixels'}"
            return Guess("grounding", why, data, prompt=SAY_BOX, metric="grounding")
        raise _no_format(source, keys, "boxes need what is described (as 'sent'), 'width' and 'height'")
    if choices and question and answer:
        data = _renamed({"image": image, "question": question, "choices": choices, "answer": answer}, "multiple_choice")
        prompt = f"{{question}}\n{{options}}\n{SAY_LETTER}"
        why = f"its records have '{question}', '{choices}' and '{answer}'"
        return Guess("multiple_choice", why, data, prompt=prompt, metric="multiple_choice")
    if "answers" in keys and "question" in keys and image == "image":
        prompt = f"{{question}} {SAY_SHORT}"
        return Guess("vqa", "its records have 'question' and several 'answers'", prompt=prompt, metric="vqa_accuracy")
    if question == "text" and answer == "answer" and "question_id" in keys:
        return Guess("coin", "its records have 'question_id', 'text' and 'answer'", prompt="{question}")
    if answer:
        data = _renamed({"image": image, "answer": answer}, "question_answer")
        data |= _renamed({"question": question}, "question_answer")
        why = (
            f"its records have '{question}' and '{answer}'"
            if question
            else f"its records have '{answer}', and no question"
        )
        prompt = "" if question else SAY_CAPTION
        return Guess("question_answer", why, data, prompt=prompt, metric="" if question else "cider")
    raise _no_format(source, keys, "none of the fields that hold an answer")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _no_format(source: Path, keys: set[str], why: str) -> DmoleError:
    return DmoleError(
        f"no format fits {source}: its records have {', '.join(sorted(keys)) or 'no field in common'}; {why}",
        "docs/tasks.md lists the formats and shows a card, which can also map fields of other names",
    )


def _renamed(names: Mapping[str, str], format_name: str) -> dict[str, str]:
    """The names that are not the format's own."""
    own = catalog.load("formats", format_name).OPTIONS
    return {key: name for key, name in names.items() if own[key] != name}


def _guess_columns(source: Path) -> Guess:
    """Of a data set of the `datasets` library."""
    found = catalog.load("formats", "hugging_face").splits_of(source)
    features = next(iter(found.values()))
    texts = {name: kind for name, kind in features.items() if kind in ("text", "class", "list")}
    images = [name for name, kind in features.items() if kind == "image"]

    def named(names: Sequence[str]) -> str:
        return next((name for name in names if name in texts), "")

    question, answer, choices = named([n for n in QUESTION if n not in ANSWER]), named(ANSWER), named(CHOICES)
    if not answer:
        raise _no_format(source, set(features), "no column of them holds an answer")
    lasting = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
    names = {split: next((name for name in may if name in found), "") for split, may in lasting.items()}
    if not names["train"]:
        names["train"] = next(iter(found))
    data = {"dataset": "", **names, "images": ",".join(images), "question": question, "answer": answer}
    data |= {"choices": choices} if choices else {}
    why = f"`datasets` reads it, with columns {', '.join(features)}"
    if choices:
        return Guess(
            "hugging_face", why, data, prompt=f"{{question}}\n{{options}}\n{SAY_LETTER}", metric="multiple_choice"
        )
    return Guess("hugging_face", why, data, prompt="" if question else SAY_CAPTION, metric="" if question else "cider")
