"""BLEU-1: the precision of single words, with a brevity penalty. Source and details: `_bleu.py`."""

from __future__ import annotations

from functools import partial

from dmole_cli.metrics._bleu import bleu

score_corpus = partial(bleu, order=1)
