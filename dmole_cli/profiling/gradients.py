"""Gradients of a backbone's linear modules over batches: their sum, their norms per batch, and their norms per sample.

They are computed from the input x of a module and the gradient g of its output: g^T x for the weight, the sum of g over the
tokens for the bias. The weights themselves stay frozen, so that autograd computes and accumulates nothing for them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.processes import ALONE, World
from dmole_cli.profiling.observing import Parts, add_each, norms_of, numbers, observed, together, weight_gradient

# Of the singular values of a gradient, those that are measured: the ranks that an expert may have by default.
SINGULAR_VALUES = 32
# Bytes of gradients, by device, that wait until one call reduces all of them: launching a kernel for each takes time on a GPU.
WAITING = {"cuda": 256 * 2**20}


class SiteGradients:
    """Sums and norms of the gradients of some modules.

    Gradients are added in float32: those of the batches of a pass, in their order, and those of the passes, in their order. One
    process adds a gradient to the sum soon after it is computed. Several processes work on a round of passes at a time: each
    holds the gradients of its own pass, sends them to the process that sums the module's, and frees them.

    Args:
        backbone: frozen.
        names: module paths.
        processes: those that deal the passes out among them.

    Attributes:
        modules: the observed modules, with their modality.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str], *, processes: World = ALONE) -> None:
        model = backbone.model
        self._scale, self._processes = backbone.loss_scale, processes
        self._parameters = {name: list(model.get_submodule(name).parameters(recurse=False)) for name in names}
        # Quantised weights have another shape than the values that they stand for.
        self._shapes = {
            p: (m.out_features, m.in_features) if p is m.weight else p.shape
            for m in map(model.get_submodule, names)
            for p in m.parameters(recurse=False)
        }
        # The processes share the parameters out in this order: the largest ones first, evenly.
        self._order = sorted(self._shapes, key=lambda p: -math.prod(self._shapes[p]))
        # Other modules may share a parameter.
        self.modules = {
            module: backbone.modality_of(name)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and any(p in self._shapes for p in module.parameters(recurse=False))
        }
        self._waiting_limit = WAITING.get(backbone.device.type, 0)
        self._anchor = torch.zeros((), requires_grad=True)
        self._sums: dict[nn.Parameter, torch.Tensor] = {}
        self._round: dict[nn.Parameter, torch.Tensor] = {}  # this process's gradients of a round
        # Of the present pass.
        self._parts = Parts(torch.zeros(1, dtype=torch.long), {})
        self._uses: Counter[nn.Parameter] = Counter()  # products that the backward pass has still to compute
        self._computed: dict[nn.Parameter, list[torch.Tensor]] = {}  # the gradient of each batch
        self._ready: list[nn.Parameter] = []
        self._norms: dict[nn.Parameter, Sequence[torch.Tensor]] = {}
        self._backward = False

    def sum_norms(self) -> dict[str, float]:
        """Name -> norm of the summed gradient, the weight's plus the bias's; 0 where no batch has reached it."""
        reached = [p for p in self._processes.own(self._order) if p in self._sums]
        own = dict(zip(reached, numbers(norms_of([self._sums[p] for p in reached])), strict=True))
        norms = self._processes.combine([own.get(p, 0.0) for p in self._processes.own(self._order)])
        found = dict(zip(self._order, norms, strict=True))
        return {name: self._total(found, name) for name in self._parameters}

    def sum_spectra(self) -> dict[str, list[float]]:
        """Name -> the largest singular values of the weight's summed gradient, in descending order, without the bias's.

        They are zero where no batch has reached the weight.
        """
        own = [(p, self._sums.get(p)) for p in self._processes.own(self._order)]
        values = self._processes.combine([_singular_values(grad, self._shapes[p]) for p, grad in own])
        found = dict(zip(self._order, values, strict=True))
        weights = {name: next(p for p in ps if len(self._shapes[p]) == 2) for name, ps in self._parameters.items()}
        return {name: [value / self._scale for value in found[p]] for name, p in weights.items()}

    def _total(self, found: Mapping[nn.Parameter, float], name: str) -> float:
        # Parameters that the loss does not depend on (a layer above the features in use) count as zero.
        return sum(found.get(p, 0.0) for p in self._parameters[name]) / self._scale

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the context the modules are observed."""
        hooks = [module.register_forward_hook(self._observe, with_kwargs=True) for module in self.modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def backward(self, parts: Parts) -> Iterator[list[dict[str, float]]]:
        """Context of the backward pass; yields, for each batch, name -> norm of its gradient, filled in at the end.

        Args:
            parts: the batches of the pass.
        """
        found: list[dict[str, float]] = []
        self._parts, self._backward = parts, True
        try:
            yield found
            # Modules whose output the loss does not depend on still count as used.
            self._ready = list(self._computed)
            self._reduce()
            values = iter(numbers([norm for norms in self._norms.values() for norm in norms]))
            norms = {p: [next(values) for _ in own] for p, own in self._norms.items()}
        finally:
            self._backward = False
            for state in (self._uses, self._computed, self._ready, self._norms):
                state.clear()
        for batch in range(parts.count):
            own = {p: of_batches[batch] for p, of_batches in norms.items()}
            found.append({name: self._total(own, name) for name in self._parameters})

    def end_round(self) -> None:
        """Add the gradients of the processes' passes to the sums.

        Every process calls it after each round, also one that had no pass in the last round.
        """
        if self._processes.size == 1:
            return
        reached = self._processes.collect({number for number, p in enumerate(self._order) if p in self._round})
        for number in sorted(set[int]().union(*reached)):
            parameter = self._order[number]
            own = self._round.pop(parameter, None)
            own = torch.zeros(self._shapes[parameter], device=parameter.device) if own is None else own
            # The process that `own` assigns the parameter to sums its gradients.
            gathered = self._processes.gather(own, to=number % self._processes.size)
            for grad in (grad for rank, grad in enumerate(gathered) if number in reached[rank]):
                self._add_to_sums([parameter], [grad])

    def _observe(self, module: Any, args: tuple, kwargs: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
        if not self._backward:  # activation checkpointing calls modules a second time
            self._uses.update(module.parameters(recurse=False))
        x = args[0] if args else kwargs["input"]
        # Where nothing below requires gradients, the backward pass ends here.
        anchor = None if output.requires_grad else self._anchor
        return observed(output, x, partial(self._add, module), anchor=anchor)

    def _add(self, module: Any, x: torch.Tensor, grad: torch.Tensor) -> None:
        modality = self.modules[module]
        tokens = [part.flatten(0, -2) for part in self._parts.split(grad, modality)]  # [tokens, out] of each batch
        inputs = [part.flatten(0, -2) for part in self._parts.split(x, modality)]
        gradients = {module.weight: [weight_gradient(*pair, module) for pair in zip(tokens, inputs, strict=True)]}
        if module.bias is not None:
            gradients[module.bias] = [part.sum(dim=0, dtype=torch.float32) for part in tokens]
        for p, own in gradients.items():
            if p in self._computed:  # of another call, or of a module that shares the parameter
                add_each(self._computed[p], own)
            else:
                self._computed[p] = own
            self._uses[p] -= 1
            if self._uses[p] == 0 and p in self._shapes:
                self._ready.append(p)
        held = sum(4 * part.numel() for p in self._ready for part in self._computed[p])
        if held > self._waiting_limit:
            self._reduce()

    def _reduce(self) -> None:
        """Reduce the gradients that are ready to norms and sums."""
        parameters, self._ready = self._ready, []
        gradients = [self._computed.pop(p) for p in parameters]
        norms = iter(norms_of([part for own in gradients for part in own]))
        self._norms |= {p: [next(norms) for _ in own] for p, own in zip(parameters, gradients, strict=True)}
        if not gradients:
            return
        first, *others = zip(*gradients, strict=True)
        for more in others:
            add_each(first, more)
        if self._processes.size == 1:
            self._add_to_sums(parameters, first)
        else:
            self._round |= dict(zip(parameters, first, strict=True))

    def _add_to_sums(self, parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
        pairs = list(zip(parameters, gradients, strict=True))
        known = [(self._sums[p], grad) for p, grad in pairs if p in self._sums]
        if known:
            add_each(*zip(*known, strict=True))
        self._sums |= {p: grad for p, grad in pairs if p not in self._sums}


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
        self._norms: dict[str, torch.Tensor] = {}
        self._parts = Parts(torch.zeros(1, dtype=torch.long), {})

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
    def backward(self, answers: Sequence[torch.Tensor], parts: Parts) -> Iterator[list[dict[str, list[float]]]]:
        """Context of the backward pass; yields, for each batch, name -> norm of each sample's gradient, filled in at the end.

        Args:
            answers: for each batch, number of answer tokens of its samples.
            parts: the samples of the pass.
        """
        self._parts = parts
        self._norms.clear()
        norms: list[dict[str, list[float]]] = []
        yield norms
        own_loss = torch.cat([own.sum() / own for own in answers]) / self._backbone.loss_scale
        sizes = [len(own) for own in answers]
        found = dict[str, list[list[float]]]()
        if self._norms:  # one transfer for all values: each one synchronises with the device
            values = together(list(self._norms.values())).cpu() * own_loss
            by_batch = (of_site.split(sizes) for of_site in values)
            found = {name: [own.tolist() for own in next(by_batch)] for name in self._norms}
        for batch, size in enumerate(sizes):
            # Modules that the loss does not depend on, or a vision encoder without images, have no gradient.
            norms.append({name: found[name][batch] if name in found else [0.0] * size for name in self._names})

    def _hook(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        modality = self._backbone.modality_of(name)

        def add_norms(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
            norms = []
            for own_x, own_grad in zip(self._parts.split(x, modality), self._parts.split(grad, modality), strict=True):
                flat = own_grad.flatten(0, -2).float()  # [tokens, out]
                norm = (flat.t() @ own_x.flatten(0, -2).float()).norm()
                norms.append(norm if getattr(module, "bias", None) is None else norm + flat.sum(dim=0).norm())
            self._norms[name] = torch.stack(norms)

        def observe(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            return observed(output, args[0], partial(add_norms, module))

        return observe


def _singular_values(gradient: torch.Tensor | None, shape: Sequence[int]) -> list[float]:
    """The largest singular values of a gradient matrix; empty for the gradient of a bias."""
    if len(shape) != 2:
        return []
    count = min(SINGULAR_VALUES, *shape)
    if gradient is None:
        return [0.0] * count
    return torch.linalg.svdvals(gradient.float())[:count].tolist()
