"""Digests of task data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_each
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.sample import Sample


def data_digest(samples: Sequence[Sample], pictures: Mapping[Path, str] | ImageDigests) -> str:
    """Digest of a split's rows: ids, texts, references, sources, and the content of its picture files."""
    return digest_of_each(
        [s.sample_id, s.question, s.answer, s.references, s.details, s.sources, [pictures[file] for file in s.files]]
        for s in samples
    )
