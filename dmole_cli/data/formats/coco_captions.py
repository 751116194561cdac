"""COCO captions: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._fields import Record, Unannotated, usable
from dmole_cli.data.formats._json import members
from dmole_cli.data.formats._lookup import looked_up
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'the file is {"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 1, "caption": "..."}]}'

OPTIONS: Mapping[str, Any] = FILE_OPTIONS
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split: for validation and test a row an image, for training a row a caption; all have all references.

    The instruction is the card's prompt alone (`{question}` is empty).

    Raises:
        DmoleError: the file is missing or unreadable, a record is not usable, or an image has no caption.
    """
    return load_rows(card, split, data_root=data_root, read=partial(_read, each=split == "train"))


def _read(path: Path, beside: Mapping[str, Path], *, each: bool) -> Iterator[Row]:
    missing = Unannotated(path, "caption")
    with looked_up(_captions(path)) as captions:

        def rows(place: str, value: Any) -> Iterator[Row]:
            image = Record(path, place, value, hint=HINT)
            key, name = image.value.get("id"), image.value.get("file_name", image.value.get("image"))
            if key is None or not isinstance(name, str):
                image.refuse("an image needs 'id' and 'file_name'")
            texts = tuple(captions.all(key))
            if not texts:
                missing.add(key)
            for number, text in enumerate(texts if each else texts[:1]):
                own = f"{key}#{number}" if each else key
                yield Row(place, question="", answer=text, references=texts, images=(name,), details={"id": own})

        yield from usable(_members(path, "images"), rows)
    missing.refuse()


def _captions(path: Path) -> Iterator[tuple[Any, str]]:
    def pair(place: str, value: Any) -> Iterator[tuple[Any, str]]:
        annotation = Record(path, place, value, hint=HINT)
        if annotation.value.get("image_id") is None:
            annotation.refuse("an annotation needs 'image_id'")
        yield annotation.value["image_id"], annotation.text("caption")

    return usable(_members(path, "annotations"), pair)


def _members(path: Path, group: str) -> Iterator[tuple[str, Any]]:
    for member in members(path):
        if member.group == group:
            yield member.place, member.value
