"""Cached batch inference under a method's experts.

A prediction or a likelihood depends on the backbone, the sample, the sample's active experts with their weights, and the request
(generation settings, or answers to score).
It is cached in the run directory under a digest of exactly these, so that of all entries of the score matrix only
distinct keys are computed, whatever methods, positions and tasks are evaluated.

What is missing in the cache is computed in batches, each stored on disk as soon as it is complete. Several processes deal the
batches out among them; these are the batches that one process would form, so that results do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.generations import read_generations, write_generations
from dmole_cli.artifacts.likelihood import Likelihoods, read_likelihood_cache, write_likelihood_cache
from dmole_cli.artifacts.partial import PartialResults, partial_results
from dmole_cli.artifacts.provenance import versions
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.tasks import Tasks
from dmole_cli.experts.expert import load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.samples import batch_samples
from dmole_cli.experts.weighting import AttachedParts, Weighting
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.keys import result_key, weighted_by
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.inference.static_decoding import StaticDecoder, static_decoder
from dmole_cli.processes import world
from dmole_cli.progress import Track
from dmole_cli.settings.model import Settings

# A sample's index, its active experts, and their weights; no weights where all of them count alike.
Pair = tuple[int, tuple[str, ...], tuple[float, ...]]
# Pairs that were computed by this process, as `unordered` gives them.
NewPairs = set[tuple[int, frozenset[Any]]]
Result = TypeVar("Result")


def unordered(pair: Pair) -> tuple[int, frozenset[Any]]:
    """A pair whose experts are in no order."""
    index, active, weights = pair
    return index, frozenset(zip(active, weights, strict=True) if weights else active)


@dataclass(frozen=True)
class Attached:
    """What lives as long as the experts of a method are attached to the backbone.

    Attributes:
        routed: the experts.
        parts: of weighted experts, the parts that are attached in their place.
        vision: cache of frozen vision features.
        decoder: generates with fixed shapes, None where shapes follow the batch.
    """

    routed: RoutedExperts
    parts: AttachedParts | None
    vision: VisionFeatureCache
    decoder: StaticDecoder | None


# (the model's inputs, the samples' indices, the attached experts) -> a result per sample.
Compute = Callable[[dict[str, Any], list[int], Attached], Sequence[Result]]


@dataclass(frozen=True)
class ResultCache(Generic[Result]):
    """The file that holds results of one kind by content key.

    Attributes:
        path: the file.
        read: reads all results.
        write: writes all results, with the backbone's fingerprint.
        pack: makes a JSON value of a result.
        unpack: the inverse of `pack`.
    """

    path: Path
    read: Callable[[Path], dict[str, Result]]
    write: Callable[[Path, dict[str, Result], str], None]
    pack: Callable[[Result], Any]
    unpack: Callable[[Any], Result]

    def find(self, keys: Collection[str]) -> dict[str, Result]:
        """The stored results of these keys, as the first process finds them."""
        return world().from_first(lambda: {key: found for key, found in self.read(self.path).items() if key in keys})

    def add(self, results: Mapping[str, Result], fingerprint: str) -> None:
        """Add results to the file, in the first process."""
        if world().first:
            self.write(self.path, {**self.read(self.path), **results}, fingerprint)


@dataclass(frozen=True)
class BatchedInference:
    """Inference on one split of one task, under the experts of one method.

    Attributes:
        task: name of the task.
        method: name of the method whose experts are active.
        merges: whether active experts are merged into the backbone's weights.
        settings: split, batch size and the limit of the vision cache.
        data: the tasks.
        model: the backbone.
        run: the run directory.
        force: recompute cached results.
        track: shows progress.
        weighting: how the experts of some trained tasks are weighted; None for a method whose active experts count alike.
    """

    task: str
    method: str
    merges: bool
    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run
    force: bool
    track: Track
    weighting: Callable[[tuple[str, ...]], Weighting] | None = None

    @property
    def split(self) -> str:
        """The evaluated split."""
        return self.settings.evaluate.split

    def predictions(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, str], NewPairs]:
        """The greedy prediction of each pair, from the cache where possible, and the pairs that were computed."""
        generation, backbone = self.data.card(self.task).generation, self.model.load()

        def compute(inputs: dict[str, Any], indices: list[int], attached: Attached) -> list[str]:
            limits = {"max_new_tokens": generation.max_new_tokens, "min_new_tokens": generation.min_new_tokens}
            return generate(backbone, inputs, **limits, leave=attached.routed.keep, decoder=attached.decoder)

        return self._cached(
            self._keys(pairs, lambda index: generation.model_dump()),
            ResultCache(self.run.generations(self.task, self.split), read_generations, write_generations, str, str),
            compute,
        )

    def likelihoods(
        self, pairs: Iterable[Pair], *, answers: Sequence[Sequence[str]]
    ) -> tuple[dict[Pair, Likelihoods], NewPairs]:
        """The likelihoods of given answers for each pair, from the cache where possible, and the pairs that were computed.

        Args:
            pairs: sample indices with active experts and their weights.
            answers: the answers to score, for each sample of the split.
        """
        backbone, rows = self.model.load(), self.settings.evaluate.batch_size

        def compute(inputs: dict[str, Any], indices: list[int], attached: Attached) -> list[Likelihoods]:
            own = [answers[index] for index in indices]
            return answer_likelihoods(backbone, inputs, answers=own, rows=rows, narrow=attached.routed.narrowed)

        return self._cached(
            self._keys(pairs, lambda index: list(answers[index])),
            ResultCache(
                self.run.likelihood_cache(self.task, self.split),
                read_likelihood_cache,
                write_likelihood_cache,
                asdict,
                lambda value: Likelihoods(**value),
            ),
            compute,
        )

    def _keys(self, pairs: Iterable[Pair], request: Callable[[int], Any]) -> dict[Pair, str]:
        """The cache key of each pair; `request` returns a sample's generation settings, or answers to score, as JSON."""
        wanted = list(dict.fromkeys(pairs))
        names = sorted({name for _, active, _ in wanted for name in active})
        digests = {name: digest_of_file(self.run.expert(name, self.method)) for name in names}
        samples, image_digests = self.data.samples(self.task, self.split), self.data.image_digests
        model = (self.model.fingerprint, self.model.precision)

        options = {own: weighting.options for own, weighting in self._weightings(wanted).items()}

        def key(index: int, active: tuple[str, ...], weights: tuple[float, ...]) -> str:
            experts = [digests[name] for name in active]
            weighted = weighted_by(experts, weights, options[active]) if active in options else None
            return result_key(*model, request(index), samples[index], experts, image_digests, weighted=weighted)

        return {pair: key(*pair) for pair in wanted}

    def _weightings(self, pairs: Iterable[Pair]) -> dict[tuple[str, ...], Weighting]:
        """The weighting of each set of active experts; empty where these count alike."""
        if self.weighting is None:
            return {}
        return {active: self.weighting(active) for active in sorted({active for _, active, _ in pairs if active})}

    def _cached(
        self, keys: Mapping[Pair, str], cache: ResultCache[Result], compute: Compute[Result]
    ) -> tuple[dict[Pair, Result], NewPairs]:
        wanted = {key: pair for pair, key in keys.items()}
        known = {} if self.force else cache.find(wanted)
        computed: NewPairs = set()
        while missing := {key: pair for key, pair in wanted.items() if key not in known}:
            pairs = list(missing.values())
            batches = self._batches(pairs)
            with partial_results(self.run.root, self._work(cache.path, list(missing), batches)) as stored:
                # The command that this one has waited for may have added some of them.
                found = cache.find(missing) if stored.waited and not self.force else {}
                if not found:
                    results = self._in_batches(pairs, batches, compute, cache, stored)
                    found = dict(zip(missing, results, strict=True))
                    cache.add(found, self.model.fingerprint)
                    computed = set(map(unordered, pairs))
            known |= found
        return {pair: known[key] for pair, key in keys.items()}, computed

    def _work(self, path: Path, keys: Sequence[str], batches: Sequence[Sequence[int]]) -> Any:
        """What identifies the computation of some batches of a file's results."""
        parts = [[keys[p] for p in batch] for batch in batches]
        name = [str(path.relative_to(self.run.root)), self.merges, self.force, self.settings.evaluate.batch_size]
        return [name, versions("torch", "transformers"), parts]

    def _batches(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Positions of the pairs, in batches of the same experts and of similar prompt length."""
        lengths = self.model.load().lengths(self.data.samples(self.task, self.split), with_answer=False)
        order = sorted(range(len(pairs)), key=lambda p: (pairs[p][1], lengths[pairs[p][0]], pairs[p][0]))
        return _batches(
            order, [active for _, active, _ in pairs], self.settings.evaluate.batch_size, separate=self.merges
        )

    def _in_batches(
        self,
        pairs: Sequence[Pair],
        batches: Sequence[Sequence[int]],
        compute: Compute[Result],
        cache: ResultCache[Result],
        stored: PartialResults,
    ) -> list[Result]:
        """Results of the pairs; this process computes its part of the batches that are not stored."""
        backbone, samples, own = (
            self.model.load(),
            self.data.samples(self.task, self.split),
            stored.missing(len(batches)),
        )
        # All pairs, and not only those of this process, decide about the cache of vision features.
        with self._attached(pairs) as attached:
            routed, vision = attached.routed, attached.vision
            rows = [[pairs[p][0] for p in batches[number]] for number in own]
            again = len({index for index, *_ in pairs}) < len(pairs)
            size = self.settings.sample_cache * 2**20 if again else 0
            encoded = encoded_batches(
                backbone, samples, rows, with_answer=False, workers=self.settings.workers, cache=size
            )
            label = f"evaluate {self.task} ({self.method})"
            for number, encoded_batch in zip(own, self.track(encoded, label, len(own)), strict=True):
                inputs, vision_rows = backbone.collate(encoded_batch, left=True)
                active = [_route(pairs[p], attached.parts) for p in batches[number]]
                if self.merges:
                    routed.merge(active[0])
                if not routed.has_vision_expert(active):
                    inputs = vision.replace(inputs, encoded_batch)
                beside = [() for _ in active] if self.merges else active
                place: dict[str, Any] = {"device": backbone.device, "dtype": backbone.compute_dtype}
                asked = batch_samples(backbone, encoded_batch, inputs)
                every = attached.decoder is not None and not self.merges
                with routed.route(beside, rows=vision_rows, samples=asked, **place, every=every):
                    found = compute(inputs, [pairs[p][0] for p in batches[number]], attached)
                stored.add(number, [cache.pack(result) for result in found])
        results: dict[int, Result] = {}
        for number, packed in stored.all():
            results |= zip(batches[number], map(cache.unpack, packed), strict=True)
        return [results[p] for p in range(len(pairs))]

    @contextmanager
    def _attached(self, pairs: Sequence[Pair]) -> Iterator[Attached]:
        """The backbone with all experts of these pairs attached, and what goes with them."""
        backbone = self.model.load()
        routed, parts = RoutedExperts(backbone.model, backbone.modality_of), None
        names = sorted({name for _, active, _ in pairs for name in active})
        experts = {name: load_expert(self.run.expert(name, self.method)) for name in names}
        if weightings := self._weightings(pairs):
            parts = AttachedParts(weightings, experts, backbone.model)
            experts = {name: part.expert for name, part in parts.parts.items()}
        for name, expert in experts.items():
            routed.add(name, expert)
        # Useful only where a sample is visited twice without an active expert in the vision encoder.
        frozen = [pair[0] for pair in pairs if not routed.has_vision_expert([_route(pair, parts)])]
        limit = self.settings.vision_cache * 2**20 if len(set(frozen)) < len(frozen) else 0
        cache = VisionFeatureCache(backbone, folder=self.run.root / "cache", limit=limit)
        decoder = static_decoder(backbone, routed) if self.settings.cuda_graphs else None
        try:
            yield Attached(routed, parts, cache, decoder)
        finally:
            if decoder is not None:
                decoder.close()
            routed.close()
            cache.close()


def _route(pair: Pair, parts: AttachedParts | None) -> tuple[str, ...] | dict[str, float]:
    """What a sample passes through: names of attached experts, or of their parts with weights."""
    _, active, weights = pair
    return active if parts is None or not active else parts.route(active, weights)


def _batches(order: list[int], active: list[tuple[str, ...]], size: int, *, separate: bool) -> list[list[int]]:
    """Batches of indices in the given order; with `separate`, no batch has two sets of experts."""
    groups = [list(group) for _, group in groupby(order, key=active.__getitem__)] if separate else [order]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
