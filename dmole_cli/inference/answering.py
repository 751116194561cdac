"""The samples of a task, asked under a method's experts: in batches, and nothing that was computed before.

What a model says of a sample is a function of the backbone, the sample, the experts that are active for it and what it is
asked for. It is kept in the run directory under a key of exactly these, so that of the (T + 1) x T cells only the distinct
keys are computed, whatever methods, stages and tasks are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.files import digest_of, digest_of_file
from dmole_cli.artifacts.generations import read_generations, write_generations
from dmole_cli.artifacts.likelihood import Likelihoods, read_likelihood_cache, write_likelihood_cache
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.loading import TaskCard
from dmole_cli.data.sample import Sample
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate as generate_answers
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.progress import Track
from dmole_cli.training.loop import has_vision_expert

if TYPE_CHECKING:
    from dmole_cli.session import Session

# A sample's index, and the experts that are active for it.
Pair = tuple[int, tuple[str, ...]]
# Pairs that were computed just now; two routes to the same experts, in another order, are one.
Fresh = set[tuple[int, frozenset[str]]]
Said = TypeVar("Said")
# What to do with a batch: the model's inputs, the samples' indices, the experts at work -> what it says of each sample.
Ask = Callable[[dict[str, Any], list[int], RoutedExperts], Sequence[Said]]


@dataclass(frozen=True)
class Asking:
    """Who is asked about what.

    Attributes:
        session: configuration, run directory, backbone.
        card: the task.
        samples: of the evaluated split.
        method: whose experts.
        merges: whether they are folded into the backbone's weights instead of computed beside them.
        force: compute again what is kept.
        track: shows progress.
    """

    session: Session
    card: TaskCard
    samples: Sequence[Sample]
    method: str
    merges: bool
    force: bool
    track: Track

    def answers(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, str], Fresh]:
        """The greedy answer of each pair, kept ones where they are there; and which are new."""
        generation, backbone = self.card.generation, self.session.backbone

        def generate(inputs: dict[str, Any], indices: list[int], routed: RoutedExperts) -> list[str]:
            return generate_answers(
                backbone,
                inputs,
                max_new_tokens=generation.max_new_tokens,
                min_new_tokens=generation.min_new_tokens,
                leave=routed.keep,
            )

        return self._kept(
            self._keys(pairs, lambda index: asdict(generation)),
            self.session.run.generations(self.card.name, self.session.config.evaluate.split),
            read=read_generations,
            write=write_generations,
            ask=generate,
        )

    def likelihoods(
        self, pairs: Iterable[Pair], *, answers: Sequence[Sequence[str]]
    ) -> tuple[dict[Pair, Likelihoods], Fresh]:
        """How likely each pair finds the answers to its sample, kept ones where they are there; and which are new.

        Args:
            pairs: as for `answers`.
            answers: of each sample of the split, those to score.
        """
        backbone, rows = self.session.backbone, self.session.config.evaluate.batch_size

        def score(inputs: dict[str, Any], indices: list[int], routed: RoutedExperts) -> list[Likelihoods]:
            own = [answers[index] for index in indices]
            return answer_likelihoods(backbone, inputs, answers=own, rows=rows, narrow=routed.narrowed)

        return self._kept(
            self._keys(pairs, lambda index: list(answers[index])),
            self.session.run.likelihood_cache(self.card.name, self.session.config.evaluate.split),
            read=read_likelihood_cache,
            write=write_likelihood_cache,
            ask=score,
        )

    def _keys(self, pairs: Iterable[Pair], asked: Callable[[int], Any]) -> dict[Pair, str]:
        """The key of each pair; `asked`: what a sample is asked for, JSON values."""
        wanted = list(dict.fromkeys(pairs))
        run = self.session.run
        names = sorted({name for _, active in wanted for name in active})
        digests = {name: digest_of_file(run.expert(name, self.method)) for name in names}
        pictures = self.session.image_digests

        def key(index: int, active: tuple[str, ...]) -> str:
            sample = self.samples[index]
            looked_at = [sample.sources, [pictures[file] for file in sample.files]]
            about = [sample.sample_id, sample.question, *looked_at]
            used = sorted(digests[name] for name in active)
            return digest_of([self.session.fingerprint, self.session.precision, asked(index), *about, used])

        return {pair: key(*pair) for pair in wanted}

    def _kept(
        self,
        keys: Mapping[Pair, str],
        path: Path,
        *,
        read: Callable[[Path], dict[str, Said]],
        write: Callable[[Path, dict[str, Said], str], None],
        ask: Ask[Said],
    ) -> tuple[dict[Pair, Said], Fresh]:
        kept = {} if self.force else read(path)
        # Two routes to the same set of experts (in another order) are one key, computed once.
        missing = {key: pair for pair, key in keys.items() if key not in kept}
        if missing:
            fresh = self._in_batches(list(missing.values()), ask)
            kept = {**read(path), **dict(zip(missing, fresh, strict=True))}
            write(path, kept, self.session.fingerprint)
        new = {(index, frozenset(active)) for index, active in missing.values()}
        return {pair: kept[key] for pair, key in keys.items()}, new

    def _in_batches(self, pairs: list[Pair], ask: Ask[Said]) -> list[Said]:
        """What is said of each pair, batched by experts and length of the prompt."""
        backbone, samples = self.session.backbone, self.samples
        lengths = backbone.lengths(samples, with_answer=False)
        order = sorted(range(len(pairs)), key=lambda p: (pairs[p][1], lengths[pairs[p][0]], pairs[p][0]))
        size = self.session.config.evaluate.batch_size
        batches = _batches(order, [active for _, active in pairs], size, apart=self.merges)
        routed = self._attached({name for _, active in pairs for name in active})
        # Worth its place only where a sample is asked more than once without an expert that looks at its pictures.
        blind = [i for i, active in pairs if not has_vision_expert(backbone, routed, [active])]
        room = self.session.config.picture_store * 2**20 if len(set(blind)) < len(blind) else 0
        seen = VisionFeatureCache(backbone, folder=self.session.run.root / "cache", limit=room)
        out: dict[int, Said] = {}
        try:
            encoded = encoded_batches(backbone, samples, [[pairs[p][0] for p in b] for b in batches], with_answer=False)
            label = f"evaluate {self.card.name} ({self.method})"
            for batch, rows in zip(batches, self.track(encoded, label, len(batches)), strict=True):
                inputs, vision_rows = backbone.collate(rows, left=True)
                sets = [pairs[p][1] for p in batch]
                if self.merges:
                    routed.merge(sets[0])
                if not has_vision_expert(backbone, routed, sets):
                    inputs = seen.replace(inputs, rows)
                beside = [() for _ in sets] if self.merges else sets
                with routed.route(beside, rows=vision_rows, device=backbone.device, dtype=backbone.compute_dtype):
                    said = ask(inputs, [pairs[p][0] for p in batch], routed)
                out |= dict(zip(batch, said, strict=True))
        finally:
            routed.close()
            seen.close()
        return [out[p] for p in range(len(pairs))]

    def _attached(self, names: Iterable[str]) -> RoutedExperts:
        session = self.session
        routed = RoutedExperts(session.backbone.model, session.backbone.modality_of)
        for name in sorted(names):
            redo = f"make it again with: {session.command('train-task', name, method=self.method)} --force"
            file = read_expert(session.run.expert(name, self.method), hint=redo)
            routed.add(name, Expert(file.sites, file.scale, gates=file.gates))
        return routed


def _batches(order: list[int], active: list[tuple[str, ...]], size: int, *, apart: bool) -> list[list[int]]:
    """Batches of indices in a given order; `apart`: none holds two sets of experts."""
    groups = [list(group) for _, group in groupby(order, key=active.__getitem__)] if apart else [order]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
