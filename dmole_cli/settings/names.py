"""Names of tasks: each is also a file's name, in many folders and on every system."""

from __future__ import annotations

import unicodedata

MAX_BYTES = (
    150  # a file system allows 255 for a name, and artifacts add a split, a suffix and more while they are written
)
FORBIDDEN = frozenset('/\\:*?"<>|[]{}')
SPLITS = ("train", "validation", "test")


def name_problem(name: str) -> str:
    """Why a text cannot be the name of a task, in words that follow "the name"; empty if it can."""
    if not name.strip() or name != name.strip():
        return "must not be empty, or begin or end with a space"
    if name[0] in ".-" or name.endswith("."):
        return "must not begin with a dot or a hyphen, or end with a dot"
    if wrong := sorted({char for char in name if char in FORBIDDEN or unicodedata.category(char).startswith("C")}):
        return f"must be a plain file name, without {' '.join(ascii(char)[1:-1] for char in wrong[:5])}"
    if len(name.encode()) > MAX_BYTES:
        return f"must not be longer than {MAX_BYTES} bytes"
    # `features/a.test.parquet` are the features of a's test split.
    if (last := name.casefold().rpartition(".")[2]) in SPLITS and "." in name:
        return f"must not end with .{last}, which stands for a split in file names"
    return ""


def same_name(one: str, other: str) -> bool:
    """Whether two names are one file on a file system that ignores case or normalises accents."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
