"""What the service does for a request, without HTTP: limits, preparation, the model's answer, and changes of experts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.usage import Usage
from dmole_cli.data.card import Generation
from dmole_cli.data.markers import with_plain_markers
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.inference.answering import Answering, Asked, Reply, Trained
from dmole_cli.serving.chat import AUTO, BACKBONE, ChatRequest, model_card
from dmole_cli.serving.engine import Engine
from dmole_cli.serving.errors import RequestError, invalid
from dmole_cli.serving.images import MEGAPIXEL, ImageSources, is_remote
from dmole_cli.serving.metrics import Metrics
from dmole_cli.settings.serve import ServeSettings

CHARACTERS = 20  # of a text that can be a token: longer texts are refused before they are tokenised
MEBIBYTE = 1 << 20
FAILED = "the service cannot answer; its log says why"


@dataclass(frozen=True)
class Source:
    """Where the service's experts come from.

    Attributes:
        name: of the backbone, as the user named it.
        read: reads which experts and routers there are; raises `DmoleError` where they do not belong together.
        state: changes when the files of experts and routers change.
    """

    name: str
    read: Callable[[], Trained]
    state: Callable[[], Hashable]


class Service:
    """Answers requests with one model.

    Args:
        answering: the model with its experts.
        source: where these come from.
        settings: limits.
        usage: where active experts are recorded.
        log: prints a line for the operator.

    Raises:
        DmoleError: an expert has the name of another model of the service.
    """

    def __init__(
        self,
        answering: Answering,
        source: Source,
        *,
        settings: ServeSettings,
        usage: Usage,
        log: Callable[[str], None],
    ) -> None:
        self.answering, self.source, self.settings, self.log = answering, source, settings, log
        self.metrics = Metrics()
        self._arriving = 0
        self.engine = Engine(
            answering,
            usage,
            self.metrics,
            batch=settings.batch,
            arriving=lambda: self._arriving,
            unload_idle=settings.unload_idle,
        )
        self.max_bytes = int(settings.max_body * MEBIBYTE)
        self._images = ImageSources(
            Path(settings.images) if settings.images else None,
            settings.allow_urls,
            max_pixels=int(settings.max_pixels * MEGAPIXEL),
            max_bytes=self.max_bytes,
            timeout=min(settings.timeout, 10.0),
        )
        # One thread: the tokenizer is not made for several, and on a CPU the model needs the other cores.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="dmole-prepare")
        self._in_progress = 0
        self.metrics.follow(waiting=lambda: self.engine.waiting, in_progress=lambda: self._in_progress)
        _require_free_names(answering.trained)

    def start(self) -> None:
        """Begin to answer."""
        self.engine.start()

    def close(self) -> None:
        """Answer what was accepted, and end."""
        self._preparing.shutdown()
        self.engine.close()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Inside the block, a request is in progress.

        Raises:
            RequestError: too many are.
        """
        if self._in_progress >= self.settings.queue:
            message = f"{self._in_progress} requests are in progress, the maximum; try again"
            raise RequestError(429, message, headers={"Retry-After": "1"})
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1

    # ------------------------------------------------------------------------------------------------ models

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models of `/v1/models`: routing, the pretrained backbone, and each expert."""
        name = self.source.name
        experts = [model_card(task, root=name, parent=BACKBONE) for task in self.answering.trained.tasks]
        return [model_card(AUTO, root=name), model_card(BACKBONE, root=name), *experts]

    def experts_of(self, model: str) -> tuple[str, ...] | None:
        """The experts that a model's name stands for; None where the routers choose.

        Raises:
            RequestError: the model is unknown.
        """
        if model == AUTO:
            return None
        if model == BACKBONE:
            return ()
        if model in self.answering.trained.tasks:
            return (model,)
        known = ", ".join(card["id"] for card in self.models)
        raise RequestError(404, f"unknown model {model[:100]!r}; models: {known}"[:2000], param="model")

    # ------------------------------------------------------------------------------------------------ requests

    async def submit(
        self, request: ChatRequest, emit: Callable[[int], None] | None = None
    ) -> tuple[Future[Reply], int]:
        """Prepare a question and let it be answered in the next batch; returns its reply to be, and its number of tokens.

        Args:
            request: valid in itself.
            emit: called, by another thread, with every token of the answer.

        Raises:
            RequestError: it is over a limit, names an unknown model, or its image or text is invalid.
        """
        limits, experts = self._limits(request), self.experts_of(request.model)
        text, urls = request.question()
        if len(urls) > self.settings.max_images:
            raise invalid(f"{len(urls)} images are more than {self.settings.max_images}", param="messages.0.content")
        longest = self.settings.longest_question
        if len(text) > CHARACTERS * longest:
            raise _too_long(longest)
        # Downloads take as long as other machines do: they must not hold up the preparation of other requests, or a batch.
        fetched = {url: await asyncio.to_thread(self._images.read, url, "the image") for url in filter(is_remote, urls)}
        self._arriving += 1
        try:
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(self._preparing, partial(self._encode, text, urls, fetched))
            if len(encoded.tokens) > longest:
                raise _too_long(longest)
            asked = Asked(encoded, experts=experts, limits=limits, emit=emit)
            return self.engine.submit(asked), len(encoded.tokens)
        finally:
            self._arriving -= 1

    def _limits(self, request: ChatRequest) -> Generation | None:
        if request.longest is None:
            return None
        if request.longest > self.settings.longest_answer:
            message = f"{request.longest} tokens are more than this service's maximum of {self.settings.longest_answer}"
            raise invalid(message, param="max_completion_tokens")
        return Generation(max_new_tokens=request.longest)

    def _encode(self, text: str, urls: Sequence[str], fetched: Mapping[str, bytes]) -> Any:
        if not text.strip():
            raise invalid("the question is empty", param="messages.0.content")
        # Decoded here and not by the backbone, so that a wrong image is an error of the request that has it.
        named = {url: f"image {number}" for number, url in enumerate(urls, start=1)}
        images = [
            self._images.decode(fetched[url] if url in fetched else self._images.read(url, named[url]), named[url])
            for url in urls
        ]
        openers = tuple((lambda image=image: image) for image in images)
        try:
            sample = Sample("question", with_plain_markers(text), "", ("",), openers)
            return self.answering.backbone.encode(sample, with_answer=False)
        except (DmoleError, ValueError) as error:
            message = error.message if isinstance(error, DmoleError) else str(error)
            raise invalid(message, param="messages.0.content") from error

    async def answer(self, future: Future[Reply]) -> Reply:
        """The reply of the engine.

        Raises:
            RequestError: the service cannot answer; why is logged.
        """
        try:
            return await asyncio.wrap_future(future)
        except DmoleError as error:
            self.log(f"{error.message}{f' -> {error.hint}' if error.hint else ''}")
            raise RequestError(503, FAILED) from error

    # ------------------------------------------------------------------------------------------------ experts

    async def unload(self, names: Sequence[str]) -> list[str]:
        """Unload experts; returns those that were loaded.

        Raises:
            RequestError: an expert is unknown.
        """
        self._require_experts(names)
        return await asyncio.wrap_future(self.engine.call(partial(self.answering.pool.unload, names)))

    async def unload_idle(self, requests: int) -> list[str]:
        """Unload the experts that none of a number of latest requests has used; returns them."""
        pool = self.answering.pool
        return await asyncio.wrap_future(self.engine.call(lambda: pool.unload(pool.idle(requests))))

    async def load(self, names: Sequence[str]) -> list[str]:
        """Load experts before a request needs them; returns those that were not loaded.

        Raises:
            RequestError: an expert is unknown, or loading it failed.
        """
        self._require_experts(names)
        pool = self.answering.pool

        def load() -> list[str]:
            missing = [name for name in dict.fromkeys(names) if name not in pool.loaded]
            pool.preload(missing)
            return missing

        try:
            return await asyncio.wrap_future(self.engine.call(load))
        except DmoleError as error:
            self.log(error.message)
            raise RequestError(503, FAILED) from error

    def _require_experts(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self.answering.trained.tasks]:
            raise RequestError(404, f"unknown expert {unknown[0][:100]!r}", param="experts")

    async def watch(self, interval: float) -> None:
        """Take up changed experts and routers, until it is cancelled; invalid ones are logged once, and the former stay."""
        known = self.source.state()
        while True:
            await asyncio.sleep(interval)
            now = await asyncio.to_thread(self.source.state)
            if now == known:
                continue
            await asyncio.sleep(interval)  # several files change together
            known = await asyncio.to_thread(self.source.state)
            try:
                found = await asyncio.to_thread(self.source.read)
                if dict(found.digests) == dict(self.answering.trained.digests):
                    continue
                _require_free_names(found)
                await asyncio.wrap_future(self.engine.call(partial(self.answering.use, found)))
            except (DmoleError, OSError) as error:  # OSError: a file was replaced while it was read
                self.log(f"changed experts are not taken up: {first_line(error)}")
            else:
                self.metrics.reloaded()
                self.log(f"experts in use now: {', '.join(found.tasks) or 'none'}")


def _require_free_names(trained: Trained) -> None:
    if taken := [name for name in (AUTO, BACKBONE) if name in trained.tasks]:
        raise DmoleError(
            f"a task has the name {taken[0]!r}, which the service gives to another model", "rename the task's card"
        )


def _too_long(longest: int) -> RequestError:
    return invalid(f"the question has more than {longest} tokens", param="messages.0.content")
