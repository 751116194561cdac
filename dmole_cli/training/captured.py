"""Training on CUDA with captured graphs: forward and backward pass of a micro-batch are launched at once, without Python.

A graph serves the micro-batches of one shape. Rows are therefore padded to one of a few lengths (`inputs.shared_length`), and
the positions of answer tokens to a multiple of `ANSWERS`. The experts of the samples are inputs of the graph: every graph
computes all attached experts, and the scales select those of each sample.

The memory of a graph's activations is shared by all graphs. Micro-batches of a rare shape, or with operations that do not support
capture, are computed as on other devices; so are large ones, which take longer to compute than to launch: their graph would
compute more experts than their samples use.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.backbones.backbone import IGNORED, Backbone
from dmole_cli.backbones.device import is_divided
from dmole_cli.errors import DmoleWarning, first_line
from dmole_cli.experts.flat import FlatExpert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.graphs import Graphs
from dmole_cli.training.fixed_shapes import fixed_shapes

ANSWERS = 16
# A shape is captured at its third micro-batch: capturing takes as long as some micro-batches without a graph.
BEFORE_CAPTURE = 2
LIMIT = 64  # graphs; each holds the images of a micro-batch, beside the activations that all share

Routes = Mapping[str, Any]


@dataclass
class Shape:
    """The tensors of a graph, which stay where they are.

    Attributes:
        inputs: of the model.
        positions: in all tokens of the batch, that predict an answer token [answers, padded with zeros].
        targets: these tokens [answers, padded with `IGNORED`].
        scales: of every tower.
        loss: of the micro-batch, without dimensions.
        reached: numbers of the matrices that get a gradient.
    """

    inputs: dict[str, torch.Tensor]
    positions: torch.Tensor
    targets: torch.Tensor
    scales: list[torch.Tensor]
    loss: torch.Tensor
    reached: list[int]

    def load(
        self, inputs: Mapping[str, torch.Tensor], answers: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]
    ) -> None:
        """Copy a micro-batch of this shape."""
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        for own, other in zip((self.positions, self.targets, *self.scales), (*answers, *scales), strict=True):
            own.copy_(other)


class CapturedSteps:
    """Forward and backward passes of micro-batches as CUDA graphs.

    Args:
        backbone: frozen.
        routed: the experts attached to it.
        flat: the expert that trains; takes the gradients.
        graphs: captures and replays.
    """

    def __init__(self, backbone: Backbone, routed: RoutedExperts, flat: FlatExpert, graphs: Graphs) -> None:
        self.backbone, self.routed, self.flat, self.graphs = backbone, routed, flat, graphs
        # Autograd computes the gradients of mixtures, and dropout draws new random numbers in every step.
        self.enabled = not flat.expert.gates and not routed.dropout
        self._shapes: dict[Any, Shape] = {}
        self._seen: Counter[Any] = Counter()

    def compute(
        self, inputs: Mapping[str, torch.Tensor], active: Sequence[Sequence[str]], routes: Routes
    ) -> tuple[torch.Tensor, int] | None:
        """Compute the gradient of a micro-batch; its loss and number of answer tokens, or None if its shape has no graph.

        Args:
            inputs: of the model, with labels.
            active: names of each sample's experts.
            routes: further arguments of `RoutedExperts.route`.
        """
        if not self.enabled or not self.backbone.launch_bound(inputs["input_ids"].numel()):
            return None
        positions, targets = self.backbone.answer_positions(inputs["labels"])
        count, spare = len(targets), -len(targets) % ANSWERS
        given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items()), count + spare
        self._seen[key] += 1
        if key not in self._shapes and (self._seen[key] <= BEFORE_CAPTURE or len(self._shapes) >= LIMIT):
            return None
        positions = self.backbone.to_device(F.pad(positions, (0, spare)))
        targets = self.backbone.to_device(F.pad(targets, (0, spare), value=IGNORED))
        with self.routed.route(active, **routes, every=True):
            plan = self.routed.plan
            before = [scales.values for scales in plan.scales]
            if key not in self._shapes:
                self._shapes[key] = Shape(
                    {name: torch.empty_like(tensor) for name, tensor in given.items()},
                    torch.empty_like(positions),
                    torch.empty_like(targets),
                    [torch.empty_like(values) for values in before],
                    torch.zeros((), device=self.backbone.device),
                    [],
                )
            shape = self._shapes[key]
            shape.load(given, (positions, targets), before)
            try:
                for scales, values in zip(plan.scales, shape.scales, strict=True):
                    scales.values = values
                self._run(key, shape, plan)
            finally:
                for scales, values in zip(plan.scales, before, strict=True):
                    scales.values = values
        return shape.loss.clone(), count

    def _run(self, key: Any, shape: Shape, plan: Any) -> None:
        """Replay the graph of a shape; the first time compute it without, and capture it."""
        if key in self.graphs:
            self.graphs.replay(key)
            self.flat.mark(shape.reached)
            return
        self._work(shape)
        shape.reached = self.flat.reached()
        if any(matrix.grad is not None for matrix in self.flat.matrices) or not self._fits():
            self.release()
            return
        self.flat.mark([])  # what the first of several gradients overwrites
        try:
            self.graphs.capture(key, lambda: self._work(shape), alive=(shape, plan))
        except Exception as error:
            self.release()
            message = f"training without CUDA graphs, which is slower: {first_line(error)}"
            warnings.warn(DmoleWarning(message), stacklevel=2)
        finally:
            self.flat.mark(shape.reached)

    def _work(self, shape: Shape) -> None:
        """Forward and backward pass of what `shape` holds."""
        with fixed_shapes():
            logits = self.backbone.logits_at(shape.inputs, shape.positions)
            loss = F.cross_entropy(logits.float(), shape.targets, ignore_index=IGNORED)
            loss.backward()
        shape.loss.copy_(loss.detach())

    def _fits(self) -> bool:
        """Whether the activations of a graph fit beside those of micro-batches without one."""
        device = self.backbone.device
        if device.type != "cuda":
            return True
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        needed = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        return free > 2 * needed

    def release(self) -> bool:
        """Free the memory of all graphs for good; False if there was none."""
        found = bool(self._shapes)
        self.enabled = False
        self._shapes.clear()
        self.graphs.clear()
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        return found


def captures(backbone: Backbone) -> bool:
    """Whether steps are captured where the user allows it: on one CUDA device."""
    return backbone.device.type == "cuda" and not is_divided(backbone.model)


def captured_steps(backbone: Backbone, routed: RoutedExperts, flat: FlatExpert) -> CapturedSteps | None:
    """What captures the steps of a training run; None where steps are not captured."""
    if not captures(backbone):
        return None
    return CapturedSteps(backbone, routed, flat, Graphs(backbone.device, limit=LIMIT))
