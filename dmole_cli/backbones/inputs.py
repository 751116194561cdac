"""Model inputs from samples: prompts, tokens, image tensors, batches.

Samples are encoded one by one, because the number of vision rows per sample must be known; `collate` pads them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.prompts import Prompts
from dmole_cli.data import markers
from dmole_cli.data.images import shown_size
from dmole_cli.data.sample import Picked, Sample
from dmole_cli.errors import DmoleError

IGNORED = -100
HINT = "change or remove the record"
CHUNK = 4096  # samples tokenized at once, so that memory does not grow with the split
DEFAULT_SIZE = (448, 448)  # height and width in pixels, assumed for images without a readable file
DEFAULT_IMAGE_TOKENS = 256  # tokens per image, assumed where the processor cannot count them


class Inputs:
    """Encodes and collates samples with a backbone's processor.

    Args:
        processor: the backbone's processor.
        family: family-specific handling of its inputs.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        self.processor, self.tokenizer, self.family = processor, processor.tokenizer, family
        self.prompts = Prompts(processor, family)

    @property
    def pad_token_id(self) -> int:
        """The padding token; the end-of-sequence token for tokenizers without one."""
        pad_token = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_token is None else pad_token

    def encode(self, sample: Sample, *, with_answer: bool) -> Encoded:
        """Tokens and image tensors of one sample.

        Raises:
            DmoleError: an image cannot be opened, the question has another number of image markers, a text contains an image
                token of the backbone, or the processor returns its pixels under an unknown name.
        """
        question = self.question(sample)
        images = [opener() for opener in sample.images]
        text = self.prompts.render(question, images=len(images))
        inputs = dict(self.family.prepare(text, images))
        shape = inputs["input_ids"].shape
        tokens = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        token_types = {key: value[0] for key, value in inputs.items() if value.shape == shape}
        vision = {key: _full_precision(value) for key, value in inputs.items() if key not in token_types}
        if images and self.family.pixels not in vision:
            raise self._unknown_pixels(vision)
        labels = None
        if with_answer:
            self._check_answer(sample)
            answer = self.answer_tokens(sample.answer)
            labels = torch.cat([torch.full_like(tokens, IGNORED), answer])
            tokens = torch.cat([tokens, answer])
            own = self.family.answer_token_type
            token_types = {key: torch.cat([v, v.new_full(answer.shape, own)]) for key, v in token_types.items()}
        plain = markers.without(question)
        instruction = self.tokenizer(plain, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return Encoded(tokens, labels, vision, instruction, token_types, len(images))

    def _unknown_pixels(self, vision: Mapping[str, torch.Tensor]) -> DmoleError:
        names = ", ".join(sorted(vision)) or "no tensor"
        return DmoleError(
            f"{type(self.processor).__name__} returns images as {names} and not as {self.family.pixels}: the model cannot be a "
            "backbone, because it is unknown how the rows of its vision encoder follow from them",
            "pass another --backbone, or add a file for the family to dmole_cli/backbones/families/ (docs/backbones.md)",
        )

    def answer_tokens(self, answer: str) -> torch.Tensor:
        """Tokens of an answer and the end-of-sequence token [length, at least 1].

        Raises:
            DmoleError: the answer contains an image token of the backbone.
        """
        self.prompts.refuse_image_tokens(answer, f"the possible answer {answer!r}", hint=HINT)
        tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*tokens, self.tokenizer.eos_token_id])

    def question(self, sample: Sample) -> str:
        """The question of a sample; each `<image>` in it is the place of the next image (see data/markers.py).

        Raises:
            DmoleError: it has another number of image markers than images, or contains an image token of the backbone.
        """
        try:
            question = markers.placed(sample.question, len(sample.images))
        except ValueError as error:
            raise DmoleError(f"sample {sample.sample_id}: {error}", HINT) from error
        self.prompts.refuse_image_tokens(
            markers.without(question), f"the question of sample {sample.sample_id}", hint=HINT
        )
        return question

    def check_texts(self, sample: Sample) -> None:
        """Raise the error that `encode` raises for the texts of a sample, if any."""
        self.question(sample)
        self._check_answer(sample)

    def _check_answer(self, sample: Sample) -> None:
        self.prompts.refuse_image_tokens(sample.answer, f"the answer of sample {sample.sample_id}", hint=HINT)

    def lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        """Number of tokens of question, images and, if wanted, answer of each sample, without the template.

        Images are not decoded: their sizes are read from the file headers, and the processor counts the tokens of an image
        of that size, tiles included. Images without a file count as `DEFAULT_SIZE`; where the processor cannot count,
        every image counts as `DEFAULT_IMAGE_TOKENS`.
        """
        chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
        return [length for chunk in chunks for length in self._lengths(chunk, with_answer=with_answer)]

    def _lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        texts = [markers.without(sample.question) + (f" {sample.answer}" if with_answer else "") for sample in samples]
        counts = [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        read = cache(_image_size)  # samples often share images
        sizes = [image_sizes(sample, read=read) for sample in samples]
        tokens = {number: self._image_tokens(sizes, number) for number in {len(row) for row in sizes}}
        return [count + sum(tokens[len(row)][size] for size in row) for count, row in zip(counts, sizes, strict=True)]

    def _image_tokens(self, rows: Sequence[Sequence[tuple[int, int]]], images: int) -> dict[tuple[int, int], int]:
        """Number of tokens of each image size (height, width) that occurs in samples with `images` images."""
        sizes = sorted({size for row in rows if len(row) == images for size in row})
        try:
            counts = list(self.family.image_tokens(sizes, images=images))
        # Some processors do not count, or refuse a size, which is reported when the sample is encoded.
        except (AttributeError, RuntimeError, ValueError):
            counts = [DEFAULT_IMAGE_TOKENS] * len(sizes)
        return dict(zip(sizes, counts, strict=True))

    def instruction_lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Length of each sample's `Encoded.instruction`."""
        chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
        texts = ([markers.without(sample.question) for sample in chunk] for chunk in chunks)
        tokens = (self.tokenizer(chunk, add_special_tokens=False)["input_ids"] for chunk in texts)
        return [len(row) for chunk in tokens for row in chunk]

    def collate(
        self, samples: Sequence[Encoded], *, left: bool, few_lengths: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Batch encoded samples, on the CPU.

        Args:
            samples: at least one.
            left: pad on the left (generation) or on the right (training).
            few_lengths: pad to a `shared_length`, so that many batches have the same shape.

        Returns:
            The model's inputs, with `labels` if all samples have them, and modality -> sample index of each row.
        """
        longest = max(len(s.tokens) for s in samples)
        spare = shared_length(longest) - longest if few_lengths else 0

        def padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
            return F.pad(pad(rows, value, left=left), (spare, 0) if left else (0, spare), value=value)

        inputs = {
            "input_ids": padded([s.tokens for s in samples], self.pad_token_id),
            "attention_mask": padded([torch.ones_like(s.tokens) for s in samples], 0),
        }
        for key in sorted({k for s in samples for k in s.token_types}):
            own = [s.token_types[key] if key in s.token_types else torch.zeros_like(s.tokens) for s in samples]
            inputs[key] = padded(own, 0)
        if all(s.labels is not None for s in samples):
            inputs["labels"] = padded([s.labels for s in samples if s.labels is not None], IGNORED)
        inputs |= self.family.join(samples, length=inputs["input_ids"].shape[1], left=left)
        return inputs, {"vision": self.family.row_owners(samples)}


def shared_length(length: int) -> int:
    """The next of a few lengths: below 1,024 tokens the multiples of 16, below 2,048 those of 32, and so on.

    At most a 32nd is added to a row of 512 tokens or more.
    """
    step = max(16, 2 ** max(0, length.bit_length() - 6))
    return -(-length // step) * step


def pad(rows: Sequence[torch.Tensor], value: int, *, left: bool) -> torch.Tensor:
    """Stack one-dimensional tensors [length_i] to [rows, longest]."""
    side = "left" if left else "right"
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Floating-point values in float32, whatever the processor chose; they take the weights' type on the device."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _image_size(file: Path) -> tuple[int, int]:
    try:
        width, height = shown_size(file)
    except DmoleError:
        return DEFAULT_SIZE  # reported when the pixels are needed
    return height, width


def image_sizes(sample: Sample, *, read: Callable[[Path], tuple[int, int]] = _image_size) -> list[tuple[int, int]]:
    """(height, width) of each image, read from the file headers by `read`; `DEFAULT_SIZE` without files."""
    if len(sample.files) != len(sample.images):
        return [DEFAULT_SIZE] * len(sample.images)
    return [read(file) for file in sample.files]


class Lengths:
    """Lengths of samples as `Inputs.lengths` counts them, counted when they are asked for and then held, in 4 bytes each.

    Args:
        inputs: counts them.
        samples: of a split.
        with_answer: whether the answers count, too.
    """

    def __init__(self, inputs: Inputs, samples: Sequence[Sample], *, with_answer: bool) -> None:
        self._inputs, self._samples, self._with_answer = inputs, samples, with_answer
        self._known = array("i", [-1]) * len(samples)

    def of(self, rows: Sequence[int]) -> list[int]:
        """The lengths of the samples at these indices."""
        if missing := sorted({row for row in rows if self._known[row] < 0}):
            found = self._inputs.lengths(Picked([self._samples], missing), with_answer=self._with_answer)
            for row, length in zip(missing, found, strict=True):
                self._known[row] = length
        return [self._known[row] for row in rows]
