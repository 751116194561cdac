"""Samples as a backbone sees them, without its weights: tokens, tiles, the rendered prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import GRIDS, PIXELS
from dmole_cli.backbones.inputs import IGNORED, Inputs
from dmole_cli.backbones.loading import load_inputs
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

MANY = 4  # repetitions of a token from which they are written as a number
NEAR = 0.9  # share of the limit from which a length is measured instead of estimated


class SamplePreview:
    """What a backbone says of samples (see `tasks.check.Model`).

    Args:
        inputs: makes its inputs.
        limit: tokens that a training sample may have, 0 for none.
    """

    def __init__(self, inputs: Inputs, *, limit: int) -> None:
        self.inputs, self.limit = inputs, limit
        self._template: dict[int, int] = {}  # pictures of a sample -> tokens of the template around it

    @classmethod
    def of(cls, backbone: str, *, max_length: int = 0) -> SamplePreview:
        """Of a backbone as the user calls it; without a maximum length its own number of positions is the limit.

        Raises:
            DmoleError: there is no such backbone.
        """
        inputs, config = load_inputs(backbone)
        return cls(inputs, limit=max_length or getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer, without the end."""
        return [len(tokens) for tokens in self.inputs.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sample as it is trained on: estimated from its texts and the sizes of its pictures, measured
        where that comes near the limit."""
        estimates = self.inputs.lengths(samples, with_answer=True)
        return [self._length(sample, estimate) for sample, estimate in zip(samples, estimates, strict=True)]

    def _length(self, sample: Sample, estimate: int) -> int:
        pictures = len(sample.images)
        try:
            if pictures not in self._template:
                self._template[pictures] = self._measured(sample) - estimate
            whole = estimate + self._template[pictures]
            return self._measured(sample) if whole > NEAR * self.limit else whole
        except DmoleError:  # a picture that does not open is told elsewhere
            return estimate + self._template.get(pictures, 0)

    def _measured(self, sample: Sample) -> int:
        return len(self.inputs.encode(sample, with_answer=True).tokens)

    def look(self, sample: Sample) -> Mapping[str, Any]:
        """A sample as the model sees it: `prompt` and `answer` as text, a token that is repeated written once with its
        number; `tokens` and `answer_tokens`; `pictures`, their sizes; `tiles`, what the vision encoder makes of them.

        Raises:
            DmoleError: a picture does not open.
        """
        sizes = [opener().size for opener in sample.images]
        encoded = self.inputs.encode(sample, with_answer=True)
        assert encoded.labels is not None
        answer = encoded.labels != IGNORED
        tiles = 0
        if PIXELS in encoded.vision:
            # Of packed patches, every picture is one.
            packed = encoded.vision.get(GRIDS)
            tiles = self.inputs.family.vision_rows(encoded.vision) if packed is None else len(packed)
        return {
            "prompt": self._text(encoded.tokens[~answer]),
            "answer": self._text(encoded.tokens[answer]),
            "tokens": len(encoded.tokens),
            "answer_tokens": int(answer.sum()),
            "pictures": [{"width": width, "height": height} for width, height in sizes],
            "tiles": tiles,
        }

    def _text(self, tokens: torch.Tensor) -> str:
        """The text of tokens; of what is repeated, as pictures' tokens are, one and how often."""
        runs = [(token, len(list(run))) for token, run in groupby(tokens.tolist())]
        out, plain = "", list[int]()
        for token, count in runs:
            if count < MANY:
                plain += [token] * count
                continue
            out += self.inputs.tokenizer.decode(plain) + f"{self.inputs.tokenizer.decode([token])}×{count}"
            plain = []
        return out + self.inputs.tokenizer.decode(plain)
