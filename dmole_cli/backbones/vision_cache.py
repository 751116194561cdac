"""Cache of frozen vision features.

Without an active expert in the vision encoder, its features of an image (and the projector's) never change. They are computed
once, stored in a file of limited size, and passed to the model in later batches as `mm_encoder_outputs`, the argument of
transformers for images that are already encoded.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dmole_cli.artifacts.files import unwritable
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.vision_states import feature_arguments

# The parts of an output without more than pooled features, such as features for single blocks of the language model.
ALL_OF_IT = {part.name for part in fields(BaseModelOutputWithPooling)}


class VisionFeatureCache:
    """Projected vision features of a process's samples, in a temporary file.

    Args:
        backbone: the frozen model.
        folder: folder of the file, which has no name there and disappears when the process ends, however it ends.
        limit: maximum size in bytes; images that no longer fit are encoded every time.
    """

    def __init__(self, backbone: Backbone, *, folder: Path, limit: int) -> None:
        self.backbone, self.folder, self.limit = backbone, folder, limit
        model = getattr(backbone.model, "model", None)
        known = model is not None and "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        self._arguments = feature_arguments(model) if known else set()
        # The features must be all that the model takes from its images, which their first computation tells.
        self.supported = bool(self._arguments)
        self._stacked = True  # features are one tensor for all images, or a list with one per image, by family
        self._file: Any = None
        self._size = 0
        self._entries: dict[bytes, list[tuple[int, tuple[int, ...]]]] = {}  # key -> (offset, shape) of each array

    @torch.no_grad()
    def replace(self, inputs: dict[str, Any], encoded: Sequence[Encoded]) -> dict[str, Any]:
        """Replace the pixels of a batch by encoded images; inputs without images, or of unsupported models, are unchanged.

        Args:
            inputs: result of `Backbone.collate`.
            encoded: samples of the batch, in order.
        """
        pixels = self.backbone.family.pixels
        with_images = [sample for sample in encoded if pixels in sample.vision]
        if not self.supported or not self.limit or not with_images:
            return inputs
        features: list[torch.Tensor] = []
        for sample in with_images:
            own = self._features(sample)
            if own is None:
                self.supported = False
                return inputs
            features += own
        pooled: Any = torch.cat(features) if self._stacked else features
        rest = {key: value for key, value in inputs.items() if not key.startswith("pixel_")}
        return {**rest, "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=pooled)}}

    def _features(self, sample: Encoded) -> list[torch.Tensor] | None:
        """The projected features of a sample's images; None where the model takes more from its images than these."""
        digest = hashlib.sha256()
        for name in sorted(sample.vision):
            digest.update(
                name.encode() + sample.vision[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        key = digest.digest()
        if key in self._entries:
            return [self._read(*entry) for entry in self._entries[key]]
        backbone = self.backbone
        vision = {name: backbone.to_device(value) for name, value in sample.vision.items() if name in self._arguments}
        with backbone.autocast():
            output = backbone.model.model.get_image_features(**vision, return_dict=True)
        pooled = output.pooler_output
        self._stacked = isinstance(pooled, torch.Tensor)
        parts = [pooled] if self._stacked else pooled
        plain = set(output) <= ALL_OF_IT and isinstance(parts, list | tuple)
        if not plain or not all(isinstance(part, torch.Tensor) for part in parts):
            return None
        backbone.counts["vision_rows"] += backbone.family.vision_rows(sample.vision)
        # In the type of the token embeddings, as `_read` returns them, also under autocast.
        features = [part.to(backbone.dtype) for part in parts]
        self._write(key, features)
        return features

    def _write(self, key: bytes, features: list[torch.Tensor]) -> None:
        arrays = [part.float().cpu().contiguous().numpy() for part in features]
        if self._size + sum(array.nbytes for array in arrays) > self.limit:
            return
        entries = []
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (open as long as this object lives)
            for array in arrays:
                # Written, not mapped: a full disk raises an error instead of killing the process.
                os.pwrite(self._file.fileno(), array.tobytes(), self._size)
                entries.append((self._size, array.shape))
                self._size += array.nbytes
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._entries[key] = entries

    def _read(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        mapped = np.memmap(self._file, dtype=np.float32, mode="r", offset=offset, shape=shape)
        return torch.from_numpy(np.array(mapped)).to(self.backbone.device, self.backbone.dtype)

    def close(self) -> None:
        """Close the file, which deletes it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._entries.clear()
