"""BLEU-2: the precision of 1- to 2-grams, with a brevity penalty. Source and details: `_bleu.py`."""

from __future__ import annotations

from functools import partial

from dmole_cli.metrics._bleu import bleu

score_corpus = partial(bleu, order=2)
