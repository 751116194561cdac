"""`dmole answer`: answers of the newest model to questions that belong to no task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dmole_cli.artifacts.errors import MissingArtifact, StaleArtifact
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.partial import partial_results
from dmole_cli.artifacts.provenance import versions
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.batches import encoded_batches, sequential_batches
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.card import Generation
from dmole_cli.data.images import open_image
from dmole_cli.data.markers import with_plain_markers
from dmole_cli.data.questions import Questions
from dmole_cli.data.sample import Sample
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, load_expert
from dmole_cli.inference.answering import Answering, Reply, Trained
from dmole_cli.methods._trained import digests_of_used, experts_in_use, refuse_unused_routing, trained_tasks
from dmole_cli.methods.base import Method, Routing, load_method
from dmole_cli.progress import Track, quiet
from dmole_cli.settings.model import Settings


def question(text: str, images: Sequence[Path], *, name: str = "question") -> Sample:
    """A question about image files as a sample; `<image>` in the text is the place of the next image.

    Args:
        text: the whole instruction: no prompt template is applied.
        images: files, opened when they are needed.
        name: for error messages.

    Raises:
        DmoleError: the text is empty, or its image markers have numbers that are not in order.
    """
    openers = tuple(partial(open_image, path, row=name) for path in images)
    return replace(asked(text, openers, name=name), files=tuple(images))


def asked(text: str, images: Sequence[Callable[[], Image]], *, name: str = "question") -> Sample:
    """A question about images that functions open. Arguments and errors are those of `question`."""
    if not text.strip():
        raise DmoleError(f"{name} is empty", "give the text of the question")
    try:
        text = with_plain_markers(text)
    except ValueError as error:
        raise DmoleError(f"{name}: {error}", "number the markers 1, 2, ... or write <image>") from error
    return Sample(name, text, "", ("",), tuple(images))


@contextmanager
def answering(
    method: str = D_MOLE, *, settings: Settings, data: Tasks, model: LazyModel, run: Run
) -> Iterator[Answering]:
    """The newest model of a method. Arguments and errors are those of `trained`."""
    found = trained(method, settings=settings, data=data, model=model, run=run)
    with Answering(model.load(), found) as opened:
        if settings.cuda_graphs:
            opened.use_graphs()
        yield opened


def trained(method: str = D_MOLE, *, settings: Settings, data: Tasks, model: LazyModel, run: Run) -> Trained:
    """The experts and routers that a method has trained so far; no weights are loaded.

    Experts and routers must be current; task data are not read, and need not exist any more.

    Raises:
        DmoleError: the method trains each task alone, or an expert or a router is missing, stale or another backbone's.
    """
    rules = load_method(method)
    if rules.protocol == "per-task":
        raise DmoleError(
            f"method {method} has a model for each task, and no rule that chooses one", "choose a method with routers"
        )
    if rules.weighted:
        raise DmoleError(
            f"method {method} weights the experts of each sample, which only `dmole evaluate` computes",
            "choose a method with routers",
        )
    _require_routing(rules, settings)
    after = trained_tasks(rules, settings, run)
    tasks = settings.tasks[:after]
    digests = digests_of_used(
        rules, settings, run, after=after, task="", fingerprint=model.fingerprint, data=lambda name: None
    )

    def limits(task: str | None) -> Generation:
        return data.card(task).generation if task else Generation()

    return Trained(
        tasks=experts_in_use(rules, tasks, "", settings.evaluate),
        load=partial(_load, run, method, digests),
        routers={name: run.router(name) for name in tasks} if rules.uses_routers else {},
        choose=partial(_choose, rules, settings, tasks),
        limits=limits,
        digests=digests,
        threshold_scale=settings.evaluate.threshold_scale,
        merges=rules.merges,
    )


def _load(run: Run, method: str, digests: Mapping[str, str], task: str) -> Expert:
    """Read an expert that may have been replaced since routers and digests were read.

    Raises:
        ArtifactError: the file is missing, damaged, or another one than before.
    """
    path = run.expert(task, method)
    if not path.is_file():
        raise MissingArtifact(path, "it was there when its routers were read")
    if digest_of_file(path) != digests[run.name_of(path)]:
        raise StaleArtifact(path, f"{path} has changed since the routers were read")
    return load_expert(path)


def _require_routing(rules: Method, settings: Settings) -> None:
    """Refuse routing options that have no effect on the answers, and the oracle: a question has no task.

    Raises:
        DmoleError: as described.
    """
    refuse_unused_routing(rules, settings.evaluate)
    if settings.evaluate.routing == "oracle":
        raise DmoleError(
            "routing oracle needs the task of each sample, and a question has none", "choose another --routing"
        )


def _choose(
    rules: Method, settings: Settings, trained: Sequence[str], losses: list[list[float]], thresholds: list[float]
) -> list[tuple[str, ...]]:
    if not trained:
        return [() for _ in losses]
    chosen = settings.evaluate
    return rules.active_experts(Routing(trained, "", losses, thresholds, chosen.routing, chosen.batch_size))


def answer_all(
    questions: Questions,
    method: str = D_MOLE,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    limits: Generation | None = None,
    track: Track = quiet,
) -> list[Reply]:
    """Answer many questions in batches, in their order; what is done when the process is killed is kept.

    Args:
        questions: of a file.
        method: whose experts.
        settings: routing, batch size and workers.
        data: the tasks, whose cards limit the length of answers.
        model: the backbone.
        run: the run directory.
        limits: length of the answers, instead of the cards'.
        track: shows progress.

    Raises:
        DmoleError: as for `answering`; an image cannot be opened.
    """
    samples = [question(one.text, one.images, name=one.name) for one in questions.rows]
    with answering(method, settings=settings, data=data, model=model, run=run) as opened:
        backbone = opened.backbone
        lengths = backbone.lengths(samples, with_answer=False)
        order = sorted(range(len(samples)), key=lengths.__getitem__)
        size = settings.evaluate.batch_size
        batches = [[order[i] for i in batch] for batch in sequential_batches(len(order), size)]
        chosen = settings.evaluate
        identity = [
            *(
                "answer",
                method,
                questions.digest,
                dict(opened.trained.digests),
                model.fingerprint,
                model.precision,
                size,
            ),
            *(chosen.routing, chosen.threshold_scale, limits.model_dump() if limits else None),
            *_contents(samples, data, settings),
            versions("torch", "transformers"),
        ]
        replies: dict[int, Reply] = {}
        with partial_results(run.root, identity) as stored:
            own = stored.missing(len(batches))
            rows = [batches[number] for number in own]
            encoded: Any = encoded_batches(backbone, samples, rows, with_answer=False, workers=settings.workers)
            for number, batch in zip(own, track(encoded, "answers", len(own)), strict=True):
                stored.add(number, [vars(reply) for reply in opened.answer(batch, limits=limits)])
            for number, packed in stored.all():
                found = (Reply(**{**values, "experts": tuple(values["experts"])}) for values in packed)
                replies |= zip(batches[number], found, strict=True)
        return [replies[index] for index in range(len(samples))]


def _contents(samples: Sequence[Sample], data: Tasks, settings: Settings) -> tuple[list[list[str]], list[Any]]:
    """What the answers depend on besides text and experts: digests of the image files, and the cards' limits."""
    cards = [data.card(task).generation.model_dump() for task in settings.tasks]
    return [[data.image_digests[file] for file in sample.files] for sample in samples], cards


def answer_one(sample: Sample, opened: Answering, *, limits: Generation | None = None) -> Reply:
    """Answer one question; `opened` may answer any number of them.

    Raises:
        DmoleError: an image cannot be opened, or the processor refuses it.
    """
    encoded = encoded_batches(opened.backbone, [sample], [[0]], with_answer=False, workers=0)
    return opened.answer(next(iter(encoded)), limits=limits)[0]
