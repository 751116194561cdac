"""Decoding with tensors of a few fixed shapes, on CUDA as captured graphs.

The prompts are computed as usual. Then the batch is padded to a number of rows and a length of the cache out of a few (see
static_cache.py), and each step (decoding_step.py) is the same kernels on the same tensors, which a CUDA graph launches
without Python. Finished rows are computed on until the others fit into the next smaller number of rows. The host
learns one step late which rows are finished, so that the device never waits for it.

Models are not changed: what is not supported (another kind of cache, an operation without support for capture, a rule that
chooses tokens otherwise) is decoded the plain way.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.errors import DmoleError, DmoleWarning, first_line
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.routing_plan import RowScales
from dmole_cli.inference.decoding_step import Limits, Rows, Shared, step
from dmole_cli.inference.fixed_inputs import (
    GIVEN,
    attends_to_all,
    description,
    is_fixed,
    is_suitable,
    original_positions,
)
from dmole_cli.inference.graphs import Graphs
from dmole_cli.inference.static_cache import CacheStorage, length_bucket, load, release, rows_bucket

# A shape is captured once so many steps were needed in it; capturing takes as long as some steps without a graph.
STEPS_BEFORE_CAPTURE = 3
# Number of times that graphs are dropped for batches whose tensors do not fit the captured ones, such as those of other experts.
MOST_KINDS = 8
# Backbones for which an operation has failed; a command says so once, not once per method and task.
_REFUSED: WeakSet[Backbone] = WeakSet()


def static_decoder(backbone: Backbone, routed: RoutedExperts | None = None) -> StaticDecoder | None:
    """The decoder that a backbone uses by default: one with graphs on CUDA, none elsewhere.

    On a CPU, whose operations cost more than launching them, padding and finished rows would only be more work.
    """
    suitable = backbone.device.type == "cuda" and backbone not in _REFUSED and is_suitable(backbone)
    return StaticDecoder(backbone, routed) if suitable else None


class StaticDecoder:
    """Decodes batches of one model under the experts attached to it.

    Args:
        backbone: a suitable one.
        routed: its experts; a batch must be routed with `every=True`, so that all batches have the same plan but for scales.
        graphs: capture the steps as CUDA graphs; False runs the same steps without, on any device.

    Attributes:
        counts: `static_batches`, `static_steps`, `replayed_steps`, `captured_graphs`.
    """

    def __init__(self, backbone: Backbone, routed: RoutedExperts | None = None, *, graphs: bool = True) -> None:
        self.backbone, self.routed = backbone, routed
        self.graphs = Graphs(backbone.device) if graphs else None
        self.counts: Counter[str] = Counter()
        self.enabled = True
        self._kinds = 0
        self._flags = Flags(backbone.device)
        self.close()

    def close(self) -> None:
        """Free graphs and buffers; they are made again when they are needed."""
        if self.graphs is not None:
            self.graphs.clear()
        self._kind: Hashable = None
        self._alive: Any = None
        self._shared: Any = None
        self._storage: Any = None
        self._rows: dict[tuple[int, int], Rows] = {}
        self._needed: Counter[tuple[int, int]] = Counter()

    # ------------------------------------------------------------------------------------------------ one batch

    def decode(
        self,
        model: Any,
        first: Mapping[str, Any],
        limits: Limits,
        done: torch.Tensor,
        undefined: torch.Tensor,
    ) -> torch.Tensor | None:
        """The answers of a batch whose first tokens are known.

        Args:
            model: the backbone's model.
            first: its arguments for these tokens; the cache is that of the prompts, and its memory is freed.
            limits: of the answers.
            done: which answers the first token has ended [rows].
            undefined: whether the prompts' logits were NaN, without dimensions; becomes true if those of a step are.

        Returns:
            The tokens with padding behind each answer [rows, longest] on the CPU. None if the batch cannot be decoded here;
            everything is then as it was before.
        """
        fixed = is_fixed(first) and (self.routed is None or self.routed.plan.fixed)
        if not self.enabled or limits.longest < 2 or not fixed:
            return None
        routes = [] if self.routed is None else [scales for scales in self.routed.plan.scales if scales.per_sample]
        before = [scales.values for scales in routes]
        try:
            with original_positions(model, length_bucket(first["past_key_values"].get_seq_length() + limits.longest)):
                return self._decode(model, first, limits, done, undefined, routes)
        except DmoleError:
            raise
        except Exception as error:
            if first["past_key_values"].layers[0].keys is None:
                raise
            self.give_up(error)
            self.close()
            return None
        finally:
            for scales, values in zip(routes, before, strict=True):
                scales.values = values

    def _decode(
        self,
        model: Any,
        first: Mapping[str, Any],
        limits: Limits,
        done: torch.Tensor,
        undefined: torch.Tensor,
        routes: Sequence[RowScales],
    ) -> torch.Tensor | None:
        prompt, samples = first["past_key_values"].get_seq_length(), len(done)
        scales = [route.values for route in routes]
        if not self._prepare(first, limits, scales, routes):
            return None
        length = length_bucket(prompt + limits.longest)
        rows = self._shape(rows_bucket(samples), length, first, scales)
        rows.load(first, done, scales, prompt=prompt, pad=limits.pad)
        load(rows.cache, first["past_key_values"], prompt)
        self._shared.start(limits, prompt, undefined)
        constants = {name: value for name, value in first.items() if name not in GIVEN}
        answers = rows.chosen.new_full((samples + 1, limits.longest), limits.pad)
        self.counts["static_batches"] += 1
        finished = self._flags.watch(rows)
        for number in range(1, limits.longest):
            self._advance(model, rows, routes, constants)
            if number == 1:
                release(first["past_key_values"])
            upcoming = self._flags.watch(rows)
            remaining = [slot for slot, ended in enumerate(finished()) if not ended]
            if not remaining:
                break
            fewer = self._fewer(rows, remaining, first, scales)
            if fewer is None:
                finished = upcoming
                continue
            self._move(rows, fewer, remaining, answers)
            rows, finished = fewer, self._flags.watch(fewer)
        self._store(rows, answers)
        undefined.copy_(self._shared.undefined)
        if not self.enabled:
            self.close()
        return answers[:samples].cpu()

    def _prepare(
        self, first: Mapping[str, Any], limits: Limits, scales: Sequence[torch.Tensor], routes: Sequence[RowScales]
    ) -> bool:
        """Drop all graphs and buffers if the batch does not fit them; False if that happens too often."""
        plan = None if self.routed is None else self.routed.plan
        tensors = [] if plan is None else plan.matrices()
        cached = [
            (s.shape[1], s.shape[3], s.dtype) for la in first["past_key_values"].layers for s in (la.keys, la.values)
        ]
        ranks = [(values.shape[-1], values.dtype) for values in scales]
        kind = str((description(first), cached, ranks, limits.ends, limits.pad, [id(tensor) for tensor in tensors]))
        if kind == self._kind:
            return True
        self._kinds += 1
        if self._kinds > MOST_KINDS:
            self.give_up(RuntimeError("the batches have too many different shapes"))
            return False
        self.close()
        # Objects that are kept alive keep their identity, and their memory.
        self._kind, self._alive = kind, [plan, tensors, list(self.backbone.model.buffers())]
        words = self.backbone.model.get_output_embeddings().weight.shape[0]
        self._shared = Shared.create(limits, words=words, device=first["input_ids"].device)
        self._storage = CacheStorage(first["past_key_values"], self._shared.position)
        return True

    def _shape(self, rows: int, length: int, first: Mapping[str, Any], scales: Sequence[torch.Tensor]) -> Rows:
        """The tensors of a shape; a larger one than all before takes the place of these."""
        if not self._storage.fits(rows, length):
            if self.graphs is not None:
                self.graphs.clear()
            self._rows.clear()
            self._storage.reserve(rows, length)
        shape = (rows, length)
        if shape not in self._rows:
            added, cache = attends_to_all(self.backbone.model), self._storage.views(rows, length)
            self._rows[shape] = Rows.create(shape, first, scales, cache, added=added)
        return self._rows[shape]

    # ------------------------------------------------------------------------------------------------ its steps

    def _advance(self, model: Any, rows: Rows, routes: Sequence[RowScales], constants: Mapping[str, Any]) -> None:
        """Compute one step."""
        shape = (len(rows.tokens), rows.mask.shape[-1])
        self.counts["static_steps"] += 1
        self.backbone.counts["decode_rows"] += shape[0]
        if self.graphs is not None and shape in self.graphs:
            self.counts["replayed_steps"] += 1
            self.graphs.replay(shape)
            return
        for route, values in zip(routes, rows.scales, strict=True):
            route.values = values
        step(model, rows, self._shared, constants)
        self._needed[shape] += 1
        if self.graphs is not None and self._needed[shape] >= STEPS_BEFORE_CAPTURE and self.enabled:
            self._capture(shape, lambda: step(model, rows, self._shared, constants), rows)

    def _capture(self, shape: tuple[int, int], function: Any, rows: Rows) -> None:
        assert self.graphs is not None
        try:
            self.graphs.capture(shape, function, alive=(rows, self._alive))
        except Exception as error:
            self.give_up(error)  # this batch goes on without a graph
        else:
            self.counts["captured_graphs"] += 1

    def _fewer(
        self, rows: Rows, remaining: Sequence[int], first: Mapping[str, Any], scales: Sequence[torch.Tensor]
    ) -> Rows | None:
        """A smaller shape into which the remaining rows fit and which is worth a move; None if there is none."""
        least, now, length = rows_bucket(len(remaining)), len(rows.mask), rows.mask.shape[-1]
        if least >= now:
            return None
        if self.graphs is not None:
            self._needed[(least, length)] += 1
        while least < now:
            shape = (least, length)
            # On CUDA, a step without a graph takes longer than one with a graph and more rows.
            if self.graphs is None or shape in self.graphs or self._needed[shape] >= STEPS_BEFORE_CAPTURE:
                return self._shape(least, length, first, scales)
            least *= 2
        return None

    def _move(self, rows: Rows, fewer: Rows, remaining: Sequence[int], answers: torch.Tensor) -> None:
        """Continue with the remaining rows in a smaller shape."""
        self._store(rows, answers)
        ended = next(slot for slot in range(len(rows.tokens)) if slot not in set(remaining))
        spare = len(fewer.tokens) - len(remaining)
        fewer.take(rows, self.backbone.to_device(torch.tensor([*remaining, *[ended] * spare])))
        fewer.samples = [rows.samples[slot] for slot in remaining] + [len(answers) - 1] * spare

    def _store(self, rows: Rows, answers: torch.Tensor) -> None:
        """Write the tokens of all rows to the answers [samples + 1, longest], those without a sample to the last one."""
        samples = self.backbone.to_device(torch.tensor(rows.samples))
        answers.index_copy_(0, samples, rows.chosen[:, : answers.shape[1]])

    def give_up(self, error: Exception) -> None:
        """Decode the plain way from now on, and say so once."""
        if self.enabled:
            message = f"decoding without CUDA graphs, which is slower: {first_line(error)}"
            warnings.warn(DmoleWarning(message), stacklevel=2)
        self.enabled = False
        _REFUSED.add(self.backbone)


class Flags:
    """Reads which rows are finished, without waiting for what is launched after the question.

    Args:
        device: of the rows.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._host: list[torch.Tensor] = []
        self._turn = 0

    def watch(self, rows: Rows) -> Any:
        """Ask; the returned function waits for the answer and gives it as a list with one entry per row."""
        size = len(rows.finished)
        if not self._host or len(self._host[0]) < size:
            self._host = [torch.zeros(size, dtype=torch.bool, pin_memory=self.cuda) for _ in range(4)]
        self._turn = (self._turn + 1) % len(self._host)
        host = self._host[self._turn][:size]
        host.copy_(rows.finished, non_blocking=True)
        event = torch.cuda.Event() if self.cuda else None
        if event is not None:
            event.record()

        def answer() -> list[bool]:
            if event is not None:
                event.synchronize()
            return host.tolist()

        return answer
