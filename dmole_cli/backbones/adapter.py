"""What the stages see of a backbone: its sites, its inputs, its routing features, its answers.

Nothing here names a model family: the towers are asked of the model, the prompt is rendered by its chat template and the
pictures are prepared by its processor. Samples are encoded one by one, so that how many rows of the vision tower belong
to a sample is known, and padded by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from dmole_cli.artifacts.likelihood import Likelihoods
from dmole_cli.backbones.candidates import Narrow, scoring
from dmole_cli.backbones.greedy import Leave, dropping_finished_rows
from dmole_cli.backbones.sites import tower_names
from dmole_cli.sample import Sample

IGNORED = -100
STAND_IN = "@@question@@"
COMPOSED = (448, 448)  # pixels, of a picture whose size nobody knows before it is drawn
PICTURE_TOKENS = 256  # of any picture, where the processor does not say
SAME_ROWS = 16  # pictures, or instructions, that the towers see at once for features: never more, never fewer


@dataclass
class Encoded:
    """One sample ready to be batched.

    Attributes:
        tokens: prompt tokens, then the answer's where training [length].
        labels: the tokens with everything but the answer ignored [length]; None where there is no answer.
        vision: the processor's picture tensors, first dimension = rows of the vision tower.
        instruction: tokens of the instruction alone, no template, no picture [length].
    """

    tokens: torch.Tensor
    labels: torch.Tensor | None
    vision: dict[str, torch.Tensor]
    instruction: torch.Tensor


class Backbone:
    """A frozen image-text-to-text model with its processor.

    Args:
        precision: see the attribute.

    Attributes:
        name: what the user called it.
        fingerprint: sha256 over the files it was loaded from.
        model: the model, no parameter of which ever takes gradients unless a stage asks for it.
        precision: `bfloat16` to compute losses and answers under autocast; the weights stay what they are, and features are
            computed in their type, because features decide routes.
        processor: its processor.
        counts: what it has computed so far: `feature_passes` and `generations` (samples), `decode_rows` and
            `decode_rows_needed`, `likelihood_passes` (samples) and `likelihood_rows` (answers to them), `training_tokens`
            and `training_tokens_needed`, `vision_rows` (pictures or tiles encoded for training).
    """

    def __init__(self, name: str, fingerprint: str, model: Any, processor: Any, *, precision: str = "float32") -> None:
        self.name, self.fingerprint, self.model, self.processor = name, fingerprint, model, processor
        self.precision = precision
        self.model.eval().requires_grad_(False)
        self.tokenizer = processor.tokenizer
        self.counts: Counter[str] = Counter()
        self._templates: dict[int, str | None] = {}
        self._towers = tower_names(model)
        self.vision: Any = model.get_submodule(self._towers["vision"])
        self.language: Any = model.get_submodule(self._towers["language"])

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, shared ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of what the linear modules answer in losses and answers; experts are cast to it."""
        return torch.bfloat16 if self.precision == "bfloat16" else self.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """What losses and answers are computed in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def modality_of(self, site: str) -> str:
        """The tower that a module path lies in, `vision` or `language`."""
        return "vision" if site.startswith(self._towers["vision"] + ".") else "language"

    # ------------------------------------------------------------------------------------------------ inputs

    def encode(self, sample: Sample, *, with_answer: bool) -> Encoded:
        """Tokens and picture tensors of one sample.

        Raises:
            DmoleError: a picture does not open (the sample's own error).
        """
        pictures = [opener() for opener in sample.images]
        prompt = self.prompt(sample.question, images=len(pictures))
        arguments = {"images": pictures} if pictures else {}
        inputs = self.processor(text=[prompt], return_tensors="pt", add_special_tokens=False, **arguments)
        tokens = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        labels = None
        if with_answer:
            reply = self.reply(sample.answer)
            labels = torch.cat([torch.full_like(tokens, IGNORED), reply])
            tokens = torch.cat([tokens, reply])
        instruction = self.tokenizer(sample.question, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return Encoded(tokens, labels, dict(inputs), instruction)

    def reply(self, answer: str) -> torch.Tensor:
        """Tokens of an answer with the end that is learnt with it [length, at least 1]."""
        tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*tokens, self.tokenizer.eos_token_id])

    def prompt(self, question: str, *, images: int) -> str:
        """The chat template's text for one user turn.

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
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        """Tokens of question, pictures and, if wanted, answer of each sample, without the template: what makes batches uneven.

        No picture is decoded: of a picture file only the head is read, which holds its size, and the processor says how many
        tokens a picture of that size becomes, tiles and all. Pictures without a file count as COMPOSED ones; where the
        processor does not say, every picture counts as PICTURE_TOKENS.
        """
        texts = [f"{sample.question} {sample.answer}" if with_answer else sample.question for sample in samples]
        words = [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        sizes = [picture_sizes(sample) for sample in samples]
        distinct = sorted({size for row in sizes for size in row})
        tokens = dict(zip(distinct, self._picture_tokens(distinct), strict=True))
        return [count + sum(tokens[size] for size in row) for count, row in zip(words, sizes, strict=True)]

    def _picture_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of a picture of each of these sizes (height, width)."""
        try:
            return list(self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"])
        except Exception:  # not every processor can; nothing but the padding depends on it
            return [PICTURE_TOKENS] * len(sizes)

    def collate(
        self, samples: Sequence[Encoded], *, left: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Batch encoded samples.

        Args:
            samples: at least one.
            left: pad on the left (generation) or on the right (training).

        Returns:
            The model's inputs (with `labels` where all samples have them, which stay on the CPU: what they select is known
            there without waiting for the device), and modality -> sample index of each row.
        """
        inputs = {
            "input_ids": pad([s.tokens for s in samples], self.tokenizer.pad_token_id, left=left),
            "attention_mask": pad([torch.ones_like(s.tokens) for s in samples], 0, left=left),
        }
        if all(s.labels is not None for s in samples):
            inputs["labels"] = pad([s.labels for s in samples if s.labels is not None], IGNORED, left=left)
            self.counts["training_tokens"] += inputs["labels"].numel()
            self.counts["training_tokens_needed"] += sum(len(s.tokens) for s in samples)
        for key in sorted({k for s in samples for k in s.vision}):
            inputs[key] = torch.cat([s.vision[key] for s in samples if key in s.vision])
        counts = torch.tensor([len(s.vision["pixel_values"]) if "pixel_values" in s.vision else 0 for s in samples])
        rows = {"vision": self._sent(torch.repeat_interleave(torch.arange(len(samples)), counts))}
        return {k: v if k == "labels" else self._sent(v) for k, v in inputs.items()}, rows

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU on the device; CUDA is not waited for."""
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    # ------------------------------------------------------------------------------------------------ outputs

    def answer_logits(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] at the positions that predict an answer token, and these tokens [answer tokens].

        Only those positions pass through the output head: the same values as among all logits, at a fraction of the memory.
        """
        labels = inputs["labels"]
        self.counts["vision_rows"] += len(inputs.get("pixel_values", ()))
        answers = labels[:, 1:]
        rows, columns = (answers != IGNORED).nonzero(as_tuple=True)
        wanted = self._sent(answers[rows, columns])
        places = self._sent(rows * labels.shape[1] + columns)
        with self.autocast():
            hidden = self.model.model(
                **{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False
            ).last_hidden_state
            return self.model.get_output_embeddings()(hidden.flatten(0, 1).index_select(0, places)), wanted

    def answer_loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Mean next-token cross-entropy over the answer tokens of a batch (scalar)."""
        logits, answers = self.answer_logits(inputs)
        return F.cross_entropy(logits.float(), answers)

    @torch.no_grad()
    def features(self, samples: Sequence[Encoded]) -> torch.Tensor:
        """Routing features [samples, width] on the CPU, L2-normalised (D-MoLE, arXiv 2506.11672, section 4.1).

        [ max over vision tokens of the vision encoder's last hidden state ; max over the instruction's tokens of the
        language model's last hidden state ]. Each sample's value depends on that sample alone, to the bit (see
        `in_equal_shapes`), and no system prompt, picture token or answer is in it. Samples whose instructions are of the
        same length (`instruction_lengths`) are the quickest together.
        """
        self.counts["feature_passes"] += len(samples)
        shapes = [(len(samples), part["width"]) for part in self.feature_layout()]
        pictures = [(i, picture) for i, s in enumerate(samples) for picture in s.vision.get("pixel_values", ())]
        words = [(i, s.instruction) for i, s in enumerate(samples)]
        parts = [
            self._maxima(pictures, lambda rows: self.vision(pixel_values=rows.to(self.dtype)), shapes[0]),
            self._maxima(words, lambda rows: self.language(input_ids=rows, use_cache=False), shapes[1]),
        ]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)

    def _maxima(
        self, items: Sequence[tuple[int, torch.Tensor]], tower: Callable[[torch.Tensor], Any], shape: tuple[int, int]
    ) -> torch.Tensor:
        """Maxima over all tokens of a tower's last hidden state [samples, width] (`shape`); zeros where there are none.

        Args:
            items: (sample index, what the tower takes of it), as many as a sample has.
            tower: takes rows stacked.
            shape: of the result.
        """
        owners, tops = [], [torch.empty(0, shape[1], device=self.device)]
        for indices, rows in in_equal_shapes(items):
            states = tower(rows.to(self.device)).last_hidden_state[: len(indices)]  # [items, tokens, width]
            owners += indices
            tops.append(states.float().amax(dim=1))
        places = torch.tensor(owners, dtype=torch.long)[:, None].expand(-1, shape[1])
        return torch.zeros(shape).scatter_reduce(0, places, torch.cat(tops).cpu(), "amax", include_self=False)

    def instruction_lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sample's instruction, as `Encoded.instruction` has them."""
        texts = [sample.question for sample in samples]
        return [len(tokens) for tokens in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def feature_layout(self) -> list[dict[str, Any]]:
        """What a feature is made of, in order, with widths."""
        return [
            {"part": "vision encoder, last hidden state, max over tokens", "width": self.vision.config.hidden_size},
            {
                "part": "language model, last hidden state, max over instruction tokens",
                "width": self.language.config.hidden_size,
            },
        ]

    @torch.no_grad()
    def generate(
        self, inputs: dict[str, torch.Tensor], *, max_new_tokens: int, min_new_tokens: int, leave: Leave | None = None
    ) -> list[str]:
        """Greedy answers of a left-padded batch, without special tokens and outer white space.

        Args:
            inputs: of `collate`.
            max_new_tokens: at most.
            min_new_tokens: at least, 0 for none.
            leave: told which rows go on whenever some end and leave the batch (`RoutedExperts.keep`).
        """
        self.counts["generations"] += len(inputs["input_ids"])
        with self.autocast():
            new = self.model.generate(
                **{k: v for k, v in inputs.items() if k != "labels"},
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens or None,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                custom_generate=dropping_finished_rows(leave, self.counts),
            )
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    @torch.no_grad()
    def likelihoods(
        self,
        inputs: dict[str, torch.Tensor],
        *,
        answers: Sequence[Sequence[str]],
        rows: int,
        narrow: Narrow | None = None,
    ) -> list[Likelihoods]:
        """How likely each sample of a left-padded batch finds each of its answers, the end of the answer included.

        Args:
            inputs: of `collate`.
            answers: to each sample, at least one to some sample.
            rows: how many answers pass through the model at once.
            narrow: makes what else knows the batch follow while answers pass (`RoutedExperts.narrowed`).
        """
        replies = [[self.reply(answer) for answer in own] for own in answers]
        self.counts["likelihood_passes"] += len(replies)
        self.counts["likelihood_rows"] += sum(len(own) for own in replies)
        with self.autocast():
            sums = self.model.generate(
                **{k: v for k, v in inputs.items() if k != "labels"},
                max_new_tokens=max(len(reply) for own in replies for reply in own),
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                custom_generate=scoring(replies, rows=rows, narrow=narrow),
            )
        return [Likelihoods(own, [len(reply) for reply in said]) for own, said in zip(sums, replies, strict=True)]


def in_equal_shapes(items: Sequence[tuple[int, torch.Tensor]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Stack tensors of the same shape, always SAME_ROWS of them: (indices, rows [SAME_ROWS, ...]).

    Padding to the longest of a batch, and even the number of rows, choose how a product is added up, and with that its last
    bits. With nothing padded and the number of rows fixed, what comes out for an item does not depend on its company.
    Groups that are not full are filled up with copies of their first item, behind the others.
    """
    alike: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
    for index, tensor in items:
        alike.setdefault(tensor.shape, []).append((index, tensor))
    for group in alike.values():
        for start in range(0, len(group), SAME_ROWS):
            indices, rows = zip(*group[start : start + SAME_ROWS], strict=True)
            yield list(indices), torch.stack([*rows, *rows[:1] * (SAME_ROWS - len(rows))])


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
