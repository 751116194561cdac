"""Gradients of a backbone's linear modules over batches: their sum, their norms per batch, and their norms per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.backbone import IGNORED, Backbone
from dmole_cli.backbones.image_layouts import spread
from dmole_cli.processes import ALONE, World

Observer = Callable[[torch.Tensor, torch.Tensor], None]


class SiteGradients:
    """Sums and norms of the gradients of some modules.

    One process frees each gradient as soon as it is added to the sum. Several processes work on a round of batches at a time:
    each holds the gradients of its own batch, sends them to the process that sums the module's, and frees them. Either way,
    gradients are added in float32 in the order of the batches.

    A quantised weight has no gradient in autograd; the gradient of the values it stands for is computed from the module's
    input and its output's gradient.

    Args:
        model: frozen.
        names: module paths.
        scale: factor of the loss, which gradients are divided by.
        processes: those that deal the batches out among them.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, scale: float = 1.0, processes: World = ALONE) -> None:
        self._scale, self._processes = scale, processes
        self._parameters = {name: list(model.get_submodule(name).parameters(recurse=False)) for name in names}
        modules: list[Any] = [model.get_submodule(name) for name in names]
        self._quantised = [m for m in modules if not m.weight.is_floating_point()]
        # Shape and type of each gradient, for processes whose batch does not reach it.
        self._forms = {p: (p.shape, p.dtype) for group in self._parameters.values() for p in group}
        self._forms |= {m.weight: (torch.Size((m.out_features, m.in_features)), torch.float32) for m in self._quantised}
        self._sums: dict[nn.Parameter, torch.Tensor] = {}
        self._batch: dict[nn.Parameter, torch.Tensor] = {}  # this process's gradients of a round
        self._batch_norms: dict[nn.Parameter, torch.Tensor] = {}

    def sum_norms(self) -> dict[str, float]:
        """Name -> norm of the summed gradient, the weight's plus the bias's; 0 where no batch has reached it."""
        names = list(self._parameters)
        own = [
            sum(self._sums[p].norm().item() for p in self._parameters[name] if p in self._sums)
            for name in self._processes.own(names)
        ]
        return dict(zip(names, self._processes.combine(own), strict=True))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the context the modules' parameters are trainable and their gradients are collected."""
        parameters = [p for group in self._parameters.values() for p in group if p.is_floating_point()]
        hooks = [p.requires_grad_(True).register_post_accumulate_grad_hook(self._collect) for p in parameters]
        hooks += [module.register_forward_hook(self._observe) for module in self._quantised]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for p in parameters:
                p.requires_grad_(False)
                p.grad = None

    @contextmanager
    def batch(self) -> Iterator[dict[str, float]]:
        """Context of the backward pass of one batch; yields name -> norm of its gradient, filled in at the end."""
        norms: dict[str, float] = {}
        self._batch_norms.clear()
        yield norms
        values = _together(list(self._batch_norms.values())).tolist()
        found = dict(zip(self._batch_norms, values, strict=True))
        for name, group in self._parameters.items():
            # Parameters that the loss does not depend on (a layer above the features in use) count as zero.
            norms[name] = sum(found.get(p, 0.0) for p in group)

    def end_round(self) -> None:
        """Add the gradients of the processes' batches to the sums.

        Every process calls it after each round, also one that had no batch in the last round.
        """
        if self._processes.size == 1:
            return
        order = [(site, p) for site, group in enumerate(self._parameters.values()) for p in group]
        reached = self._processes.collect({number for number, (_, p) in enumerate(order) if p in self._batch})
        for number in sorted(set[int]().union(*reached)):
            site, parameter = order[number]
            shape, dtype = self._forms[parameter]
            own = self._batch.pop(parameter, None)
            own = torch.zeros(shape, dtype=dtype, device=parameter.device) if own is None else own
            # The process that `own` assigns the site to sums its gradients.
            gathered = self._processes.gather(own, to=site % self._processes.size)
            for grad in (grad for rank, grad in enumerate(gathered) if number in reached[rank]):
                self._add_to_sum(parameter, self._value(grad))

    def _collect(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        grad, parameter.grad = parameter.grad, None
        self._add(parameter, grad)

    def _observe(self, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        # Where no module below is trainable, the backward pass ends here.
        output = output if output.requires_grad else output.detach().requires_grad_()
        return _ObserveBackward.apply(output, args[0], partial(self._add_product, module))

    def _add_product(self, module: Any, x: torch.Tensor, grad: torch.Tensor) -> None:
        self._add(module.weight, grad.flatten(0, -2).float().t() @ x.flatten(0, -2).float())

    def _add(self, parameter: nn.Parameter, grad: torch.Tensor) -> None:
        value = self._value(grad)
        self._batch_norms[parameter] = value.norm()
        if self._processes.size == 1:
            self._add_to_sum(parameter, value)
        else:
            self._batch[parameter] = grad

    def _value(self, grad: torch.Tensor) -> torch.Tensor:
        return grad.float() if self._scale == 1 else grad.float() / self._scale

    def _add_to_sum(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        if parameter in self._sums:
            self._sums[parameter] += value
        else:
            self._sums[parameter] = value


class SampleNorms:
    """Norms of each sample's own gradient, from the input x of a module and the gradient g of its output.

    The weight's gradient of a sample is g^T x over its tokens. Times (answer tokens of the batch) / (answer tokens of the
    sample), it is the gradient of the sample's own loss, whatever else is in the batch.

    Args:
        backbone: frozen.
        names: module paths.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self._backbone, self._names = backbone, list(names)
        self._batch_norms: dict[str, torch.Tensor] = {}
        self._owners: dict[str, torch.Tensor] = {}
        self._samples = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the context the modules are observed."""
        hooks = [self._backbone.model.get_submodule(n).register_forward_hook(self._hook(n)) for n in self._names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def batch(self, labels: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> Iterator[dict[str, list[float]]]:
        """Context of the backward pass of one batch; yields name -> norm of each sample's gradient, filled in at the end.

        Args:
            labels: labels of the batch [samples, length], on the CPU.
            rows: modality -> sample index of each row of that tower, ascending, where rows are not samples.
        """
        answers = (labels[:, 1:] != IGNORED).sum(dim=1)
        self._samples = len(labels)
        self._owners = {modality: index.cpu() for modality, index in rows.items()}
        self._batch_norms.clear()
        norms: dict[str, list[float]] = {}
        yield norms
        own_loss = answers.sum() / answers / self._backbone.loss_scale
        # One transfer for all values: each one synchronises with the device.
        values = _together(list(self._batch_norms.values())).cpu() * own_loss if self._batch_norms else torch.empty(0)
        found = dict(zip(self._batch_norms, values.tolist(), strict=True))
        for name in self._names:
            # Modules that the loss does not depend on, or a vision encoder without images, have no gradient.
            norms[name] = found.get(name, [0.0] * len(labels))

    def _by_sample(self, x: torch.Tensor, modality: str) -> tuple[torch.Tensor, ...]:
        """The rows of each sample in a module's input, or in the gradient of its output."""
        owners = self._owners.get(modality, torch.arange(self._samples))
        own, packed = spread(owners, x, per_sample=modality not in self._owners)
        return (x[0] if packed else x).split(torch.bincount(own, minlength=self._samples).tolist())

    def _hook(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        modality = self._backbone.modality_of(name)

        def add_norms(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
            norms = []
            for own_x, own_grad in zip(self._by_sample(x, modality), self._by_sample(grad, modality), strict=True):
                flat = own_grad.flatten(0, -2).float()  # [tokens, out]
                norm = (flat.t() @ own_x.flatten(0, -2).float()).norm()
                norms.append(norm if getattr(module, "bias", None) is None else norm + flat.sum(dim=0).norm())
            self._batch_norms[name] = torch.stack(norms)

        def observe(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            return _ObserveBackward.apply(output, args[0], partial(add_norms, module))

        return observe


def _together(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack values of all devices on that of the first one; empty without values."""
    return torch.stack([value.to(values[0].device) for value in values]) if values else torch.empty(0)


class _ObserveBackward(torch.autograd.Function):
    """Identity on a module's output; its backward calls `observer(input of the module, gradient of its output)`.

    The input is saved with `save_for_backward`, so that activation checkpointing recomputes it.
    """

    @staticmethod
    def forward(ctx, output: torch.Tensor, x: torch.Tensor, observer: Observer):
        ctx.save_for_backward(x)
        ctx.observer = observer
        # Some models change the outputs for flattened tokens in place, which a view would not allow.
        return output.clone() if output.dim() == 2 else output.view_as(output)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        ctx.observer(ctx.saved_tensors[0], grad)
        return grad, None, None
