"""What formats share when they recognise a file: usual names of fields, and usual prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError

# Usual names of a record's fields, in the order of preference. Names of images that are not in `IMAGE` need no mapping: formats
# read all of `_image_fields.IMAGE_FIELDS` by default.
IMAGE = ("image", "image_path", "img", "picture", "file_name", "filename", "path")
QUESTION = ("question", "query", "instruction", "prompt", "input", "text")
ANSWER = ("answer", "response", "output", "target", "label", "caption", "captions")
CAPTION = ("caption", "captions", "description", "sentence")  # of fields that are answers without a question
CHOICES = ("choices", "options")
BOX = ("bbox", "box")
EXPRESSION = ("sent", "sentence", "expression", "ref", "phrase", "description", *QUESTION)

SHORT_PROMPT = "{question} Answer the question using a single word or phrase."
LETTER_PROMPT = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
NAMING_PROMPT = "What is shown in the image? Answer the question using a single word or phrase."
CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
BOX_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{question}</ref>"


def first_of(names: Sequence[str], fields: Collection[str]) -> str:
    """The first of the usual names that is among the fields, empty if none is."""
    return next((name for name in names if name in fields), "")


def mapped(fields: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """Option -> field, without the fields that have the option's default name."""
    return {option: name for option, name in fields.items() if options[option] != name}


def no_format(path: Path, why: str) -> DmoleError:
    """The error for a source that no format fits."""
    hint = "docs/tasks.md lists the formats and shows a card, which can also map fields of other names"
    return DmoleError(f"no format fits {path}: {why}", hint)
