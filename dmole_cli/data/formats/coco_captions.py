"""COCO captions: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import CAPTIONS_HINT, captions, image_id, members_of
from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._fields import MissingAnnotations, Record
from dmole_cli.data.formats._json import members
from dmole_cli.data.formats._lookup import indexed
from dmole_cli.data.formats._recognition import CAPTION_PROMPT
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

OPTIONS: Mapping[str, Any] = FILE_OPTIONS
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """One object with `images` and with captions in `annotations`."""
    if not source.is_document:
        return None
    found = set()
    for member in members(source.path):
        captioned = isinstance(member.value, dict) and "caption" in member.value
        if member.group == "images" or (member.group == "annotations" and captioned):
            found.add(member.group)
        if len(found) == 2:
            why = "it has 'images' and 'annotations' with captions"
            return Guess(8, why, prompt=CAPTION_PROMPT, metric="cider")
    return None


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split: in training a sample per caption, else a sample per image; references are all captions of the image.

    The instruction is the card's prompt alone (`{question}` is empty).

    Raises:
        DmoleError: the file is missing or unreadable, a record is invalid, or an image has no caption.
    """
    return load_rows(card, split, data_root=data_root, read=partial(_read, per_caption=split == "train"))


def _read(path: Path, other_files: Mapping[str, Path], *, per_caption: bool) -> Iterator[Row]:
    missing = MissingAnnotations(path, "caption")
    with indexed(captions(path)) as found:

        def rows(place: str, value: Any) -> Iterator[Row]:
            image = Record(path, place, value, hint=CAPTIONS_HINT)
            key = image_id(image, "id")
            images = image.images("image" if image.value.get("file_name") is None else "file_name")
            if len(images) != 1:
                image.invalid("an image needs 'id' and 'file_name'")
            texts = tuple(found.all(key))
            if not texts:
                missing.add(key)
            for number, text in enumerate(texts if per_caption else texts[:1]):
                own = f"{key}#{number}" if per_caption else key
                yield Row(place, question="", answer=text, references=texts, images=images, details={"id": own})

        yield from valid_records(members_of(path, "images"), rows)
    missing.raise_if_any()
