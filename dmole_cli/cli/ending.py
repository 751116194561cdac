"""How a command ends: every failure is one message on stderr and exit code 1. Imports nothing that takes time.

Also what no part of dmole foresaw: an interruption in the middle of an import, a full or closed stdout, too little memory, an
operating system's error, and faults of dmole itself, whose traceback is shown where DMOLE_TRACEBACK is set.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from dmole_cli.errors import DmoleError, first_line
from dmole_cli.processes import is_first, reports_error
from dmole_cli.reports.wrapping import wrapped

CLEANING_UP = 2.0  # seconds after an interruption in which further ones are ignored
ALARM = getattr(signal, "SIGALRM", None)  # no such signal on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([ALARM] if ALARM is not None else []))
INTERRUPTED = DmoleError("interrupted; no incomplete file was left", "run the same command again")
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch, CUDA and C++ say when they get no memory; none of them has a type for all of it.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class _Interrupted(BaseException):
    """Ctrl-C or a termination signal; not an Exception, so that no `except Exception` catches it."""


class _Signals:
    """When the first signal arrived."""

    first: float | None = None

    def __call__(self, number: int, frame: object) -> None:
        """Interrupt the command once; later signals wait until it has cleaned up, or end a process that did not end.

        Python drops an exception that is raised in a destructor or in some callbacks, so a command that still runs after
        `CLEANING_UP` is interrupted again by an alarm.
        """
        now = time.monotonic()
        if self.first is None:
            self.first = now
        elif now - self.first <= CLEANING_UP:
            return
        elif number != ALARM:
            _fail_once(INTERRUPTED)
            os._exit(1)
        if ALARM is not None:
            signal.setitimer(signal.ITIMER_REAL, 1.1 * CLEANING_UP)
        raise _Interrupted


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command and exit.

    Args:
        command: ends with SystemExit or without an exception if it succeeds.
    """
    signals = _Signals()
    for number in SIGNALS:
        signal.signal(number, signals)
    code = 1
    try:
        _open_streams()
        if not is_first():
            _silence()
        ended = _code_of(command)
        sys.stdout.flush()  # here, and not by the interpreter, whose exit code and message would be its own
        _ignore_signals()
        code = ended
    except _Interrupted:
        _ignore_signals()
        _fail_once(INTERRUPTED)
    except BrokenPipeError:  # as of `dmole ... | head`
        _ignore_signals()
    except Exception as error:
        _ignore_signals()
        # A library may turn an interruption of its import into an exception of its own.
        _fail_once(INTERRUPTED if signals.first is not None else as_dmole_error(error))
    _abandon_output()
    sys.exit(code)


def _code_of(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        if end.code and not is_first():
            time.sleep(CLEANING_UP)  # a usage error: the first process prints it, and its end ends all
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def as_dmole_error(error: Exception) -> DmoleError:
    """The message for any exception.

    Raises:
        Exception: the error itself, if it is a fault of dmole and DMOLE_TRACEBACK is set.
    """
    if isinstance(error, DmoleError):
        return error
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return DmoleError(f"there is not enough memory ({first_line(error)[:200]})", _less_memory(sys.argv[1:]))
    if type(error).__name__.startswith("Dist") or "gloo" in str(error):  # torch.distributed's errors
        return DmoleError(
            f"another process of this command ended, or cannot be reached ({first_line(error)[:120]})",
            "see the launcher's message; run the same command again",
        )
    if isinstance(error, OSError) and error.errno is not None:  # without a number, no system call raised it
        return _of_system(error)
    if os.environ.get("DMOLE_TRACEBACK"):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return DmoleError(
        f"unexpected {type(error).__name__}: {first_line(error)[:300]}{place}",
        "this is a fault of dmole; set DMOLE_TRACEBACK=1, run the command again, and report what it prints",
    )


def _less_memory(arguments: Sequence[str]) -> str:
    """The options of a command that need less memory."""
    options = {
        "train-task": "--micro-batch auto divides a step into what fits, --checkpointing recomputes activations",
        "profile": "lower --batch-size, or pass --checkpointing",
        "evaluate": "lower --batch-size",
        "update": "--micro-batch auto divides a step of training; lower the batch_size of [profile] and [evaluate]",
    }
    first = next(
        (options[word] for word in arguments if word in options), "lower --batch-size where the command has it"
    )
    return f"{first}; `dmole plan` shows how much is needed; or free memory"


def _of_system(error: OSError) -> DmoleError:
    what = error.strerror or first_line(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in SPACE:
        where = where or "the output or a temporary file cannot be written: "
        return DmoleError(f"no space left: {where}{what}", "free some disk space and run the same command again")
    if error.errno == errno.EBADF and not error.filename:
        return DmoleError("the output cannot be written: stdout is closed", "run the command with an open stdout")
    return DmoleError(f"{where}{what}", "check the path and its permissions")


def fail(error: DmoleError) -> None:
    """Print an error: what, where, what to do next; nothing where stderr cannot be written either."""
    stderr = sys.stderr if is_first() else sys.__stderr__
    if stderr is None:
        return
    with suppress(OSError, ValueError):
        print(wrapped(f"error: {error.message}", stderr), file=stderr, flush=True)
        if hint := f"  -> {error.hint}" if error.hint else "":
            # A command is not wrapped, so that it can be copied.
            print(hint if "dmole " in hint else wrapped(hint, stderr), file=stderr, flush=True)


def _fail_once(error: DmoleError) -> None:
    """Print an error, in one of the processes of a command: it ends all of them."""
    if reports_error():
        fail(error)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _silence() -> None:
    """Let what this process prints go: the first process prints the same. Errors have their own way (see `fail`)."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stdout = nowhere
    if not os.environ.get("DMOLE_TRACEBACK"):
        sys.stderr = nowhere


def _open_streams() -> None:
    """Give closed streams a file, so that no other file gets their number, and let no character be impossible to print."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    # Not open for writing: a command that prints a result fails, and any other succeeds.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # of a stream that is no file, or another one than at the start
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _abandon_output() -> None:
    """Let what could not be written go: the interpreter would try again, and end with a message and a code of its own."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
