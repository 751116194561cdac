"""From a sample to a model's inputs: prompt, tokens, picture tensors, batches.

Samples are encoded one by one, so that how many rows of the vision encoder belong to a sample is known, and padded by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dmole_cli.backbones import image_layouts as layouts
from dmole_cli.backbones.families.base import Family
from dmole_cli.data.sample import Sample

IGNORED = -100
STAND_IN = "@@question@@"
BLOCK = 4096  # samples whose texts are tokenised at once, so that memory does not grow with the split
COMPOSED = (448, 448)  # pixels, of a picture whose size nobody knows before it is drawn
PICTURE_TOKENS = 256  # of any picture, where the processor does not say


@dataclass
class Encoded:
    """One sample ready to be batched.

    Attributes:
        tokens: prompt tokens, then the answer's where training [length].
        labels: the tokens with everything but the answer ignored [length]; None where there is no answer.
        vision: the processor's picture tensors; what their dimensions are differs from family to family (see layouts.py).
        instruction: tokens of the instruction alone, no template, no picture [length].
        kinds: what the processor says of every token beside, as `token_type_ids` [length].
        pictures: how many it has.
        shortened: whether its question lost its beginning to fit (see training/truncation.py).
    """

    tokens: torch.Tensor
    labels: torch.Tensor | None
    vision: dict[str, torch.Tensor]
    instruction: torch.Tensor
    kinds: dict[str, torch.Tensor] = field(default_factory=dict)
    pictures: int = 0
    shortened: bool = False

    def mapped(self, convert: Callable[[Any], Any]) -> Encoded:
        """The same with every tensor converted."""
        labels = None if self.labels is None else convert(self.labels)
        vision, kinds = ({k: convert(v) for k, v in part.items()} for part in (self.vision, self.kinds))
        tokens, instruction = convert(self.tokens), convert(self.instruction)
        return replace(self, tokens=tokens, labels=labels, vision=vision, instruction=instruction, kinds=kinds)


class Inputs:
    """Makes inputs with a processor.

    Args:
        processor: of the backbone.
        family: what is special about it.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        self.processor, self.tokenizer, self.family = processor, processor.tokenizer, family
        self._templates: dict[int, str | None] = {}

    @property
    def pad_token_id(self) -> int:
        """What fills a batch up; a tokenizer without such a token uses its end."""
        pad_token = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_token is None else pad_token

    def encode(self, sample: Sample, *, with_answer: bool) -> Encoded:
        """Tokens and picture tensors of one sample.

        Raises:
            DmoleError: a picture does not open (the sample's own error).
        """
        pictures = [opener() for opener in sample.images]
        text = self.prompt(sample.question, images=len(pictures))
        inputs = dict(self.family.prepare(self.processor, text, pictures))
        shape = inputs["input_ids"].shape
        tokens = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        kinds = {key: value[0] for key, value in inputs.items() if value.shape == shape}
        vision = {key: value for key, value in inputs.items() if key not in kinds}
        labels = None
        if with_answer:
            reply = self.reply(sample.answer)
            labels = torch.cat([torch.full_like(tokens, IGNORED), reply])
            tokens = torch.cat([tokens, reply])
            kind = self.family.ANSWER_KIND
            kinds = {key: torch.cat([value, value.new_full(reply.shape, kind)]) for key, value in kinds.items()}
        instruction = self.tokenizer(sample.question, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return Encoded(tokens, labels, vision, instruction, kinds, len(pictures))

    def reply(self, answer: str) -> torch.Tensor:
        """Tokens of an answer with the end that is learnt with it [length, at least 1]."""
        tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*tokens, self.tokenizer.eos_token_id])

    def prompt(self, question: str, *, images: int) -> str:
        """The text of one user turn.

        Rendering a template costs more than tokenising its result, so it is rendered once per number of pictures with a
        stand-in for the question; a template that does something to the text it is given is rendered every time.
        """
        if images not in self._templates:
            stencil = self._render(STAND_IN, images)
            literal = self._render("Is this  it?\n", images) == stencil.replace(STAND_IN, "Is this  it?\n")
            self._templates[images] = stencil if literal and stencil.count(STAND_IN) == 1 else None
        template = self._templates[images]
        return self._render(question, images) if template is None else template.replace(STAND_IN, question)

    def _render(self, text: str, images: int) -> str:
        return self.family.prompt(self.processor, text, images)

    def lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        """Tokens of question, pictures and, if wanted, answer of each sample, without the template: what makes batches uneven.

        No picture is decoded: of a picture file only the head is read, which holds its size, and the processor says how many
        tokens a picture of that size becomes, tiles and all. Pictures without a file count as COMPOSED ones; where the
        processor does not say, every picture counts as PICTURE_TOKENS.
        """
        blocks = (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))
        return [length for block in blocks for length in self._lengths(block, with_answer=with_answer)]

    def _lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        texts = [f"{sample.question} {sample.answer}" if with_answer else sample.question for sample in samples]
        words = [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        sizes = [picture_sizes(sample) for sample in samples]
        tokens = {number: self._picture_tokens(sizes, number) for number in {len(row) for row in sizes}}
        return [count + sum(tokens[len(row)][size] for size in row) for count, row in zip(words, sizes, strict=True)]

    def _picture_tokens(self, rows: Sequence[Sequence[tuple[int, int]]], pictures: int) -> dict[tuple[int, int], int]:
        """Tokens of a picture of each size (height, width) in those rows that hold so many pictures."""
        sizes = sorted({size for row in rows if len(row) == pictures for size in row})
        return dict(zip(sizes, self._count(sizes, pictures), strict=True))

    def _count(self, sizes: Sequence[tuple[int, int]], pictures: int) -> list[int]:
        try:
            return list(self.family.picture_tokens(self.processor, sizes, pictures))
        except Exception:  # not every processor can; nothing but the padding depends on it
            return [PICTURE_TOKENS] * len(sizes)

    def instruction_lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sample's instruction, as `Encoded.instruction` has them."""
        blocks = (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))
        texts = ([sample.question for sample in block] for block in blocks)
        tokens = (self.tokenizer(block, add_special_tokens=False)["input_ids"] for block in texts)
        return [len(row) for block in tokens for row in block]

    def collate(
        self, samples: Sequence[Encoded], *, left: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Batch encoded samples, on the CPU.

        Args:
            samples: at least one.
            left: pad on the left (generation) or on the right (training).

        Returns:
            The model's inputs, with `labels` where all samples have them, and modality -> sample index of each row.
        """
        inputs = {
            "input_ids": pad([s.tokens for s in samples], self.pad_token_id, left=left),
            "attention_mask": pad([torch.ones_like(s.tokens) for s in samples], 0, left=left),
        }
        for key in sorted({k for s in samples for k in s.kinds}):
            own = [s.kinds[key] if key in s.kinds else torch.zeros_like(s.tokens) for s in samples]
            inputs[key] = pad(own, 0, left=left)
        if all(s.labels is not None for s in samples):
            inputs["labels"] = pad([s.labels for s in samples if s.labels is not None], IGNORED, left=left)
        for key in sorted({k for s in samples for k in s.vision}):
            inputs[key] = layouts.joined([s.vision[key] for s in samples if key in s.vision])
        counts = [self.family.vision_rows(s.vision) if layouts.PIXELS in s.vision else 0 for s in samples]
        rows = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts))
        return inputs, {"vision": rows}


def pad(rows: Sequence[torch.Tensor], value: int, *, left: bool) -> torch.Tensor:
    """Stack one-dimensional tensors [length_i] to [rows, longest]."""
    longest = max(len(row) for row in rows)
    out = torch.full((len(rows), longest), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        if left:
            out[i, longest - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out


def picture_sizes(sample: Sample) -> list[tuple[int, int]]:
    """(height, width) of each picture, as the heads of its files say; where it has no files, COMPOSED."""
    if len(sample.files) != len(sample.images):
        return [COMPOSED] * len(sample.images)
    return [_picture_size(file) for file in sample.files]


def _picture_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return COMPOSED  # a broken file is named when its pixels are needed
