"""Gradients of a backbone's linear modules over batches: their sum, their norms, and those of single samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.backbone import IGNORED, Backbone


class SiteGradients:
    """Sums and norms of the gradients of some modules; a gradient lives from its completion to its addition to the sum.

    A quantised weight takes no gradient; that of the numbers that it stands for is made from what passes the module.

    Args:
        model: frozen.
        names: module paths.
        scale: what the loss is multiplied with; taken out again.

    Attributes:
        norms: name -> a norm per batch, that of the weight plus that of the bias.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, scale: float = 1.0) -> None:
        self._scale = scale
        self._parameters = {name: list(model.get_submodule(name).parameters(recurse=False)) for name in names}
        modules: list[Any] = [model.get_submodule(name) for name in names]
        self._quantised = [m for m in modules if not m.weight.is_floating_point()]
        self._sums: dict[nn.Parameter, torch.Tensor] = {}
        self._of_batch: dict[nn.Parameter, torch.Tensor] = {}
        self.norms: dict[str, list[float]] = {name: [] for name in names}

    def sums(self, name: str) -> list[torch.Tensor]:
        """The summed gradients of weight and bias, float32, those that any batch has reached."""
        return [self._sums[p] for p in self._parameters[name] if p in self._sums]

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Inside the block the modules take gradients."""
        parameters = [p for group in self._parameters.values() for p in group if p.is_floating_point()]
        hooks = [p.requires_grad_(True).register_post_accumulate_grad_hook(self._collect) for p in parameters]
        hooks += [module.register_forward_hook(self._watch) for module in self._quantised]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for p in parameters:
                p.requires_grad_(False)
                p.grad = None

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around the backward pass of one batch."""
        self._of_batch.clear()
        yield
        values = torch.stack(list(self._of_batch.values())).tolist() if self._of_batch else []
        found = dict(zip(self._of_batch, values, strict=True))
        for name, group in self._parameters.items():
            # A weight that the loss does not reach (a layer above the features in use) has no gradient: it pulls at nothing.
            self.norms[name].append(sum(found.get(p, 0.0) for p in group))

    def _collect(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        grad, parameter.grad = parameter.grad.float(), None
        self._add(parameter, grad)

    def _watch(self, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        # Where nothing below takes gradients either, the way back begins here.
        output = output if output.requires_grad else output.detach().requires_grad_()
        return _Seen.apply(output, args[0], partial(self._seen, module))

    def _seen(self, module: Any, x: torch.Tensor, grad: torch.Tensor) -> None:
        self._add(module.weight, grad.flatten(0, -2).float().t() @ x.flatten(0, -2).float())

    def _add(self, parameter: nn.Parameter, grad: torch.Tensor) -> None:
        if self._scale != 1:
            grad = grad / self._scale
        self._of_batch[parameter] = grad.norm()
        if parameter in self._sums:
            self._sums[parameter] += grad
        else:
            self._sums[parameter] = grad


class SampleNorms:
    """Norms of each sample's own gradient, from what passes a module: its weight's is g^T x over the sample's tokens.

    A sample's part in the gradient of its batch, times (answer tokens of the batch) / (its own), is the gradient of the
    sample's own loss, whoever shares its batch.

    Args:
        backbone: frozen.
        names: module paths.

    Attributes:
        norms: name -> a norm per sample, that of the weight plus that of the bias.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self._backbone = backbone
        self.norms: dict[str, list[float]] = {name: [] for name in names}
        self._of_batch: dict[str, torch.Tensor] = {}
        self._rows: dict[str, list[int]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the block the modules are watched."""
        hooks = [self._backbone.model.get_submodule(n).register_forward_hook(self._hook(n)) for n in self.norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def batch(self, labels: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Around the backward pass of one batch.

        Args:
            labels: of the batch [samples, length], on the CPU.
            rows: modality -> sample index of each row of that tower, ascending, where rows are not samples.
        """
        answers = (labels[:, 1:] != IGNORED).sum(dim=1)
        self._rows = {m: torch.bincount(index, minlength=len(labels)).tolist() for m, index in rows.items()}
        self._of_batch.clear()
        yield
        own_loss = answers.sum() / answers / self._backbone.loss_scale
        # Brought over at once: each look at a number waits for the device.
        values = torch.stack(list(self._of_batch.values())).cpu() * own_loss if self._of_batch else torch.empty(0)
        found = dict(zip(self._of_batch, values.tolist(), strict=True))
        for name, norms in self.norms.items():
            # Nothing came by where the loss does not reach, or where nobody has a picture.
            norms += found.get(name, [0.0] * len(labels))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        modality = self._backbone.modality_of(name)

        def seen(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
            rows = self._rows.get(modality, 1)
            norms = []
            for own_x, own_grad in zip(x.split(rows), grad.split(rows), strict=True):
                flat = own_grad.flatten(0, -2).float()  # [tokens, out]
                norm = (flat.t() @ own_x.flatten(0, -2).float()).norm()
                norms.append(norm if getattr(module, "bias", None) is None else norm + flat.sum(dim=0).norm())
            self._of_batch[name] = torch.stack(norms)

        def watch(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            return _Seen.apply(output, args[0], partial(seen, module))

        return watch


class _Seen(torch.autograd.Function):
    """A module's output as it is; on the way back `seen` is shown the module's input and its output's gradient.

    The input is saved as an operation saves it: under `recomputed` it is not kept, but computed again.
    """

    @staticmethod
    def forward(ctx, output: torch.Tensor, x: torch.Tensor, seen: Callable[[torch.Tensor, torch.Tensor], None]):
        ctx.save_for_backward(x)
        ctx.seen = seen
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        ctx.seen(ctx.saved_tensors[0], grad)
        return grad, None, None
