"""The content key of a result of inference: a digest of everything that a prediction or a likelihood depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.sample import Sample


def result_key(
    fingerprint: str,
    precision: str,
    request: Any,
    sample: Sample,
    experts: Iterable[str],
    image_digests: Mapping[Path, str] | ImageDigests,
    *,
    weighted: Any = None,
) -> str:
    """The key of one result.

    Args:
        fingerprint: of the backbone.
        precision: of the computation.
        request: generation settings, or answers to score; a JSON value.
        sample: the sample.
        experts: digests of the files of its active experts, in any order.
        image_digests: digests of image files.
        weighted: where experts are weighted, what `weighted_by` gives.
    """
    images = [sample.sources, [image_digests[file] for file in sample.files]]
    about = [sample.sample_id, sample.question, *images, sorted(experts)]
    if weighted is not None:
        about.append(weighted)
    return digest_of([fingerprint, precision, request, *about])


def weighted_by(experts: Sequence[str], weights: Sequence[float], options: Mapping[str, float]) -> Any:
    """What a result of weighted experts depends on beside their files, as a JSON value.

    Args:
        experts: digests of the files of the active experts.
        weights: of these experts.
        options: of the weighting.
    """
    return [[list(pair) for pair in zip(experts, weights, strict=True)], dict(options)]
