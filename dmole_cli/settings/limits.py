"""Limits for work that a file from elsewhere determines: chat templates and regular expressions may never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TooMuchWork(Exception):
    """A limit of `bounded` was reached."""


@contextmanager
def bounded(*, seconds: float, memory: int = 0) -> Iterator[None]:
    """Limit the time, and if wanted the additional memory, of the body.

    The clock interrupts Python code and `re`, in the main thread of a process only; elsewhere, and on systems without these
    limits, nothing is limited.

    Args:
        seconds: processor time of the process, so that a busy machine makes no difference.
        memory: bytes of address space beside what the process has; 0 for no limit.

    Raises:
        TooMuchWork: a limit was reached.
    """
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not timed:
        yield
        return

    def expired(number: int, frame: object) -> None:
        raise TooMuchWork(f"no result within {seconds:g} seconds")

    previous = signal.signal(signal.SIGPROF, expired)
    outer, _ = signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with _address_space(memory):
            yield
    except MemoryError as error:
        raise TooMuchWork(f"more than {memory >> 20} MiB of memory" if memory else "out of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        signal.setitimer(signal.ITIMER_PROF, outer)  # of a limit around this one


@contextmanager
def _address_space(additional: int) -> Iterator[None]:
    """Lower the soft limit of this process' address space to what it has and `additional` bytes."""
    status = Path("/proc/self/statm")
    if not additional or not status.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + additional
    limits = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
