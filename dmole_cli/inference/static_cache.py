"""Keys and values of attention in tensors of fixed size and place, as a captured decoding step needs them.

The prompts are computed with the dynamic cache of transformers; its states are then copied here. All shapes of a batch are
views of the same memory, so that only the largest one is allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

SHORTEST = 128


def rows_bucket(rows: int) -> int:
    """The number of rows that is computed for so many: the next power of two."""
    return 1 << max(rows - 1, 0).bit_length()


def length_bucket(length: int) -> int:
    """The length of the cache for so many tokens: the next power of two, or three quarters of it."""
    power = max(rows_bucket(length), SHORTEST)
    return power * 3 // 4 if length <= power * 3 // 4 and power > SHORTEST else power


class FixedLayer(StaticLayer):
    """One layer's states: `update` writes one token per row at a position that all layers share.

    A layer with a sliding window keeps all positions, too; which of them a token attends to is a matter of the mask alone, so
    that no shape depends on the number of tokens.

    Args:
        keys: [rows, heads, length, width].
        values: [rows, heads, length, width of the values].
        position: number of cached tokens, a tensor without dimensions; whoever runs the model increases it.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, position
        self.dtype, self.device, self.batch_size = keys.dtype, keys.device, len(keys)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of one token [rows, heads, 1, width], and return those of all positions."""
        place = self.cumulative_length.view(1)
        # Under autocast, states can have another dtype than those of the prompt.
        self.keys.index_copy_(2, place, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, place, value_states.to(self.values.dtype))
        return self.keys, self.values


def is_plain(cache: Any, length: int) -> bool:
    """Whether a dynamic cache has only the states of self-attention, of all tokens of this length or of the last ones."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(
        type(layer) in plain and layer.is_initialized and layer.get_seq_length() == length for layer in cache.layers
    )


class CacheStorage:
    """Memory for the states of all layers, and views of it as a cache for some rows and a length.

    Args:
        prompts: cache of the prompts, whose layers have the sizes and dtypes to store.
        position: see `FixedLayer`.
    """

    def __init__(self, prompts: Any, position: torch.Tensor) -> None:
        self.position = position
        # Per layer: keys and values as (heads, width, dtype).
        self.sizes = [[(s.shape[1], s.shape[3], s.dtype) for s in (la.keys, la.values)] for la in prompts.layers]
        self._memory: list[list[torch.Tensor]] = []
        self._positions = 0

    def fits(self, rows: int, length: int) -> bool:
        """Whether the memory is large enough for this shape."""
        return rows * length <= self._positions

    def reserve(self, rows: int, length: int) -> None:
        """Allocate memory for this shape; what was stored before is lost."""
        self._memory, self._positions = [], rows * length
        # Zeros, because a masked position that holds NaN would make its row NaN.
        self._memory = [
            [
                torch.zeros(self._positions * heads * width, dtype=dtype, device=self.position.device)
                for heads, width, dtype in sizes
            ]
            for sizes in self.sizes
        ]

    def views(self, rows: int, length: int) -> Cache:
        """The memory as a cache of this shape."""
        layers: list[Any] = []
        for sizes, flat in zip(self.sizes, self._memory, strict=True):
            keys, values = (
                memory[: rows * heads * length * width].view(rows, heads, length, width)
                for (heads, width, _), memory in zip(sizes, flat, strict=True)
            )
            layers.append(FixedLayer(keys, values, self.position))
        return Cache(layers=layers)


def load(cache: Any, prompts: Any, length: int) -> None:
    """Copy the states of prompts of this length; a layer with a sliding window has only the last ones of them."""
    for own, other in zip(cache.layers, prompts.layers, strict=True):
        for states, loaded in ((own.keys, other.keys), (own.values, other.values)):
            rows, _, known, _ = loaded.shape
            states[:rows, :, length - known : length].copy_(loaded)


def select_rows(source: Any, target: Any, rows: torch.Tensor) -> None:
    """Copy some rows [indices] of one cache to another one, which has as many rows and may use the same memory."""
    for own, other in zip(target.layers, source.layers, strict=True):
        own.keys.copy_(other.keys.index_select(0, rows))
        own.values.copy_(other.values.index_select(0, rows))


def release(cache: Any) -> None:
    """Free the memory of a cache of transformers."""
    for layer in cache.layers:
        layer.keys = layer.values = None
