"""The images that a record names: under every usual name of the field, and in every usual form of its value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

# Fields that name images. They are read where a format names no other field, and never ignored.
IMAGE_FIELDS = (
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"),
    *("image_path", "image_paths", "image_file", "image_files", "image_name", "image_names", "image_filename"),
    *("img_path", "img_paths"),
)
FILE_FIELDS = ("file_name", "filename")  # of an image if the name ends like one
ADDRESS_FIELDS = ("image_url", "image_urls", "img_url", "img_urls")  # often beside a file, as its origin
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm")
IDENTITY_FIELDS = ("image_id", "img_id")  # of an image whose file the record does not name
# Fields that name what no backbone reads here.
OTHER_MEDIA = re.compile(r"(video|audio|speech)s?(_(path|file|url)s?)?")
NOTHING: tuple[Any, ...] = (None, "", [])
HINT = "omit the field in a record without image"


class Fields(Protocol):
    """A record (see `_fields.Record`)."""

    value: dict[str, Any]

    def invalid(self, what: str, hint: str = "", *, kind: str = "record") -> Any:
        """Raise an error that names the record."""


def image_names(record: Fields, key: str = "image") -> tuple[str, ...]:
    """Names of a record's image files.

    With `image`, the usual name, all usual names are read. Another name is a decision of the task card, and only that field is
    read.

    Args:
        record: the record.
        key: the field that the task card maps to the images.

    Raises:
        InvalidRecord: a field has a value of another form, fields name different images, or the record names a video.
    """
    refuse_other_media(record)
    found = _by_field(record, IMAGE_FIELDS)
    if key != "image":
        chosen = names_of(record, key, record.value.get(key))
        if not chosen and found:
            record.invalid(f"'{next(iter(found))}' names an image, but the task card reads '{key}'", "rename the field")
        return chosen
    if not found:
        files = [name for name in FILE_FIELDS if str(record.value.get(name)).lower().endswith(SUFFIXES)]
        found = _by_field(record, files) or _by_field(record, ADDRESS_FIELDS)
    first, *others = found or [""]
    for other in others:
        if _file_names(found[first]) != _file_names(found[other]):
            record.invalid(f"'{first}' and '{other}' name different images", "keep one of the fields")
    lost = [name for name in IDENTITY_FIELDS if record.value.get(name) not in NOTHING]
    if lost and not found:
        record.invalid(f"it has '{lost[0]}', but no field that names the image's file", "add the name as 'image'")
    return found.get(first, ())


def _by_field(record: Fields, fields: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Field -> names, of the fields that name images."""
    value = record.value
    found = {name: names_of(record, name, value[name]) for name in fields if name in value}
    return {name: names for name, names in found.items() if names}


def refuse_other_media(record: Fields) -> None:
    """Raise an error if the record names a video or a sound."""
    for name, value in record.value.items():
        if _is_other_media(name) and value not in (*NOTHING, False):
            hint = "remove the record, or the field if the question is about images alone"
            record.invalid(f"it names a video or a sound ('{name}'), and only images are read", hint)


@lru_cache(maxsize=1024)  # all records of a file have the same few fields
def _is_other_media(name: str) -> bool:
    return OTHER_MEDIA.fullmatch(name) is not None


def names_of(record: Fields, key: str, value: Any) -> tuple[str, ...]:
    """Names of image files in the value of a field: a path, `{"path": ...}`, or a list of these."""
    if value in NOTHING:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_name_of(record, key, one) for one in values)


def _name_of(record: Fields, key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            record.invalid(f"'{key}' contains the bytes of an image", "write the image to a file and give its path")
        named = {str(value[name]): value[name] for name in ("path", "url", "file_name", "image") if value.get(name)}
        value = next(iter(named.values())) if len(named) == 1 else None
    if not isinstance(value, str) or not value.strip():
        record.invalid(f"'{key}' must be a path or a list of paths", HINT)
    if "\0" in value:
        record.invalid(f"'{key}' contains a null character", HINT)
    scheme = re.match(r"([A-Za-z][\w+.-]+):(//)?", value) if ":" in value else None
    if scheme is None or not (scheme[2] or scheme[1] == "data"):
        return value
    if scheme[1].lower() != "file":
        record.invalid(f"'{key}' is not the path of a file but {value[:40]!r}", "save the image to a file")
    return unquote(urlsplit(value).path)


def _file_names(names: tuple[str, ...]) -> list[str]:
    return [PurePath(name).name for name in names]
