"""The thread that owns the model: requests that wait at the same time are answered in one batch, whatever their experts are."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dmole_cli.artifacts.usage import Usage
from dmole_cli.inference.answering import Answering, Asked, Reply
from dmole_cli.serving.metrics import Metrics

IDLE = 0.5  # seconds between two looks of a thread without work at whether it should end
# Seconds that a batch waits for the next request that is being prepared, and for all of them. Clients that get their answers
# at the same time send their next requests at the same time, too: without waiting, every second batch would have one request.
NEXT, ALL = 0.02, 0.2


@dataclass
class Job:
    """A question that waits, or a function that the model's thread should call.

    Attributes:
        asked: the question; None for a function.
        call: the function.
        done: receives the reply, or what the function returns.
        since: monotonic time at which it was submitted, in seconds.
    """

    asked: Asked | None = None
    call: Callable[[], Any] | None = None
    done: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Engine:
    """Answers questions in a thread of its own.

    Args:
        answering: the model with its experts; used by the engine's thread alone from now on.
        usage: where active experts are recorded.
        metrics: what is counted.
        batch: maximum number of questions that are answered together.
        arriving: number of questions that are being prepared, and will be submitted in a moment.
        unload_idle: experts that none of this number of latest requests has used are unloaded; 0 keeps them.
    """

    def __init__(
        self,
        answering: Answering,
        usage: Usage,
        metrics: Metrics,
        *,
        batch: int,
        arriving: Callable[[], int],
        unload_idle: int,
    ) -> None:
        self.answering, self.usage, self.metrics = answering, usage, metrics
        self.batch, self.arriving, self.unload_idle = batch, arriving, unload_idle
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dmole-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of jobs that have not been begun."""
        return self._jobs.qsize()

    def submit(self, asked: Asked) -> Future[Reply]:
        """Answer a question in the next batch; cancel the future to take it back."""
        return self._put(Job(asked=asked))

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function between two batches."""
        return self._put(Job(call=function))

    def close(self) -> None:
        """Answer what waits, and end."""
        self._ending.set()
        self._thread.join()
        self.usage.close()

    def _put(self, job: Job) -> Future[Any]:
        self._jobs.put(job)
        return job.done

    def _run(self) -> None:
        while not (self._ending.is_set() and self._jobs.empty()):
            try:
                jobs = [self._jobs.get(timeout=IDLE)]
            except queue.Empty:
                continue
            self._collect(jobs)
            begun = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            self._answer([job for job in begun if job.call is None])
            for job in begun:
                if job.call is not None:
                    self._settle(job, job.call)

    def _collect(self, jobs: list[Job]) -> None:
        """Add to a batch what waits, and what is about to arrive; a function ends it."""
        until = time.monotonic() + ALL
        while len(jobs) < self.batch and jobs[-1].call is None:
            rest = until - time.monotonic() if self.arriving() else 0.0
            try:
                jobs.append(self._jobs.get(timeout=min(NEXT, rest)) if rest > 0 else self._jobs.get_nowait())
            except queue.Empty:
                return

    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        begun = time.monotonic()
        try:
            replies = self.answering.reply([job.asked for job in jobs if job.asked is not None])
        except Exception as error:
            self._alone(jobs, error)
            return
        self.metrics.batch(len(jobs), time.monotonic() - begun, [begun - job.since for job in jobs])
        self._deliver(jobs, replies)

    def _alone(self, jobs: Sequence[Job], error: Exception) -> None:
        """Answer the jobs of a batch that failed one by one, so that one of them does not fail the others."""
        if len(jobs) == 1:
            jobs[0].done.set_exception(error)
            return
        for job in jobs:
            self._answer([job])

    def _deliver(self, jobs: Sequence[Job], replies: Sequence[Reply]) -> None:
        for job, reply in zip(jobs, replies, strict=True):
            job.done.set_result(reply)
        # Only routed requests say which experts the inputs need.
        routed = [reply.experts for job, reply in zip(jobs, replies, strict=True) if _is_routed(job)]
        self.usage.record(routed)
        self.metrics.routed(routed)
        if self.unload_idle:
            pool = self.answering.pool
            pool.unload(pool.idle(self.unload_idle))
        self.metrics.loaded(len(self.answering.pool.loaded))

    def _settle(self, job: Job, function: Callable[[], Any]) -> None:
        try:
            job.done.set_result(function())
        except Exception as error:  # raised where the result is awaited
            job.done.set_exception(error)


def _is_routed(job: Job) -> bool:
    return job.asked is not None and job.asked.experts is None
