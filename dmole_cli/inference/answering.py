"""Answers questions with the experts that the routers of a run choose for them.

Answers are those of an evaluation of the same samples after the last trained task: the same features, routers, experts and
greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from dmole_cli.artifacts.router import read_router
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import Generation
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.samples import batch_samples
from dmole_cli.inference.decoding import Emit, generate_tokens, texts_of
from dmole_cli.inference.pool import ExpertPool
from dmole_cli.inference.static_decoding import static_decoder
from dmole_cli.routing.autoencoder import Routers, from_tensors
from dmole_cli.routing.features import require_finite

# Relative difference of losses below which a route is decided by features that are computed as an evaluation computes them.
MARGIN = 1e-3


@dataclass(frozen=True)
class Asked:
    """One question that is to be answered.

    Attributes:
        encoded: the sample, encoded without an answer.
        experts: active experts; None lets the routers choose them.
        limits: length of the answer; None for that of the task card of its first expert.
        emit: called with every token as soon as it is chosen, where tokens are chosen one by one.
    """

    encoded: Encoded
    experts: tuple[str, ...] | None = None
    limits: Generation | None = None
    emit: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        answer: the generated text.
        experts: active experts, lowest reconstruction loss first; empty where no router recognises the input, so that the
            pretrained backbone answers.
        losses: trained task -> reconstruction loss under its router; empty for methods without routers, and where the experts
            were given.
        thresholds: trained task -> loss up to which its router recognises an input.
        tokens: number of generated tokens.
        complete: whether the answer ended by itself, and not at its maximum length.
    """

    answer: str
    experts: tuple[str, ...]
    losses: Mapping[str, float]
    thresholds: Mapping[str, float]
    tokens: int
    complete: bool

    @property
    def recognised(self) -> bool:
        """Whether any expert is active."""
        return bool(self.experts)

    def as_dict(self) -> dict[str, Any]:
        """JSON values of what identifies the answer and its route."""
        return {
            "answer": self.answer,
            "experts": list(self.experts),
            "recognised": self.recognised,
            "losses": dict(self.losses),
            "thresholds": dict(self.thresholds),
        }


# (reconstruction losses [samples][routers], thresholds [routers]) -> active experts of each sample
Choose = Callable[[list[list[float]], list[float]], list[tuple[str, ...]]]


@dataclass(frozen=True)
class Trained:
    """What a method has trained so far, as answers use it.

    Attributes:
        tasks: whose experts may be active, in the order of the stream.
        load: reads a task's expert.
        routers: task -> the file of its router, in the order of the stream; empty for a method without routers.
        choose: the method's rule.
        limits: lengths of the answers that an expert's task card states; of `None` for the pretrained backbone.
        digests: of the files of experts and routers, under their names in headers.
        threshold_scale: factor on every threshold.
        merges: whether active experts are merged into the weights.
    """

    tasks: Sequence[str]
    load: Callable[[str], Expert]
    routers: Mapping[str, Path]
    choose: Choose
    limits: Callable[[str | None], Generation]
    digests: Mapping[str, str] = field(default_factory=dict)
    threshold_scale: float = 1.0
    merges: bool = False


class Answering:
    """A backbone with the routers of a run; experts are loaded when a sample needs them first. Detaches them at the end.

    Args:
        backbone: without attached experts.
        trained: experts and routers.

    Attributes:
        thresholds: trained task -> loss up to which its router recognises an input.
        pool: the experts in memory.
    """

    def __init__(self, backbone: Backbone, trained: Trained) -> None:
        self.backbone = backbone
        self.routed = RoutedExperts(backbone.model, backbone.modality_of)
        self.decoder: Any = None
        # A decoder's graphs hold the experts of before.
        self.pool = ExpertPool(self.routed, lambda name: self.trained.load(name), self._close_decoder)
        self.use(trained)

    def use(self, trained: Trained) -> None:
        """Answer with these experts and routers from now on; experts of other files are detached.

        Raises:
            ArtifactError: a router is missing or damaged; the earlier ones stay in use.
        """
        files = {name: read_router(path) for name, path in trained.routers.items()}
        routers = Routers([from_tensors(file.tensors, decoder=file.decoder) for file in files.values()])
        self.pool.unload(self.pool.loaded)
        self.trained, self._routers = trained, routers
        self.thresholds = {name: file.threshold * trained.threshold_scale for name, file in files.items()}

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
        if self.trained.merges:
            self.routed.merge(())  # features are those of the pretrained backbone
        rows: list[list[float]] = [[] for _ in samples]
        if self.thresholds and samples:
            # Only of float32 the error of rounding is known to be far below `MARGIN`.
            quick = self.backbone.dtype == torch.float32
            rows = self.losses(samples, exact=not quick).tolist()
            thresholds = list(self.thresholds.values())
            if again := [index for index, row in enumerate(rows) if quick and _is_close(row, thresholds)]:
                for index, row in zip(
                    again, self.losses([samples[i] for i in again], exact=True).tolist(), strict=True
                ):
                    rows[index] = row
        active = self.trained.choose(rows, list(self.thresholds.values()))
        return active, [dict(zip(self.thresholds, row, strict=True)) for row in rows]

    def losses(self, samples: Sequence[Encoded], *, exact: bool) -> torch.Tensor:
        """Reconstruction losses [samples, routers]; `exact` as for `Backbone.features`.

        Raises:
            DmoleError: a feature is not finite.
        """
        features = self.backbone.features(samples, exact=exact)
        require_finite(features, [f"question {number}" for number in range(1, len(samples) + 1)], "features")
        return self._routers.losses(features)

    def answer(self, samples: Sequence[Encoded], *, limits: Generation | None = None) -> list[Reply]:
        """Answer a batch of questions with the experts that the routers choose.

        Args:
            samples: encoded without answers.
            limits: length of the answers; by default that of the task card of each sample's first expert.

        Raises:
            DmoleError: an expert is damaged, or the logits are NaN.
        """
        return self.reply([Asked(sample, limits=limits) for sample in samples])

    def reply(self, asked: Sequence[Asked]) -> list[Reply]:
        """Answer a batch of questions.

        Raises:
            DmoleError: as for `answer`.
        """
        chosen = [one.experts for one in asked]
        open_ones = [index for index, names in enumerate(chosen) if names is None]
        routed, found = self.route([asked[index].encoded for index in open_ones])
        losses: dict[int, dict[str, float]] = dict(zip(open_ones, found, strict=True))
        routes = dict(zip(open_ones, routed, strict=True))
        active = [routes[index] if names is None else names for index, names in enumerate(chosen)]
        limits = [
            one.limits or self.trained.limits(names[0] if names else None)
            for one, names in zip(asked, active, strict=True)
        ]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, own in enumerate(limits):
            # A decoder has one minimum length for all rows.
            least = own.min_new_tokens if self.decoder is not None else 0
            key = (least, active[index] if self.trained.merges else ())
            groups.setdefault(key, []).append(index)
        tokens: dict[int, list[int]] = {}
        for indices in groups.values():
            part = self._generate(
                [asked[i] for i in indices], [active[i] for i in indices], [limits[i] for i in indices]
            )
            tokens |= zip(indices, part, strict=True)
        return [self._reply(tokens[index], active[index], losses.get(index)) for index in range(len(asked))]

    def _reply(self, tokens: Sequence[int], active: tuple[str, ...], losses: Mapping[str, float] | None) -> Reply:
        """The reply of an answer's tokens; `losses` is None where the experts were given."""
        [text] = texts_of(self.backbone, [tokens])
        thresholds = {} if losses is None else self.thresholds
        return Reply(text, active, losses or {}, thresholds, len(tokens), tokens[-1] in self.backbone.end_tokens)

    def _generate(
        self,
        asked: Sequence[Asked],
        active: Sequence[tuple[str, ...]],
        limits: Sequence[Generation],
    ) -> list[list[int]]:
        """The tokens of answers of one batch: with a decoder of one minimum length, and of merged experts the same ones."""
        self.pool.require(active)
        encoded = [one.encoded for one in asked]
        inputs, rows = self.backbone.collate(encoded, left=True)
        samples = batch_samples(self.backbone, encoded, inputs)
        merges = self.trained.merges
        if merges:
            self.routed.merge(active[0])
        beside: Sequence[tuple[str, ...]] = [() for _ in active] if merges else active
        place: dict[str, Any] = {"device": self.backbone.device, "dtype": self.backbone.compute_dtype}
        with (
            torch.no_grad(),
            self.routed.route(
                beside, rows=rows, samples=samples, **place, every=self.decoder is not None and not merges
            ),
        ):
            return generate_tokens(
                self.backbone,
                inputs,
                [own.max_new_tokens for own in limits],
                [own.min_new_tokens for own in limits],
                leave=self.routed.keep,
                decoder=self.decoder,
                emit=_emit(asked),
            )

    def _close_decoder(self) -> None:
        if self.decoder is not None:
            self.decoder.close()


def _is_close(losses: Sequence[float], thresholds: Sequence[float]) -> bool:
    """Whether rounding could change a route: a loss is near its threshold, or two accepted losses are near each other."""
    accepted = sorted(loss for loss, threshold in zip(losses, thresholds, strict=True) if loss < threshold)
    near = any(abs(loss - threshold) <= MARGIN * threshold for loss, threshold in zip(losses, thresholds, strict=True))
    return near or any(after - before <= MARGIN * after for before, after in pairwise(accepted))


def _emit(asked: Sequence[Asked]) -> Emit | None:
    """Passes each token on to its question; None where nobody listens."""
    listeners = [one.emit for one in asked]
    if not any(listeners):
        return None

    def emit(rows: list[int], tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            if (listener := listeners[row]) is not None:
                listener(token)

    return emit
