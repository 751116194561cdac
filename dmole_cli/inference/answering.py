"""Answers questions with the experts that the routers of a run choose for them.

Answers are those of an evaluation of the same samples after the last trained task: the same features, routers, experts and
greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from dmole_cli.artifacts.router import read_router
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import Generation
from dmole_cli.experts.expert import load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.static_decoding import static_decoder
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import require_finite


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        answer: the generated text.
        experts: active experts, lowest reconstruction loss first; empty where no router recognises the input, so that the
            pretrained backbone answers.
        losses: trained task -> reconstruction loss under its router; empty for methods without routers.
        thresholds: trained task -> loss up to which its router recognises an input.
    """

    answer: str
    experts: tuple[str, ...]
    losses: Mapping[str, float]
    thresholds: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `recognised` is whether any expert is active."""
        return {
            "answer": self.answer,
            "experts": list(self.experts),
            "recognised": bool(self.experts),
            "losses": dict(self.losses),
            "thresholds": dict(self.thresholds),
        }


# (reconstruction losses [samples][routers], thresholds [routers]) -> active experts of each sample
Choose = Callable[[list[list[float]], list[float]], list[tuple[str, ...]]]


class Answering:
    """A backbone with the routers of a run; experts are loaded when a sample needs them first. Detaches them at the end.

    Args:
        backbone: without attached experts.
        expert: the file of a task's expert.
        routers: trained task -> the file of its router, in the order of the stream; empty for a method without routers.
        choose: the method's rule.
        limits: lengths of the answers that an expert's task card states; `None` for the pretrained backbone.
        threshold_scale: factor on every threshold.
        merges: whether active experts are merged into the weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        expert: Callable[[str], Path],
        routers: Mapping[str, Path],
        choose: Choose,
        limits: Callable[[str | None], Generation],
        threshold_scale: float = 1.0,
        merges: bool = False,
    ) -> None:
        self.backbone, self.expert, self.choose = backbone, expert, choose
        self.limits, self.merges = limits, merges
        self._routers = {}
        self.thresholds: dict[str, float] = {}
        for name, path in routers.items():
            router = read_router(path)
            self._routers[name] = from_tensors(router.tensors, decoder=router.decoder)
            self.thresholds[name] = router.threshold * threshold_scale
        self.routed = RoutedExperts(backbone.model, backbone.modality_of)
        self.decoder: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_decoder()
        self.routed.close()

    def use_graphs(self) -> None:
        """Decode with fixed shapes and CUDA graphs, where the device has them."""
        self.decoder = static_decoder(self.backbone, self.routed)

    def route(self, samples: Sequence[Encoded]) -> tuple[list[tuple[str, ...]], list[dict[str, float]]]:
        """The active experts of each sample, and its reconstruction losses by router."""
        columns: list[list[float]] = []
        if self.merges:
            self.routed.merge(())  # features are those of the pretrained backbone
        if self._routers:
            features = self.backbone.features(list(samples))
            require_finite(features, [f"question {number}" for number in range(1, len(samples) + 1)], "features")
            columns = [router.losses(features).tolist() for router in self._routers.values()]
        rows = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in samples]
        active = self.choose(rows, list(self.thresholds.values()))
        return active, [dict(zip(self._routers, row, strict=True)) for row in rows]

    def answer(self, samples: Sequence[Encoded], *, limits: Generation | None = None) -> list[Reply]:
        """Answer a batch of questions.

        Args:
            samples: encoded without answers.
            limits: length of the answers; by default that of the task card of each sample's first expert.

        Raises:
            DmoleError: an expert or a router is damaged; the logits are NaN.
        """
        active, losses = self.route(samples)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, names in enumerate(active):
            own = limits or self.limits(names[0] if names else None)
            key = (own.max_new_tokens, own.min_new_tokens, names if self.merges else ())
            groups.setdefault(key, []).append(index)
        texts: dict[int, str] = {}
        for (most, least, _), indices in groups.items():
            found = self._generate([samples[i] for i in indices], [active[i] for i in indices], most, least)
            texts |= zip(indices, found, strict=True)
        return [Reply(texts[i], active[i], losses[i], self.thresholds) for i in range(len(samples))]

    def _generate(
        self, samples: Sequence[Encoded], active: Sequence[tuple[str, ...]], most: int, least: int
    ) -> list[str]:
        for name in dict.fromkeys(name for names in active for name in names):
            if name not in self.routed.experts:
                self._close_decoder()  # its graphs hold the experts of before
                self.routed.add(name, load_expert(self.expert(name)))
        inputs, rows = self.backbone.collate(samples, left=True)
        if self.merges:
            self.routed.merge(active[0])
        beside: Sequence[tuple[str, ...]] = [() for _ in active] if self.merges else active
        place: dict[str, Any] = {"device": self.backbone.device, "dtype": self.backbone.compute_dtype}
        with (
            torch.no_grad(),
            self.routed.route(beside, rows=rows, **place, every=self.decoder is not None and not self.merges),
        ):
            return generate(
                self.backbone,
                inputs,
                max_new_tokens=most,
                min_new_tokens=least,
                leave=self.routed.keep,
                decoder=self.decoder,
            )

    def _close_decoder(self) -> None:
        if self.decoder is not None:
            self.decoder.close()
