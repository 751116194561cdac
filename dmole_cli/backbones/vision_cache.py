"""Pictures that no expert looks at are looked at once: what the vision tower makes of them is a constant of the sample.

Where no active expert of a batch sits in the vision tower, tower and projector give for a picture what they always give. It is
computed once and kept in a file of bounded size; later batches hand it to the model as `mm_encoder_outputs`, the argument that
transformers has for pictures that are encoded already.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dmole_cli.artifacts.files import unwritable
from dmole_cli.backbones.backbone import Backbone, Encoded


class VisionFeatureCache:
    """Encoded pictures of one process.

    Args:
        backbone: the frozen model.
        folder: where the file lies; it has no name there and is gone when the process ends, however it ends.
        limit: bytes that it may take; pictures that no longer fit are looked at each time.
    """

    def __init__(self, backbone: Backbone, *, folder: Path, limit: int) -> None:
        self.backbone, self.folder, self.limit = backbone, folder, limit
        self.usable = "mm_encoder_outputs" in inspect.signature(backbone.model.model.forward).parameters
        self._takes = (
            set(inspect.signature(backbone.model.model.get_image_features).parameters) if self.usable else set()
        )
        self._stacked = True  # one tensor for all pictures, or a list with an entry each: families differ
        self._file: Any = None
        self._size = 0
        self._places: dict[bytes, list[tuple[int, tuple[int, ...]]]] = {}

    @torch.no_grad()
    def replace(self, inputs: dict[str, Any], encoded: Sequence[Encoded]) -> dict[str, Any]:
        """Inputs of a batch with its pictures encoded; unchanged where there are none, or the model cannot take them.

        Args:
            inputs: of `Backbone.collate`.
            encoded: the samples of the batch, in their order.
        """
        picture_keys = {key for sample in encoded for key in sample.vision}
        if not self.usable or not self.limit or "pixel_values" not in picture_keys:
            return inputs
        parts = []
        for sample in encoded:
            if "pixel_values" in sample.vision:
                parts += self._parts(sample)
        pooled: Any = torch.cat(parts) if self._stacked else parts
        kept = {key: value for key, value in inputs.items() if not key.startswith("pixel_")}
        return {**kept, "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=pooled)}}

    def _parts(self, sample: Encoded) -> list[torch.Tensor]:
        key = hashlib.sha256()
        for name in sorted(sample.vision):
            key.update(name.encode() + sample.vision[name].contiguous().numpy().tobytes())
        if (places := self._places.get(key.digest())) is not None:
            return [self._read(*place) for place in places]
        self.backbone.counts["vision_rows"] += self.backbone.family.vision_rows(sample.vision)
        vision = {name: value.to(self.backbone.device) for name, value in sample.vision.items() if name in self._takes}
        with self.backbone.autocast():
            pooled = self.backbone.model.model.get_image_features(**vision, return_dict=True).pooler_output
        self._stacked = isinstance(pooled, torch.Tensor)
        # In the type of the embeddings that they will stand among, as `_read` gives them, whatever autocast made of them.
        parts = [part.to(self.backbone.dtype) for part in ([pooled] if self._stacked else pooled)]
        self._keep(key.digest(), parts)
        return parts

    def _keep(self, key: bytes, parts: list[torch.Tensor]) -> None:
        arrays = [part.float().cpu().contiguous().numpy() for part in parts]
        if self._size + sum(array.nbytes for array in arrays) > self.limit:
            return
        places = []
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (it lives as long as this object)
            for array in arrays:
                # Written and not mapped: a full disk is an error then, and not the end of the process.
                os.pwrite(self._file.fileno(), array.tobytes(), self._size)
                places.append((self._size, array.shape))
                self._size += array.nbytes
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._places[key] = places

    def _read(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        mapped = np.memmap(self._file, dtype=np.float32, mode="r", offset=offset, shape=shape)
        return torch.from_numpy(np.array(mapped)).to(self.backbone.device, self.backbone.dtype)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._places.clear()
