"""What the stages see of a backbone: its sites, its inputs, its routing features, its answers.

Nothing here names a model family: the towers are asked of the model, the prompt is rendered by its chat template and the
pictures are prepared by its processor. What a family needs beyond that stands in its own file (see contract.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.backbones.families.base import family_of
from dmole_cli.backbones.image_layouts import PIXELS, View
from dmole_cli.backbones.inputs import IGNORED, Encoded, Inputs, pad
from dmole_cli.backbones.pooling import maxima
from dmole_cli.backbones.sites import tower_names
from dmole_cli.data.sample import Sample

__all__ = ["IGNORED", "Backbone", "Encoded", "pad"]


class Backbone:
    """A frozen image-text-to-text model with its processor.

    Args:
        precision: see the attribute.

    Attributes:
        name: what the user called it.
        fingerprint: sha256 over the files it was loaded from.
        model: the model, no parameter of which ever takes gradients unless a stage asks for it.
        precision: `bfloat16` to compute losses and answers of float32 weights under autocast; the weights stay what they
            are, and features are computed in their type, because features decide routes.
        processor: its processor.
        family: what is special about its family.
        inputs: makes its inputs of samples.
        counts: what it has computed so far: `feature_passes` and `generations` (samples), `decode_rows` and
            `decode_rows_needed`, `likelihood_passes` (samples) and `likelihood_rows` (answers to them), `training_tokens`
            and `training_tokens_needed`, `vision_rows` (pictures or tiles encoded for training).
    """

    def __init__(self, name: str, fingerprint: str, model: Any, processor: Any, *, precision: str = "float32") -> None:
        self.name, self.fingerprint, self.model, self.processor = name, fingerprint, model, processor
        self.precision = precision
        self.model.eval().requires_grad_(False)
        self.tokenizer = processor.tokenizer
        self.family = family_of(model.config.model_type)
        self.inputs = Inputs(processor, self.family)
        self.counts: Counter[str] = Counter()
        self._towers = tower_names(model)
        self.vision: Any = model.get_submodule(self._towers["vision"])
        self.language: Any = model.get_submodule(self._towers["language"])

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, shared ones once."""
        return self.model.num_parameters()  # which knows that quantised weights lie packed

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of what the linear modules answer in losses and answers; experts are cast to it."""
        return torch.bfloat16 if self._mixed else self.dtype

    @property
    def _mixed(self) -> bool:
        return self.precision == "bfloat16" and self.dtype == torch.float32

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied with so that its gradients are not too small for float16; 1 elsewhere."""
        return 2.0**12 if self.compute_dtype == torch.float16 else 1.0

    def autocast(self) -> AbstractContextManager[Any]:
        """What losses and answers are computed in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._mixed else nullcontext()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer: the one that is learnt with it, and those that the model was made to end its turns with."""
        own = self.model.generation_config.eos_token_id
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())]))

    def modality_of(self, site: str) -> str:
        """The tower that a module path lies in, `vision` or `language`."""
        return "vision" if site.startswith(self._towers["vision"] + ".") else "language"

    # ------------------------------------------------------------------------------------------------ inputs

    def encode(self, sample: Sample, *, with_answer: bool) -> Encoded:
        """Tokens and picture tensors of one sample (see `Inputs`)."""
        return self.inputs.encode(sample, with_answer=with_answer)

    def lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        """Tokens of question, pictures and, if wanted, answer of each sample, without the template (see `Inputs`)."""
        return self.inputs.lengths(samples, with_answer=with_answer)

    def instruction_lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sample's instruction, as `Encoded.instruction` has them."""
        return self.inputs.instruction_lengths(samples)

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
        inputs, rows = self.inputs.collate(samples, left=left)
        if "labels" in inputs:
            self.counts["training_tokens"] += inputs["labels"].numel()
            self.counts["training_tokens_needed"] += sum(len(s.tokens) for s in samples)
        sent = {key: value if key == "labels" else self._sent(value) for key, value in inputs.items()}
        return sent, {tower: self._sent(index) for tower, index in rows.items()}

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU on the device, numbers in the type of the weights; CUDA is not waited for."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype, non_blocking=self.device.type == "cuda")

    # ------------------------------------------------------------------------------------------------ outputs

    def answer_logits(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] at the positions that predict an answer token, and these tokens [answer tokens].

        Only those positions pass through the output head: the same values as among all logits, at a fraction of the memory.
        """
        labels = inputs["labels"]
        if PIXELS in inputs:
            self.counts["vision_rows"] += self.family.vision_rows(inputs)
        answers = labels[:, 1:]
        rows, columns = (answers != IGNORED).nonzero(as_tuple=True)
        wanted = self._sent(answers[rows, columns])
        places = self._sent(rows * labels.shape[1] + columns)

        def choose(head: torch.nn.Module, hidden: tuple[torch.Tensor]) -> torch.Tensor:
            return hidden[0].flatten(0, 1).index_select(0, places)

        # In front of the head and not in place of it: what a model does to its logits behind it, as capping, stays.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            with self.autocast():
                found = self.model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        finally:
            hook.remove()
        return found.logits, wanted

    def answer_loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Mean next-token cross-entropy over the answer tokens of a batch (scalar)."""
        logits, answers = self.answer_logits(inputs)
        return F.cross_entropy(logits.float(), answers)

    @torch.no_grad()
    def features(self, samples: Sequence[Encoded]) -> torch.Tensor:
        """Routing features [samples, width] on the CPU, L2-normalised (D-MoLE, arXiv 2506.11672, section 4.1).

        [ max over vision tokens of the vision encoder's last hidden state ; max over the instruction's tokens of the
        language model's last hidden state ]. Of a picture that becomes tiles, the whole of it is looked at and the tiles
        are not. Each sample's value depends on that sample alone, to the bit (see looks.py), and no system prompt, picture
        token or answer is in it. Samples whose instructions are of the same length (`instruction_lengths`) are the
        quickest together.
        """
        self.counts["feature_passes"] += len(samples)
        shapes = [(len(samples), part["width"]) for part in self.feature_layout()]
        pictures = [(i, view) for i, s in enumerate(samples) for view in self._whole_pictures(s)]
        words = [(i, {"input_ids": s.instruction}) for i, s in enumerate(samples)]
        parts = [
            maxima(pictures, self._look, shapes[0], device=self.device),
            maxima(words, self._read, shapes[1], device=self.device),
        ]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)

    def _whole_pictures(self, sample: Encoded) -> list[View]:
        if PIXELS not in sample.vision:
            return []
        return self.family.whole_pictures(sample.vision, sample.tokens, self.processor, sample.pictures)

    def _look(self, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        views = {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in views.items()}
        return self.family.last_hidden_state(self.vision, views)

    def _read(self, words: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.family.read(self.language, words["input_ids"])

    def feature_layout(self) -> list[dict[str, Any]]:
        """What a feature is made of, in order, with widths."""
        return [
            {"part": "vision encoder, last hidden state, max over tokens", "width": self.vision.config.hidden_size},
            {
                "part": "language model, last hidden state, max over instruction tokens",
                "width": self.language.config.hidden_size,
            },
        ]
