"""Cached batch inference under a method's experts.

A prediction or a likelihood depends on the backbone, the sample, the sample's active experts and the request (generation
settings, or answers to score).
It is cached in the run directory under a digest of exactly these, so that of all entries of the score matrix only
distinct keys are computed, whatever methods, positions and tasks are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from dmole_cli.artifacts.files import digest_of, digest_of_file
from dmole_cli.artifacts.generations import read_generations, write_generations
from dmole_cli.artifacts.likelihood import Likelihoods, read_likelihood_cache, write_likelihood_cache
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.tasks import Tasks
from dmole_cli.experts.expert import load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.progress import Track
from dmole_cli.settings.model import Settings

# A sample's index, and its active experts.
Pair = tuple[int, tuple[str, ...]]
# Pairs that were computed by this process; the order of the experts does not matter.
NewPairs = set[tuple[int, frozenset[str]]]
Result = TypeVar("Result")
# (the model's inputs, the samples' indices, the routed experts) -> a result per sample.
Compute = Callable[[dict[str, Any], list[int], RoutedExperts], Sequence[Result]]


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

    @property
    def split(self) -> str:
        """The evaluated split."""
        return self.settings.evaluate.split

    def predictions(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, str], NewPairs]:
        """The greedy prediction of each pair, from the cache where possible, and the pairs that were computed."""
        generation, backbone = self.data.card(self.task).generation, self.model.load()

        def compute(inputs: dict[str, Any], indices: list[int], routed: RoutedExperts) -> list[str]:
            limits = {"max_new_tokens": generation.max_new_tokens, "min_new_tokens": generation.min_new_tokens}
            return generate(backbone, inputs, **limits, leave=routed.keep)

        return self._cached(
            self._keys(pairs, lambda index: generation.model_dump()),
            self.run.generations(self.task, self.split),
            read=read_generations,
            write=write_generations,
            compute=compute,
        )

    def likelihoods(
        self, pairs: Iterable[Pair], *, answers: Sequence[Sequence[str]]
    ) -> tuple[dict[Pair, Likelihoods], NewPairs]:
        """The likelihoods of given answers for each pair, from the cache where possible, and the pairs that were computed.

        Args:
            pairs: sample indices with active experts.
            answers: the answers to score, for each sample of the split.
        """
        backbone, rows = self.model.load(), self.settings.evaluate.batch_size

        def compute(inputs: dict[str, Any], indices: list[int], routed: RoutedExperts) -> list[Likelihoods]:
            own = [answers[index] for index in indices]
            return answer_likelihoods(backbone, inputs, answers=own, rows=rows, narrow=routed.narrowed)

        return self._cached(
            self._keys(pairs, lambda index: list(answers[index])),
            self.run.likelihood_cache(self.task, self.split),
            read=read_likelihood_cache,
            write=write_likelihood_cache,
            compute=compute,
        )

    def _keys(self, pairs: Iterable[Pair], request: Callable[[int], Any]) -> dict[Pair, str]:
        """The cache key of each pair; `request` returns a sample's generation settings, or answers to score, as JSON."""
        wanted = list(dict.fromkeys(pairs))
        names = sorted({name for _, active in wanted for name in active})
        digests = {name: digest_of_file(self.run.expert(name, self.method)) for name in names}
        samples, image_digests = self.data.samples(self.task, self.split), self.data.image_digests

        def key(index: int, active: tuple[str, ...]) -> str:
            sample = samples[index]
            images = [sample.sources, [image_digests[file] for file in sample.files]]
            experts = sorted(digests[name] for name in active)
            about = [sample.sample_id, sample.question, *images, experts]
            return digest_of([self.model.fingerprint, self.model.precision, request(index), *about])

        return {pair: key(*pair) for pair in wanted}

    def _cached(
        self,
        keys: Mapping[Pair, str],
        path: Path,
        *,
        read: Callable[[Path], dict[str, Result]],
        write: Callable[[Path, dict[str, Result], str], None],
        compute: Compute[Result],
    ) -> tuple[dict[Pair, Result], NewPairs]:
        known = {} if self.force else read(path)
        missing = {key: pair for pair, key in keys.items() if key not in known}
        if missing:
            results = self._in_batches(list(missing.values()), compute)
            known = {**read(path), **dict(zip(missing, results, strict=True))}
            write(path, known, self.model.fingerprint)
        computed = {(index, frozenset(active)) for index, active in missing.values()}
        return {pair: known[key] for pair, key in keys.items()}, computed

    def _in_batches(self, pairs: list[Pair], compute: Compute[Result]) -> list[Result]:
        """Results of pairs, in batches of the same experts and of similar prompt length."""
        backbone, samples = self.model.load(), self.data.samples(self.task, self.split)
        lengths = backbone.lengths(samples, with_answer=False)
        order = sorted(range(len(pairs)), key=lambda p: (pairs[p][1], lengths[pairs[p][0]], pairs[p][0]))
        size = self.settings.evaluate.batch_size
        batches = _batches(order, [active for _, active in pairs], size, separate=self.merges)
        results: dict[int, Result] = {}
        with self._attached(pairs) as (routed, cache):
            rows = [[pairs[p][0] for p in batch] for batch in batches]
            again = len({index for index, _ in pairs}) < len(pairs)
            cache_size = self.settings.sample_cache * 2**20 if again else 0
            encoded = encoded_batches(
                backbone, samples, rows, with_answer=False, workers=self.settings.workers, cache=cache_size
            )
            label = f"evaluate {self.task} ({self.method})"
            for batch, encoded_batch in zip(batches, self.track(encoded, label, len(batches)), strict=True):
                inputs, vision_rows = backbone.collate(encoded_batch, left=True)
                active = [pairs[p][1] for p in batch]
                if self.merges:
                    routed.merge(active[0])
                if not routed.has_vision_expert(active):
                    inputs = cache.replace(inputs, encoded_batch)
                beside = [() for _ in active] if self.merges else active
                with routed.route(beside, rows=vision_rows, device=backbone.device, dtype=backbone.compute_dtype):
                    found = compute(inputs, [pairs[p][0] for p in batch], routed)
                results |= dict(zip(batch, found, strict=True))
        return [results[p] for p in range(len(pairs))]

    @contextmanager
    def _attached(self, pairs: Sequence[Pair]) -> Iterator[tuple[RoutedExperts, VisionFeatureCache]]:
        """The backbone with all experts of these pairs attached, and the cache of frozen vision features."""
        backbone = self.model.load()
        routed = RoutedExperts(backbone.model, backbone.modality_of)
        for name in sorted({name for _, active in pairs for name in active}):
            routed.add(name, load_expert(self.run.expert(name, self.method)))
        # Useful only where a sample is visited twice without an active expert in the vision encoder.
        frozen = [index for index, active in pairs if not routed.has_vision_expert([active])]
        limit = self.settings.vision_cache * 2**20 if len(set(frozen)) < len(frozen) else 0
        cache = VisionFeatureCache(backbone, folder=self.run.root / "cache", limit=limit)
        try:
            yield routed, cache
        finally:
            routed.close()
            cache.close()


def _batches(order: list[int], active: list[tuple[str, ...]], size: int, *, separate: bool) -> list[list[int]]:
    """Batches of indices in the given order; with `separate`, no batch has two sets of experts."""
    groups = [list(group) for _, group in groupby(order, key=active.__getitem__)] if separate else [order]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
