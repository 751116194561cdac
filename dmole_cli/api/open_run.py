"""A run directory in a Python program: answers, routes, scores and experts, by the code of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.usage import Usage
from dmole_cli.cli.workspace import open_workspace
from dmole_cli.data.card import Generation
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings
from dmole_cli.settings.record import FILE as RECORD

if TYPE_CHECKING:
    from PIL.Image import Image

    from dmole_cli.data.sample import Sample
    from dmole_cli.inference.answering import Answering, Reply
    from dmole_cli.reports.collect import MethodReport

    Images = str | Path | Image | Sequence[str | Path | Image] | None


@dataclass(frozen=True)
class Route:
    """Which experts the routers choose for a question.

    Attributes:
        experts: names of the active experts, lowest reconstruction loss first; empty where no router recognises the input.
        losses: trained task -> reconstruction loss (mean squared error) under its router.
        thresholds: trained task -> loss up to which its router recognises an input.
    """

    experts: tuple[str, ...]
    losses: Mapping[str, float]
    thresholds: Mapping[str, float]

    @property
    def recognised(self) -> bool:
        """Whether any router recognises the input."""
        return bool(self.experts)


def open_run(
    run: str | Path = "dmole-run",
    *,
    method: str = D_MOLE,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> OpenRun:
    """Open a run directory. The model is loaded when it is needed first.

    Args:
        run: the run directory; its `run.toml` has the settings of its commands.
        method: whose experts are used.
        config: configuration file; by default `dmole.toml` of the current folder, if there is one.
        settings: settings by dotted names, in place of those of the run: `{"device": "cpu", "evaluate.routing": "top-1"}`.

    Raises:
        DmoleError: the run does not exist, or a setting is invalid.
    """
    return OpenRun(Path(run), method=method, config=None if config is None else Path(config), settings=settings or {})


class OpenRun:
    """A run directory, made by `open_run`; a context manager that frees the device at its end.

    Not for several threads at once.

    Attributes:
        method: whose experts are used.
        settings: of the run.
    """

    def __init__(self, run: Path, *, method: str, config: Path | None, settings: Mapping[str, Any]) -> None:
        if not (run / RECORD).is_file():
            raise DmoleError(
                f"{run} is not a run directory: it has no {RECORD}", "train a stream first, or name another folder"
            )
        values = {"run_directory": run, "config": config}
        self._work = open_workspace(values, settings, model=Settings, typed={})
        self.method, self.settings = method, self._work.settings
        self._stack = ExitStack()
        self._opened: Answering | None = None
        self._usage = Usage(self._work.run.usage(method))

    def answer(
        self,
        image: Images,
        question: str,
        *,
        max_new_tokens: int | None = None,
        experts: Sequence[str] | None = None,
    ) -> Reply:
        """Answer a question about images, as `dmole answer` does.

        Args:
            image: a path or an image of PIL, several of them, or None.
            question: the whole instruction; `<image>` is the place of the next image, and without it images precede the text.
            max_new_tokens: maximum number of tokens; by default that of the task card of the first active expert.
            experts: active experts, `[]` for the pretrained backbone; by default the routers choose.

        Raises:
            DmoleError: an image is invalid, an expert or a router is missing or stale, or an expert is unknown.
        """
        [reply] = self.answer_all([(image, question)], max_new_tokens=max_new_tokens, experts=experts)
        return reply

    def answer_all(
        self,
        questions: Sequence[tuple[Images, str]],
        *,
        max_new_tokens: int | None = None,
        experts: Sequence[str] | None = None,
    ) -> list[Reply]:
        """Answer questions together, as one batch; arguments and errors are those of `answer`."""
        from dmole_cli.inference.answering import Asked

        limits = Generation(max_new_tokens=max_new_tokens) if max_new_tokens else None
        with self._work.hints():
            opened = self._open()
            if unknown := sorted(set(experts or ()) - set(opened.trained.tasks)):
                known = ", ".join(opened.trained.tasks) or "none"
                raise DmoleError(f"unknown expert {unknown[0]!r}", f"experts of {self.method}: {known}")
            chosen = None if experts is None else tuple(experts)
            encoded = self._encoded(opened, questions)
            replies = opened.reply([Asked(one, experts=chosen, limits=limits) for one in encoded])
        if experts is None:
            self._usage.record([reply.experts for reply in replies])
        return replies

    def route(self, image: Images, question: str) -> Route:
        """Which experts would answer; nothing is generated. Arguments and errors are those of `answer`."""
        with self._work.hints():
            opened = self._open()
            [experts], [losses] = opened.route(self._encoded(opened, [(image, question)]))
        return Route(experts, losses, dict(opened.thresholds))

    def scores(self, split: str = "test") -> MethodReport:
        """Last, AVG, BWT and the other quantities of the stored evaluations, as `dmole report` computes them; no model is loaded.

        Args:
            split: `test` or `validation`.

        Raises:
            DmoleError: an evaluation is damaged, or an expert has changed since.
        """
        from dmole_cli.reports.collect import collect

        with self._work.hints():
            [report] = collect(self._work.run, tasks=self.settings.tasks, methods=[self.method], split=split)
        return report

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the trained experts, in the order of the stream."""
        from dmole_cli.methods._trained import trained_tasks
        from dmole_cli.methods.base import load_method

        rules = load_method(self.method)
        after = trained_tasks(rules, self.settings, self._work.run)
        return tuple(rules.trained_tasks(self.settings.tasks)[:after])

    def close(self) -> None:
        """Detach the experts and free the model; the next question loads it again."""
        self._opened = None
        self._stack.close()
        self._usage.close()
        self._work.model.unload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Answering:
        from dmole_cli.stages.answer import answering

        if self._opened is None:
            self._opened = self._stack.enter_context(answering(self.method, **self._work.parts))
        return self._opened

    def _encoded(self, opened: Answering, questions: Sequence[tuple[Images, str]]) -> list[Any]:
        samples = [_sample(image, text, f"question {row}") for row, (image, text) in enumerate(questions, start=1)]
        return [opened.backbone.encode(sample, with_answer=False) for sample in samples]


def _sample(images: Images, text: str, name: str) -> Sample:
    """A question as a sample."""
    from dmole_cli.data.images import converted, open_image
    from dmole_cli.stages.answer import asked

    listed = [images] if isinstance(images, str | Path) or hasattr(images, "convert") else list(images or ())  # type: ignore[arg-type]
    openers = [
        (lambda path=Path(one): open_image(path, row=name))
        if isinstance(one, str | Path)
        else (lambda one=one: converted(one, row=name))
        for one in listed
    ]
    return asked(text, openers, name=name)
