"""Routing features of a split, computed once per sample and read from `features/` by every later stage.

A feature depends on the backbone (its processor included), on the feature layout, and on the sample's instruction and images. A
digest of these is its key. A feature is read from any file of the folder that holds its key: that of this split before its data
changed, of another split, or of another task.

Features are computed in batches, each stored on disk as soon as it is complete; several processes deal them out.
"""

from __future__ import annotations

import hashlib
import warnings
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dmole_cli.artifacts.errors import ArtifactError, OtherVersion
from dmole_cli.artifacts.features import cached_features, read_features, write_features
from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.kinds import FEATURES
from dmole_cli.artifacts.partial import PartialResults, partial_results
from dmole_cli.artifacts.provenance import Header, differences, versions
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import AUTO, encoded_batches, sequential_batches
from dmole_cli.data.sample import Picked, Sample
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.processes import world
from dmole_cli.progress import Track, quiet

LIBRARIES = ("torch", "transformers")
BATCH = 64  # samples whose features are stored at a time; no feature depends on it
STORED = np.dtype("<f4")  # of the values that are stored batch by batch


def routing_features(
    task: str, split: str, *, data: Tasks, backbone: Backbone, run: Run, track: Track = quiet, workers: int = AUTO
) -> torch.Tensor:
    """Routing features [samples, width] of a split, in the order of the split.

    They are read from the split's file. Where that is missing, or was made from other data, another backbone or
    another layout, it is written again, and only features that no file of the folder holds are computed. The bytes
    of the file do not depend on how many of its rows were known.

    Args:
        task: name of the task.
        split: `train`, `validation` or `test`.
        data: the tasks.
        backbone: the loaded model, with no expert attached.
        run: the run directory.
        track: shows progress.
        workers: processes that prepare samples.

    Raises:
        DmoleError: a sample cannot be read, or a feature is not finite.
    """
    samples, path = data.samples(task, split), run.features(task, split)
    header = Header.of(
        FEATURES,
        backbone=backbone.fingerprint,
        settings={"layout": backbone.feature_layout()},
        inputs=data.inputs((task, split)),
        versions=versions(*LIBRARIES),
    )
    sample_ids = [sample.sample_id for sample in samples]
    features = _stored(path, header, sample_ids) if world().first else None
    if world().share(features is None):
        own = (feature_key(header, samples[row], data.image_digests) for row in world().own(range(len(samples))))
        keys = world().combine(list(own))
        width = sum(part["width"] for part in backbone.feature_layout())
        known = cached_features(path.parent, keys, width=width, libraries=LIBRARIES) if world().first else {}
        new = world().share({key: row for row, key in enumerate(keys) if key not in known})
        label = f"features of {task}/{split}"
        with partial_results(path.parents[1], [label, versions(*LIBRARIES), list(new)]) as stored:
            if stored.waited and world().first:  # for a command that has perhaps made them
                features = _stored(path, header, sample_ids)
            if world().share(features is None):
                computed = _computed(backbone, Picked([samples], new.values()), stored, label, track, workers=workers)
                if world().first:
                    known |= zip(new, computed, strict=True)
                    features = torch.stack([known[key] for key in keys])
                    write_features(path, sample_ids, keys, features, header)
    # The other processes read what the first one has found, or written.
    return read_features(path)[1] if features is None else features


def _stored(path: Path, header: Header, sample_ids: list[str]) -> torch.Tensor | None:
    """The features of a file that fits a header; None where it does not exist, is another version's, or must be written again."""
    try:
        made = header_of(path, FEATURES)
        if made is None or differences(made, header):
            return None
        found, features, _ = read_features(path)
    except OtherVersion:  # computed again, as after any other change
        return None
    except ArtifactError as error:
        warnings.warn(DmoleWarning(f"{error.message}; its features are computed again"), stacklevel=3)
        return None
    return features if found == sample_ids else None


def feature_key(header: Header, sample: Sample, image_digests: Mapping[Path, str] | ImageDigests) -> str:
    """Digest of everything that a feature depends on.

    Image files are identified by their content. Images without a file are identified by their pixels: their sources do not say
    where in the image something lies, and whole tasks have the same sources and the same question.
    """
    images = [image_digests[file] for file in sample.files] or [_pixels(sample, i) for i in range(len(sample.images))]
    return digest_of([header.backbone, header.schema_version, header.settings, sample.question, images])


def _pixels(sample: Sample, index: int) -> str:
    image = sample.images[index]()
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _computed(
    backbone: Backbone, samples: Sequence[Sample], stored: PartialResults, label: str, track: Track, *, workers: int
) -> torch.Tensor:
    """Features [samples, width], in the first process; each computes its part of the batches, which are of similar length."""
    if not samples:
        return torch.empty(0)
    lengths = backbone.instruction_lengths(samples)
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    batches = [[order[i] for i in indices] for indices in sequential_batches(len(order), BATCH)]
    own = stored.missing(len(batches))
    encoded = encoded_batches(
        backbone, samples, [batches[number] for number in own], with_answer=False, workers=workers
    )
    for number, batch in zip(own, track(encoded, label, len(own)), strict=True):
        features = backbone.features(batch)
        require_finite(features, [samples[row].sample_id for row in batches[number]], label)
        stored.add(number, b64encode(features.numpy().astype(STORED).tobytes()).decode())
    found = stored.all()
    if not world().first:
        return torch.empty(0)
    parts = {number: np.frombuffer(b64decode(packed), STORED).astype(np.float32) for number, packed in found}
    rows = [torch.from_numpy(parts[number]).view(len(batch), -1) for number, batch in enumerate(batches)]
    return torch.cat(rows)[torch.tensor(order).argsort()]


def require_finite(features: torch.Tensor, sample_ids: Sequence[str], label: str) -> None:
    """Refuse features [samples, width] with numbers that are not finite.

    Args:
        features: one row per sample.
        sample_ids: names of the samples, for the message.
        label: what the features are called in the message.

    Raises:
        DmoleError: a feature is NaN or infinite; it names the samples.
    """
    if wrong := (~features.isfinite().all(dim=1)).nonzero().flatten().tolist():
        shown = ", ".join(sample_ids[row] for row in wrong[:5])
        raise DmoleError(
            f"the {label} are not finite for {len(wrong)} sample(s): {shown}",
            "check these samples with `dmole tasks check`; in float16 values may overflow: --dtype bfloat16 or float32",
        )
