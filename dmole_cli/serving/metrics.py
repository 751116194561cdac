"""What the service counts, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: Any = {"registry": self._registry}
        self._requests = Counter("dmole_requests", "Requests by status of the response.", ["status"], **own)
        self._seconds = Histogram(
            "dmole_request_seconds", "Seconds from the request to its response.", buckets=SECONDS, **own
        )
        self._queued = Histogram(
            "dmole_queue_seconds", "Seconds that a request waited for its batch.", buckets=SECONDS, **own
        )
        self._model = Histogram("dmole_batch_seconds", "Seconds of the model for a batch.", buckets=SECONDS, **own)
        self._sizes = Histogram("dmole_batch_requests", "Requests that were answered together.", buckets=SIZES, **own)
        self._active = Counter("dmole_activations", "Requests that a router sent to an expert.", ["expert"], **own)
        self._none = Counter("dmole_without_expert", "Routed requests that no router recognised.", **own)
        self._routed = Counter("dmole_routed", "Requests whose experts the routers chose.", **own)
        self._loaded = Gauge("dmole_loaded_experts", "Experts in memory.", **own)
        self._reloads = Counter("dmole_reloads", "How often changed experts were taken up.", **own)
        self._progress = Gauge("dmole_requests_in_progress", "Requests that were accepted and not answered.", **own)
        self._waiting = Gauge("dmole_queue", "Requests that wait for their batch.", **own)

    def follow(self, *, waiting: Callable[[], int], in_progress: Callable[[], int]) -> None:
        """Take two figures when they are asked for."""
        self._waiting.set_function(waiting)
        self._progress.set_function(in_progress)

    def request(self, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, size: int, seconds: float, waited: Iterable[float]) -> None:
        """Count a batch, and the seconds that each of its requests has waited."""
        self._sizes.observe(size)
        self._model.observe(seconds)
        for one in waited:
            self._queued.observe(one)

    def routed(self, active: Sequence[Iterable[str]]) -> None:
        """Count the experts of requests."""
        self._routed.inc(len(active))
        for names in active:
            found = list(names)
            for name in found:
                self._active.labels(name).inc()
            if not found:
                self._none.inc()

    def loaded(self, experts: int) -> None:
        """Set the number of experts in memory."""
        self._loaded.set(experts)

    def reloaded(self) -> None:
        """Count that changed experts were taken up."""
        self._reloads.inc()

    def page(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
