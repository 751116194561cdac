"""A backbone that is identified at once and loaded when a stage needs its weights; imports no heavy library by itself."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.loading import Loading
    from dmole_cli.settings.model import Settings


@dataclass(frozen=True)
class LazyModel:
    """A backbone as the settings describe it.

    Attributes:
        name: `embedded`, a folder, or a hub id.
        loading: data type, attention implementation and quantization of its weights.
        device_name: where it computes, as in the settings.
        precision_name: precision of losses and predictions, as in the settings.
        device_map: how it is spread over devices, as in the settings.
    """

    name: str
    loading: Loading
    device_name: str = "auto"
    precision_name: str = "auto"
    device_map: str = "none"

    @classmethod
    def of(cls, settings: Settings) -> LazyModel:
        """The backbone that the settings name."""
        from dmole_cli.backbones.loading import Loading

        loading = Loading(settings.dtype, settings.attention, settings.quantize)
        return cls(settings.backbone, loading, settings.device, settings.precision, settings.device_map)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the backbone's files, followed by loading options that differ from the defaults; does not load the model."""
        from dmole_cli.backbones.files import fingerprint_of

        return fingerprint_of(self.name) + str(self.loading)

    @cached_property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        from dmole_cli.backbones.device import find_device

        return find_device(self.device_name)

    @cached_property
    def precision(self) -> str:
        """Precision of losses and predictions, as recorded in headers: `float32`, `bfloat16` or `float16`."""
        from dmole_cli.backbones.device import find_precision

        return find_precision(self.precision_name, self.device, dtype=self.loading.dtype)

    @cached_property
    def _loaded(self) -> Backbone:
        from dmole_cli.backbones.loading import load_backbone

        return load_backbone(
            self.name, device=self.device, precision=self.precision, loading=self.loading, device_map=self.device_map
        )

    def load(self) -> Backbone:
        """The loaded model; a process loads it once."""
        return self._loaded

    def unload(self) -> None:
        """Free the loaded model, if nothing else refers to it; `load` loads it again."""
        if self.__dict__.pop("_loaded", None) is not None:
            from dmole_cli.backbones.device import return_memory

            gc.collect()  # a model's modules refer to each other in cycles
            return_memory()

    def counts(self) -> Counter[str]:
        """What the backbone has computed so far; empty if it was never loaded."""
        return self._loaded.counts if "_loaded" in self.__dict__ else Counter()
