"""Batch-invariant pooled features: the parts of a routing feature.

The features of an image or an instruction are bit-identical whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from dmole_cli.backbones.image_layouts import View

TOLERANCE = 1e-4  # of the largest state: far above the rounding of float32, far below what a token changes that is seen
BATCH_SIZE = 16  # images or instructions per forward pass for features, always exactly this number


def max_pooled(
    items: Sequence[tuple[int, View]],
    tower: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    shape: tuple[int, int],
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    fill: bool = True,
) -> torch.Tensor:
    """Maximum over all tokens of a tower's states per sample [samples, width] (`shape`), on the CPU; zeros without items.

    Args:
        items: (sample index, inputs of the tower), any number per sample.
        tower: maps stacked inputs to states [items, tokens, width].
        shape: shape of the result.
        device: device of the tower.
        batch_size: items per forward pass, always exactly this number.
        fill: fill up incomplete batches; without it, there are at most `batch_size` items in a forward pass, and the last bits
            depend on their number.
    """
    owners: list[int] = []
    pooled = [torch.empty(0, shape[1], device=device)]
    for indices, views in _fixed_batches(items, batch_size, fill=fill):
        states = tower({name: rows.to(device) for name, rows in views.items()})[: len(indices)]
        owners += indices
        pooled.append(states.float().amax(dim=1))
    targets = torch.tensor(owners, dtype=torch.long)[:, None].expand(-1, shape[1])
    return torch.zeros(shape).scatter_reduce(0, targets, torch.cat(pooled).cpu(), "amax", include_self=False)


def max_pooled_instructions(
    instructions: Sequence[torch.Tensor],
    tower: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    *,
    device: torch.device,
) -> torch.Tensor:
    """As `max_pooled` for instructions alone [instructions, width], padded to common lengths: a few take one forward pass.

    Tokens see only those before them, so that padding on the right changes the last bits alone; `is_causal` checks it.

    Args:
        instructions: tokens of each instruction [length].
        tower: maps tokens [instructions, tokens] to states [instructions, tokens, width].
        width: of the states.
        device: of the tower.
    """
    found = torch.zeros(len(instructions), width)
    order = sorted((i for i, tokens in enumerate(instructions) if len(tokens)), key=lambda i: len(instructions[i]))
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        padded = pad_sequence([instructions[i] for i in rows], batch_first=True)
        states = tower(padded.to(device)).float()
        lengths = torch.tensor([len(instructions[i]) for i in rows], device=device)
        padding = torch.arange(states.shape[1], device=device)[None] >= lengths[:, None]
        found[rows] = states.masked_fill(padding[..., None], -torch.inf).amax(dim=1).cpu()
    return found


def is_causal(tower: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> bool:
    """Whether the states of tokens [tokens] on their device are the same, but for rounding, where further tokens follow them."""
    alone, followed = tower(tokens[None]), tower(tokens.repeat(2)[None])[:, : len(tokens)]
    return bool((alone - followed).abs().max() <= TOLERANCE * alone.abs().max())


def _fixed_batches(items: Sequence[tuple[int, View]], size: int, *, fill: bool) -> Iterator[tuple[list[int], View]]:
    """Batches of items with equal shapes, always of one size if they are filled up: (indices, name -> rows [size, ...]).

    Padding, and even the number of rows, change the order in which a matrix product is summed, and with it the last bits.
    Without padding and with a fixed number of rows, an item's result does not depend on the others. Incomplete batches are
    filled up with copies of their first item.
    """
    by_shape: dict[tuple, list[tuple[int, View]]] = {}
    for index, view in items:
        by_shape.setdefault(tuple((name, tensor.shape) for name, tensor in view.items()), []).append((index, view))
    for group in by_shape.values():
        for start in range(0, len(group), size):
            indices, views = zip(*group[start : start + size], strict=True)
            filled = [*views, *views[:1] * (size - len(views))] if fill else views
            yield list(indices), {name: torch.stack([view[name] for view in filled]) for name in views[0]}
