"""Digests of task data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_each, write_text
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.formats._arrow import cache_folder
from dmole_cli.data.formats._rows import FileRows
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError


def data_digest(samples: Sequence[Sample], images: Mapping[Path, str] | ImageDigests, *, cached: bool = True) -> str:
    """Digest of a split: ids, texts, references, details, sources, and the content of the image files.

    The digest of a split whose rows are cached is cached beside them. As of a single image file, it holds until the rows, or
    size or modification time of a file change.

    Args:
        samples: the split.
        images: digest of each image file.
        cached: whether a digest that was cached is used.
    """
    state = samples.state() if cached and isinstance(samples, FileRows) else None
    if state is None:
        return _digest(samples, images)
    path = cache_folder() / "digests" / f"{state}.txt"
    with suppress(OSError, UnicodeDecodeError):
        digest, _, check = path.read_text(encoding="utf-8").strip().partition(" ")
        if check == _check(state, digest):
            return digest
    digest = _digest(samples, images)
    with suppress(DmoleError):  # a cache that cannot be written only costs time
        write_text(path, f"{digest} {_check(state, digest)}\n")
    return digest


def _digest(samples: Sequence[Sample], images: Mapping[Path, str] | ImageDigests) -> str:
    content = lru_cache(maxsize=4096)(images.__getitem__)  # rows in a row often share images
    return digest_of_each(
        [s.sample_id, s.question, s.answer, s.references, s.details, s.sources, [content(file) for file in s.files]]
        for s in samples
    )


def _check(state: str, digest: str) -> str:
    return hashlib.sha256(f"{state} {digest}".encode()).hexdigest()[:16]
