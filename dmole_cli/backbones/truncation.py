"""Training samples that are longer than they may be lose the beginning of their question; pictures and answer stay whole.

The method's reference cuts every sequence at a maximum length, wherever that falls; an answer at its end, or a picture's
tokens, go first. Here the question alone becomes shorter, from its front, because what is asked and in which form stands at
its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError


def fitted(backbone: Backbone, sample: Sample, *, max_length: int) -> Encoded:
    """Encode a sample with its answer in at most `max_length` tokens; 0 sets no limit.

    Raises:
        DmoleError: template, pictures and answer alone are longer; or a picture does not open.
    """
    encoded = whole = backbone.encode(sample, with_answer=True)
    question = whole.instruction.tolist()
    kept = len(question)
    # A cut through a word may make other tokens of its rest, so the length is looked at again.
    while max_length and len(encoded.tokens) > max_length:
        kept -= len(encoded.tokens) - max_length
        if kept < 1:
            least = len(whole.tokens) - len(question)
            raise DmoleError(
                f"sample {sample.sample_id} has {least} tokens of template, pictures and answer alone, over the "
                f"{max_length} of train.max_length",
                "raise --max-length (train.max_length), or remove the row; the answer is never cut",
            )
        # Half a letter at the cut, which byte-level tokens can leave, is decoded to this mark.
        rest = backbone.tokenizer.decode(question[len(question) - kept :]).lstrip("\ufffd")
        encoded = replace(backbone.encode(replace(sample, question=rest), with_answer=True), shortened=True)
    return encoded


def watched(
    order: Sequence[Sequence[int]], batches: Iterable[list[Encoded]], *, shortened: set[int]
) -> Iterator[list[Encoded]]:
    """The batches as they are; the rows of `order` whose samples were shortened join the set while they pass."""
    for rows, batch in zip(order, batches, strict=True):
        shortened.update(row for row, sample in zip(rows, batch, strict=True) if sample.shortened)
        yield batch
