"""Routing features of a split: computed once per sample, kept in the run directory, read by every later stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dmole_cli.artifacts.features import SCHEMA, VERSION, features_header, read_features, write_features
from dmole_cli.artifacts.provenance import Header, differences, versions
from dmole_cli.backbones.adapter import Backbone
from dmole_cli.outcome import Track, untracked
from dmole_cli.sample import Sample
from dmole_cli.training.batches import encoded_batches, in_order

BATCH = 64


def features_of(
    backbone: Backbone, samples: Sequence[Sample], path: Path, *, label: str, digest: str, track: Track = untracked
) -> torch.Tensor:
    """Features [samples, width] of a split, in the order of the split, from `path` if it holds them, else computed.

    Args:
        backbone: with no expert attached.
        samples: the split.
        path: the feature file; replaced where it was made from other data or another backbone.
        label: `<task>/<split>`, for the header and the progress bar.
        digest: of the split (`Session.data_digest`).
        track: shows progress.
    """
    header = Header(
        SCHEMA,
        VERSION,
        backbone=backbone.fingerprint,
        settings={"layout": backbone.feature_layout()},
        inputs={f"data:{label}": digest},
        versions=versions("torch", "transformers"),
    )
    made = features_header(path)
    if made is not None and not differences(made, header):
        return read_features(path, hint="delete it: it is computed again when needed")[1]
    batches = in_order(len(samples), BATCH)
    parts = [
        backbone.features(batch)
        for batch in track(
            encoded_batches(backbone, samples, batches, with_answer=False), f"features of {label}", len(batches)
        )
    ]
    features = torch.cat(parts)
    write_features(path, [s.sample_id for s in samples], features, header)
    return features
