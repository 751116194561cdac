"""Runs the application in uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import uvicorn

from dmole_cli.backbones.batches import cores
from dmole_cli.errors import DmoleError
from dmole_cli.serving.app import create_app
from dmole_cli.serving.service import Service

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server for which a signal is a normal end: uvicorn raises the signal again after it has shut down."""

    ready: Callable[[], None]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def leave_a_core(device: torch.device) -> None:
    """On a CPU, let the model compute with one core less than there are, unless `OMP_NUM_THREADS` says with how many.

    The threads of the model wait for each other in every layer: one that shares its core with HTTP and the preparation of images
    slows all of them down.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() - 1))


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, before the model is loaded.

    Raises:
        DmoleError: the address is in use, or is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol, or asyncio would not send at once what it writes (TCP_NODELAY), and answers would be 40 ms late.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError as error:
        raise DmoleError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            "pass another --port (0 for a free one) or --host",
        ) from error
    return opened


def serve(service: Service, listening: socket.socket, *, api_key: str | None, ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; those that were accepted are answered first.

    Args:
        service: answers.
        listening: a bound socket.
        api_key: requests must have it; None for none.
        ready: called once when requests are answered.

    Raises:
        DmoleError: the server could not start.
    """
    config = uvicorn.Config(
        create_app(service, api_key=api_key),
        log_config=None,
        access_log=False,
        server_header=False,
        # Requests have a limit of their own; this one is for connections that do not end.
        timeout_graceful_shutdown=int(service.settings.timeout) + 1,
    )
    server = _Server(config)
    server.ready = ready
    asyncio.run(server.serve(sockets=[listening]))
    if not server.started:
        raise DmoleError("the service could not start", "see the messages above")
