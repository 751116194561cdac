"""Routing features of a split: one base pass per sample in a lifetime, kept in `features/`, read by every later stage.

A feature is a function of the backbone (its processor included), of what a feature is made of, and of what the backbone
sees of the sample: the instruction and the pictures. A digest of these is its key. Whatever file of the folder holds the
key, of this split before its data changed, of another split or of another task, holds the feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dmole_cli.artifacts.features import (
    SCHEMA,
    VERSION,
    cached_features,
    features_header,
    read_features,
    write_features,
)
from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.provenance import Header, OtherVersion, differences, versions
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import encoded_batches, sequential_batches
from dmole_cli.data.sample import Picked, Sample
from dmole_cli.progress import Track, untracked
from dmole_cli.session import Session

LIBRARIES = ("torch", "transformers")
BATCH = 64  # samples between two steps of the progress bar; a feature does not depend on it


def routing_features(session: Session, task: str, split: str, *, track: Track = untracked) -> torch.Tensor:
    """Features [samples, width] of a split, in the order of the split.

    They are read from the split's own file; where that is missing or made from other data, another backbone or another
    layout, it is written again, and only samples are computed that no feature file of the folder knows. The file comes out
    the same, to the byte, however many of its rows were known.

    Args:
        session: its backbone has no expert attached.
        task: by name.
        split: `train`, `validation` or `test`.
        track: shows progress.

    Raises:
        DmoleError: a sample cannot be read, or the split's own file is damaged.
    """
    backbone, samples, path = session.backbone, session.samples(task, split), session.run.features(task, split)
    header = Header(
        SCHEMA,
        VERSION,
        backbone=backbone.fingerprint,
        settings={"layout": backbone.feature_layout()},
        inputs={f"data:{task}/{split}": session.data_digest(task, split)},
        versions=versions(*LIBRARIES),
    )
    try:
        made = features_header(path)
    except OtherVersion:  # computed again like any other that does not fit
        made = None
    if made is not None and not differences(made, header):
        return read_features(path, hint="delete it: it is computed again when needed")[1]
    keys = [feature_key(header, sample, session.image_digests) for sample in samples]
    width = sum(part["width"] for part in backbone.feature_layout())
    known = cached_features(path.parent, keys, width=width, libraries=LIBRARIES)
    new = {key: row for row, key in enumerate(keys) if key not in known}
    computed = _computed(backbone, Picked([samples], new.values()), f"features of {task}/{split}", track)
    known |= zip(new, computed, strict=True)
    features = torch.stack([known[key] for key in keys])
    write_features(path, [s.sample_id for s in samples], keys, features, header)
    return features


def feature_key(header: Header, sample: Sample, pictures: Mapping[Path, str] | ImageDigests) -> str:
    """Digest of all that a feature depends on.

    Picture files are known by their content (`pictures`). Pictures without a file are known by their pixels: their sources
    do not say where in the picture something lies, and whole tasks show the same sources under the same question.
    """
    seen = [pictures[file] for file in sample.files] or [_pixels(sample, i) for i in range(len(sample.images))]
    return digest_of([header.backbone, header.schema_version, header.settings, sample.question, seen])


def _pixels(sample: Sample, index: int) -> str:
    picture = sample.images[index]()
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


def _computed(backbone: Backbone, samples: Sequence[Sample], label: str, track: Track) -> torch.Tensor:
    """Features [samples, width], computed in batches of similar length."""
    if not samples:
        return torch.empty(0)
    lengths = backbone.instruction_lengths(samples)
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    batches = [[order[place] for place in places] for places in sequential_batches(len(order), BATCH)]
    encoded = encoded_batches(backbone, samples, batches, with_answer=False)
    parts = [backbone.features(batch) for batch in track(encoded, label, len(batches))]
    return torch.cat(parts)[torch.tensor(order).argsort()]
