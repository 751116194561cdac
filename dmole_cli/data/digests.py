"""Digests of task data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_each
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.sample import Sample


def data_digest(samples: Sequence[Sample], images: Mapping[Path, str] | ImageDigests) -> str:
    """Digest of a split: ids, texts, references, details, sources, and the content of the image files.

    Args:
        samples: the split.
        images: digest of each image file.
    """
    content = lru_cache(maxsize=4096)(images.__getitem__)  # rows in a row often share images
    return digest_of_each(
        [s.sample_id, s.question, s.answer, s.references, s.details, s.sources, [content(file) for file in s.files]]
        for s in samples
    )
