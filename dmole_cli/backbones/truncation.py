"""Truncation of training samples: the question is truncated from the left; images and answer stay complete.

The reference implementation cuts sequences at a maximum length on the right, which removes the answer first. Here only the
question is shortened, at its beginning, because the task and the expected format usually stand at its end.
"""

from __future__ import annotations

from dataclasses import replace

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.markers import with_markers_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError


def encode_truncated(backbone: Backbone, sample: Sample, *, max_length: int) -> Encoded:
    """Encode a sample with its answer in at most `max_length` tokens; 0 for no limit.

    Raises:
        DmoleError: template, images and answer alone exceed the limit, or an image cannot be opened.
    """
    encoded = whole = backbone.encode(sample, with_answer=True)
    text, question = backbone.inputs.question(sample), whole.instruction.tolist()
    remaining = len(question)
    # A cut within a word may change the tokenization of its rest, so the length is checked again.
    while max_length and len(encoded.tokens) > max_length:
        remaining -= len(encoded.tokens) - max_length
        if remaining < 1:
            least = len(whole.tokens) - len(question)
            raise DmoleError(
                f"sample {sample.sample_id} has {least} tokens of template, images and answer alone, over the "
                f"{max_length} of train.max_length",
                "raise --max-length (train.max_length), or remove the row; the answer is never cut",
            )
        # Byte-level tokens can be cut inside a character, which decodes to U+FFFD.
        rest = backbone.tokenizer.decode(question[len(question) - remaining :]).lstrip("\ufffd")
        shortened = replace(sample, question=with_markers_of(text, rest))
        encoded = replace(backbone.encode(shortened, with_answer=True), truncated=True)
    return encoded
