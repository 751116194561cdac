"""BLEU-4: the share of a caption's runs of up to four words that a reference has, too (scores one task's answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._bleu import bleu

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption alone between 0 and 1; `details` is not looked at. See `_bleu.py` for rule and source."""
    return bleu(predictions, references=references, words=4)[0]


def score_corpus(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> tuple[list[float], float]:
    """Score every caption as `score` does, and all of them together: the BLEU that papers print, not the mean."""
    return bleu(predictions, references=references, words=4)
