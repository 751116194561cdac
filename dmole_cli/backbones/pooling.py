"""What the towers of a backbone make of single pictures and instructions: the parts of a routing feature.

Each item's value depends on that item alone, to the bit, whatever it is computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from dmole_cli.backbones.image_layouts import View

SAME_ROWS = 16  # pictures, or instructions, that a tower sees at once for features: never more, never fewer


def maxima(
    items: Sequence[tuple[int, View]],
    tower: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    shape: tuple[int, int],
    *,
    device: torch.device,
) -> torch.Tensor:
    """Maxima over all tokens of a tower's states [samples, width] (`shape`), on the CPU; zeros where there are none.

    Args:
        items: (sample index, what the tower takes of it), as many as a sample has.
        tower: takes views stacked, gives states [items, tokens, width].
        shape: of the result.
        device: where the tower is.
    """
    owners: list[int] = []
    tops = [torch.empty(0, shape[1], device=device)]
    for indices, views in in_equal_shapes(items):
        states = tower({name: rows.to(device) for name, rows in views.items()})[: len(indices)]
        owners += indices
        tops.append(states.float().amax(dim=1))
    places = torch.tensor(owners, dtype=torch.long)[:, None].expand(-1, shape[1])
    return torch.zeros(shape).scatter_reduce(0, places, torch.cat(tops).cpu(), "amax", include_self=False)


def in_equal_shapes(items: Sequence[tuple[int, View]]) -> Iterator[tuple[list[int], View]]:
    """Stack views of the same shapes, always SAME_ROWS of them: (indices, name -> rows [SAME_ROWS, ...]).

    Padding to the longest of a batch, and even the number of rows, choose how a product is added up, and with that its last
    bits. With nothing padded and the number of rows fixed, what comes out for an item does not depend on its company.
    Groups that are not full are filled up with copies of their first item, behind the others.
    """
    alike: dict[tuple, list[tuple[int, View]]] = {}
    for index, view in items:
        alike.setdefault(tuple((name, tensor.shape) for name, tensor in view.items()), []).append((index, view))
    for group in alike.values():
        for start in range(0, len(group), SAME_ROWS):
            indices, views = zip(*group[start : start + SAME_ROWS], strict=True)
            filled = [*views, *views[:1] * (SAME_ROWS - len(views))]
            yield list(indices), {name: torch.stack([view[name] for view in filled]) for name in views[0]}
