"""Samples as a backbone receives them, without its weights: tokens, tiles, the rendered prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import GRIDS
from dmole_cli.backbones.inputs import IGNORED, Inputs
from dmole_cli.backbones.loading import load_inputs
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

MIN_RUN = 4  # equal consecutive tokens from which a run is written as `token×count`
NEAR = 0.9  # share of the limit above which a length is measured instead of estimated


class SamplePreview:
    """Token counts and previews of samples (implements `data.checking.Model`).

    Args:
        inputs: the backbone's inputs.
        limit: maximum number of tokens of a training sample, 0 for none.
    """

    def __init__(self, inputs: Inputs, *, limit: int) -> None:
        self.inputs, self.limit = inputs, limit
        self._template_tokens: dict[int, int] = {}  # number of images -> tokens of the template around the sample

    @classmethod
    def of(cls, backbone: str, *, max_length: int = 0) -> SamplePreview:
        """Preview for a backbone by its name; without a maximum length, its number of positions is the limit.

        Raises:
            DmoleError: there is no such backbone.
        """
        inputs, config = load_inputs(backbone)
        return cls(inputs, limit=max_length or getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Number of tokens of each answer, without the end token."""
        return [len(tokens) for tokens in self.inputs.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Number of tokens of each training sample: estimated from texts and image sizes, measured near the limit."""
        estimates = self.inputs.lengths(samples, with_answer=True)
        return [self._length(sample, estimate) for sample, estimate in zip(samples, estimates, strict=True)]

    def _length(self, sample: Sample, estimate: int) -> int:
        images = len(sample.images)
        try:
            if images not in self._template_tokens:
                self._template_tokens[images] = self._measured(sample) - estimate
            total = estimate + self._template_tokens[images]
            return self._measured(sample) if total > NEAR * self.limit else total
        except DmoleError:  # an image that cannot be opened is reported elsewhere
            return estimate + self._template_tokens.get(images, 0)

    def _measured(self, sample: Sample) -> int:
        return len(self.inputs.encode(sample, with_answer=True).tokens)

    def refused(self, samples: Sequence[Sample]) -> list[str]:
        """The errors of samples whose texts the backbone cannot receive."""
        messages = []
        for sample in samples:
            try:
                self.inputs.check_texts(sample)
            except DmoleError as error:
                messages.append(error.message)
        return messages

    def look(self, sample: Sample) -> Mapping[str, Any]:
        """A sample as the model receives it, as JSON values.

        Returns:
            `prompt` and `answer`: decoded text, with runs of one token as `token×count`; `tokens` and `answer_tokens`:
            their numbers; `images`: width and height of each image; `tiles`: number of inputs of the vision encoder.

        Raises:
            DmoleError: an image cannot be opened.
        """
        sizes = [opener().size for opener in sample.images]
        encoded = self.inputs.encode(sample, with_answer=True)
        assert encoded.labels is not None
        answer = encoded.labels != IGNORED
        tiles = 0
        if self.inputs.family.pixels in encoded.vision:
            # With packed patches, every image counts as one.
            packed = encoded.vision.get(GRIDS)
            tiles = self.inputs.family.vision_rows(encoded.vision) if packed is None else len(packed)
        return {
            "prompt": self._text(encoded.tokens[~answer]),
            "answer": self._text(encoded.tokens[answer]),
            "tokens": len(encoded.tokens),
            "answer_tokens": int(answer.sum()),
            "images": [{"width": width, "height": height} for width, height in sizes],
            "tiles": tiles,
        }

    def _text(self, tokens: torch.Tensor) -> str:
        """Decoded tokens [length]; a run of one token, such as image tokens, becomes `token×count`."""
        decode = self.inputs.tokenizer.decode
        values, counts = torch.unique_consecutive(tokens, return_counts=True)
        text, plain = "", list[int]()
        for token, count in zip(values.tolist(), counts.tolist(), strict=True):
            if count < MIN_RUN:
                plain += [token] * count
                continue
            text += decode(plain) + f"{decode([token])}×{count}"
            plain = []
        return text + decode(plain)
