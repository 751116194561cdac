"""The matrices of the expert that trains, in one tensor per device and tower, so that a step updates all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dmole_cli.experts.expert import Expert, MatrixGradients


@dataclass
class Piece:
    """Some matrices of an expert, one after another.

    Attributes:
        numbers: of the matrices, in the order of `Expert.parameters`.
        values: their values [number of values], float32; B is stored transposed.
        gradients: what the backward passes have written, in the compute dtype.
    """

    numbers: list[int]
    values: torch.Tensor
    gradients: torch.Tensor


class FlatExpert:
    """Gives an expert's matrices a common storage, and collects their gradients.

    The matrices stay the same tensors, so that a penalty that holds them has their new values. B is stored
    transposed, as the layer uses it: a few kernels then convert all matrices for the forward pass.

    Args:
        expert: trainable; its matrices get new storage.
        towers: tower of each site. A batch without images has no gradient of the vision encoder's matrices, and leaves them and
            the optimizer's moments unchanged.
        dtype: of the backbone's activations.

    Attributes:
        matrices: A and B of every site, and its gates if it has some, in the order of `Expert.parameters`.
        sizes: number of values of each matrix.
        pieces: parts that always have their gradients together; the optimizer's parameters are their values.
    """

    def __init__(self, expert: Expert, towers: dict[str, str], dtype: torch.dtype) -> None:
        self.expert, self.matrices = expert, list(expert.parameters())
        self.sizes = [matrix.numel() for matrix in self.matrices]
        number = {id(matrix): index for index, matrix in enumerate(self.matrices)}
        homes: dict[tuple[torch.device, str], list[int]] = {}
        for site in sorted(expert.sites):
            own = list(expert.parameters_of(site))
            homes.setdefault((own[0].device, towers[site]), []).extend(number[id(matrix)] for matrix in own)
        self._transposed = {number[id(b)] for _, b in expert.sites.values()}
        self.pieces = [self._gathered(numbers, dtype) for numbers in homes.values()]
        self._written: dict[int, MatrixGradients] = {}
        slots = {n: slot for piece in self.pieces for n, slot in self._slots(piece, piece.gradients)}
        self._sites: dict[str, MatrixGradients] = {}
        for site, (a, b) in expert.sites.items():
            if site not in expert.gates:  # autograd computes the gradients of a mixture
                first, second = number[id(a)], number[id(b)]
                sink = MatrixGradients(slots[first].view(a.shape), slots[second].view(b.shape[::-1]))
                self._sites[site] = self._written[first] = self._written[second] = sink

    @torch.no_grad()
    def _gathered(self, numbers: list[int], dtype: torch.dtype) -> Piece:
        """Move matrices into one tensor."""
        parts = [self._stored(n, self.matrices[n].detach()).reshape(-1) for n in numbers]
        values = torch.cat(parts)
        piece = Piece(numbers, values, torch.zeros_like(values, dtype=dtype))
        for n, part in self._slots(piece, values):
            shape = self.matrices[n].shape
            self.matrices[n].data = part.view(shape[::-1]).t() if n in self._transposed else part.view(shape)
        values.requires_grad_()
        return piece

    def _stored(self, number: int, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix, or a tensor of its shape, as it is stored."""
        return matrix.t() if number in self._transposed else matrix

    def _slots(self, piece: Piece, flat: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """The number of each matrix of a piece, and its part of a tensor of the piece's size."""
        return zip(piece.numbers, flat.split([self.sizes[n] for n in piece.numbers]), strict=True)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the block, routed layers write the gradients of the matrices here; those of an earlier block are forgotten."""
        for sink in self._sites.values():
            sink.reached = False
        for matrix in self.matrices:
            matrix.grad = None
        self.expert.gradients = self._sites
        try:
            yield
        finally:
            self.expert.gradients = {}

    def reached(self) -> list[int]:
        """Numbers of the matrices whose gradient the layers have written."""
        return [n for n, sink in self._written.items() if sink.reached]

    def mark(self, reached: Sequence[int]) -> None:
        """Declare that the gradients of these matrices [numbers], and no others, are written."""
        own = set(reached)
        for n, sink in self._written.items():
            sink.reached = n in own

    @torch.no_grad()
    def gradient(self) -> tuple[list[torch.Tensor], list[bool]]:
        """The gradient of each piece after a backward pass [values], float32, and for each matrix whether it has one.

        Autograd's gradients, as those of a penalty, are added to what the layers have written. Further blocks overwrite it.
        """
        reached = [False] * len(self.matrices)
        totals = []
        for piece in self.pieces:
            total = piece.gradients if piece.gradients.dtype == torch.float32 else piece.gradients.float()
            for n, slot in self._slots(piece, total):
                there, grad = n in self._written and self._written[n].reached, self.matrices[n].grad
                if grad is not None:
                    own = self._stored(n, grad).reshape(-1)
                    slot.add_(own) if there else slot.copy_(own)
                reached[n] = there or grad is not None
            totals.append(total)
        return totals, reached

    def without(self, gradient: Sequence[torch.Tensor], reached: Sequence[bool]) -> list[torch.Tensor]:
        """The gradient of each piece with zeros for the matrices that have none."""
        found = [part.clone() for part in gradient]
        for piece, part in zip(self.pieces, found, strict=True):
            for n, slot in self._slots(piece, part):
                if not reached[n]:
                    slot.zero_()
        return found

    def assign(
        self, gradient: Sequence[torch.Tensor], reached: Sequence[bool], optimizer: torch.optim.Optimizer
    ) -> None:
        """Set the gradients that the optimizer uses.

        A piece of which a step has reached some matrices only is divided for good, so that the others and their moments stay
        unchanged in such steps.

        Args:
            gradient: of each piece [values], float32.
            reached: for each matrix, whether it has a gradient.
            optimizer: of the pieces.
        """
        parts = []
        for piece, grad in zip(self.pieces, gradient, strict=True):
            found = {reached[n] for n in piece.numbers}
            own = [piece] if len(found) == 1 else self._divided(piece, optimizer)
            parts += own
            for part, slot in zip(own, grad.split([part.values.numel() for part in own]), strict=True):
                part.values.grad = slot if reached[part.numbers[0]] else None
        self.pieces = parts

    def matrix_gradients(self) -> dict[int, torch.Tensor]:
        """The gradients that the optimizer uses [values], by the number of their matrix, of those that have one."""
        found: dict[int, torch.Tensor] = {}
        for piece in self.pieces:
            if piece.values.grad is not None:
                found |= self._slots(piece, piece.values.grad)
        return found

    @torch.no_grad()
    def _divided(self, piece: Piece, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """Every matrix of a piece as a piece of its own, in the same storage, for the optimizer, too."""
        gradients = dict(self._slots(piece, piece.gradients))
        parts = [
            Piece([n], values.detach().requires_grad_(), gradients[n]) for n, values in self._slots(piece, piece.values)
        ]
        state = optimizer.state.pop(piece.values, {})
        for part in parts if state else ():
            optimizer.state[part.values] = {
                name: dict(self._slots(piece, value))[part.numbers[0]] if value.dim() else value.clone()
                for name, value in state.items()
            }
        for group in optimizer.param_groups:
            group["params"] = [
                new
                for old in group["params"]
                for new in ([part.values for part in parts] if old is piece.values else [old])
            ]
        return parts

    # ------------------------------------------------------------------------------------------------ checkpoints

    def values(self) -> torch.Tensor:
        """The values of all matrices [values], on the CPU, matrix by matrix as they are stored."""
        return torch.cat([self._stored(n, m.detach()).reshape(-1).cpu() for n, m in enumerate(self.matrices)])

    def moments(self, name: str, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """One of the optimizer's moments of all matrices, in the order of `values`; zero where it has none yet."""
        found = [torch.zeros(size) for size in self.sizes]
        for piece in self.pieces:
            if piece.values in optimizer.state:
                for n, slot in self._slots(piece, optimizer.state[piece.values][name]):
                    found[n] = slot.cpu()
        return torch.cat(found)

    def steps(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Number of updates of each matrix [matrices]."""
        found = torch.zeros(len(self.matrices), dtype=torch.int64)
        for piece in self.pieces:
            if piece.values in optimizer.state:
                found[piece.numbers] = int(optimizer.state[piece.values]["step"])
        return found

    @torch.no_grad()
    def restore(
        self,
        values: torch.Tensor,
        moments: dict[str, torch.Tensor],
        steps: torch.Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Restore what `values`, `moments` and `steps` have given."""
        for n, value in enumerate(values.split(self.sizes)):
            stored = self._stored(n, self.matrices[n].detach())
            stored.copy_(value.view(stored.shape))
        parts = []
        for piece in self.pieces:
            parts += [piece] if len({int(steps[n]) for n in piece.numbers}) == 1 else self._divided(piece, optimizer)
        self.pieces = parts
        for piece in parts:
            step = int(steps[piece.numbers[0]])
            if step:
                own = {
                    name: torch.cat([moment.split(self.sizes)[n] for n in piece.numbers]).to(piece.values.device)
                    for name, moment in moments.items()
                }
                # A fused optimizer keeps its count on the device.
                home = piece.values.device if optimizer.defaults.get("fused") else torch.device("cpu")
                optimizer.state[piece.values] = {"step": torch.tensor(float(step), device=home), **own}
