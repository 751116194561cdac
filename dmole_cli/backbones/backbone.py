"""The frozen backbone: its inputs, losses, answers and routing features, independent of the model family.

The model names its own towers, its chat template renders prompts, and its processor prepares images. What a family needs
beyond that is in its own file (see families/base.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from dmole_cli.backbones.device import device_of, is_divided
from dmole_cli.backbones.families.base import Family, family_class
from dmole_cli.backbones.image_layouts import GRIDS, View
from dmole_cli.backbones.inputs import IGNORED, Encoded, Inputs, pad
from dmole_cli.backbones.pooling import BATCH_SIZE, is_causal, max_pooled, max_pooled_instructions
from dmole_cli.backbones.sites import block_stacks, modality_of, tower_names
from dmole_cli.backbones.vision_states import encoding_model, feature_arguments, image_states, takes_images_alone
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, first_line

# Tokens times parameters of the largest forward and backward pass that takes longer to launch than to compute: measured with a
# model of 2.2 billion parameters, 24 + 24 blocks, on an H200.
LAUNCH_BOUND = 4096 * 2.2e9

__all__ = ["IGNORED", "Backbone", "Encoded", "pad"]


class Backbone:
    """A frozen image-text-to-text model with its processor.

    Args:
        name: the backbone as the user named it.
        fingerprint: sha256 over the files it was loaded from, and how they were loaded.
        model: image-text-to-text model of transformers; it is frozen and put into evaluation mode.
        processor: its processor.
        precision: `bfloat16` computes losses and answers of float32 weights under autocast. The weights stay float32, and
            routing features are computed in the weights' type.

    Attributes:
        tokenizer: the processor's tokenizer.
        family: family-specific handling.
        inputs: makes model inputs from samples.
        vision: the vision encoder.
        language: the language model, without its output head.
        counts: work done so far: `feature_passes` and `generations` (samples), `decode_rows` and `decode_rows_needed`,
            `likelihood_passes` (samples) and `likelihood_rows` (answers), `training_tokens` and `training_tokens_needed`,
            `vision_rows` (images or tiles encoded for training).
    """

    def __init__(self, name: str, fingerprint: str, model: Any, processor: Any, *, precision: str = "float32") -> None:
        self.name, self.fingerprint, self.model, self.processor = name, fingerprint, model, processor
        self.precision = precision
        self.model.eval().requires_grad_(False)
        self.tokenizer = processor.tokenizer
        self.family = family_class(model.config.model_type)(processor)
        self.family.adapt(model)
        self.inputs = Inputs(processor, self.family)
        self.counts: Counter[str] = Counter()
        towers = tower_names(model)
        self.vision: Any = model.get_submodule(towers["vision"])
        self.language: Any = model.get_submodule(towers["language"])
        self._vision_stacks = block_stacks(model)["vision"]

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; shared ones count once."""
        return self.model.num_parameters()  # handles packed quantised weights

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def compute_dtype(self) -> torch.dtype:
        """Output type of the linear modules in losses and answers; experts are cast to it."""
        return torch.bfloat16 if self._mixed else self.dtype

    @property
    def _mixed(self) -> bool:
        return self.precision == "bfloat16" and self.dtype == torch.float32

    @property
    def loss_scale(self) -> float:
        """Factor for the loss that keeps float16 gradients from underflowing; 1 for other types."""
        return 2.0**12 if self.compute_dtype == torch.float16 else 1.0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which losses and answers are computed."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._mixed else nullcontext()

    @property
    def device(self) -> torch.device:
        """Device of the weights; of a model that is spread over devices, that of its inputs and outputs."""
        return device_of(self.model.get_input_embeddings()) if is_divided(self.model) else device_of(self.model)

    def device_of(self, site: str) -> torch.device:
        """Device on which the module of a path computes, and the tensors of its experts lie."""
        return device_of(self.model.get_submodule(site)) if is_divided(self.model) else self.device

    @property
    def end_tokens(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, which is trained, and those of the model's generation config."""
        own = self.model.generation_config.eos_token_id
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())]))

    def modality_of(self, site: str) -> str:
        """The tower of a module path, `vision` or `language`."""
        return modality_of(site, self._vision_stacks)

    def launch_bound(self, tokens: int) -> bool:
        """Whether a GPU computes a forward and backward pass in less time than the processor takes to launch its kernels.

        Args:
            tokens: of the batch, padding included.
        """
        return tokens <= self._launch_bound_tokens

    @cached_property
    def _launch_bound_tokens(self) -> float:
        return LAUNCH_BOUND / self.parameters

    # ------------------------------------------------------------------------------------------------ inputs

    def encode(self, sample: Sample, *, with_answer: bool) -> Encoded:
        """Tokens and image tensors of one sample (see `Inputs`).

        Images have the type of the weights: the model computes with it anyway, and half of the bytes pass between processes.
        """
        encoded, dtype = self.inputs.encode(sample, with_answer=with_answer), self.dtype
        vision = {key: value.to(dtype) if value.is_floating_point() else value for key, value in encoded.vision.items()}
        return replace(encoded, vision=vision)

    def lengths(self, samples: Sequence[Sample], *, with_answer: bool) -> list[int]:
        """Number of tokens of each sample without the template (see `Inputs`)."""
        return self.inputs.lengths(samples, with_answer=with_answer)

    def instruction_lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Length of each sample's `Encoded.instruction`."""
        return self.inputs.instruction_lengths(samples)

    def collate(
        self, samples: Sequence[Encoded], *, left: bool, few_lengths: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Batch encoded samples on the backbone's device; arguments and results are those of `Inputs.collate`.

        `labels` stay on the CPU, so that the answer positions are known without a device synchronisation. Batches that are not
        `launch_bound` have the length of their longest sample.
        """
        few_lengths = few_lengths and self.launch_bound(len(samples) * max(len(s.tokens) for s in samples))
        inputs, rows = self.inputs.collate(samples, left=left, few_lengths=few_lengths)
        if "labels" in inputs:
            self.counts["training_tokens"] += inputs["labels"].numel()
            self.counts["training_tokens_needed"] += sum(len(s.tokens) for s in samples)
        moved = {key: value if key == "labels" else self.to_device(value) for key, value in inputs.items()}
        return moved, {tower: self.to_device(index) for tower, index in rows.items()}

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a CPU tensor to the device without synchronising; floating-point values take the weights' type."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        if self.device.type != "cuda":
            return tensor.to(self.device, dtype)
        # Only from pinned memory does a copy return before it is done; it must have the type already.
        return tensor.to(dtype).pin_memory().to(self.device, non_blocking=True)

    # ------------------------------------------------------------------------------------------------ outputs

    def answer_logits(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] at the positions that predict an answer token, and these tokens [answer tokens].

        Only those positions pass through the output head: the same values as among all logits, with less memory.
        """
        positions, targets = self.answer_positions(inputs["labels"])
        logits = self.logits_at(inputs, self.to_device(positions))
        return logits, self.to_device(targets)

    def answer_positions(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the tokens of a batch predict an answer token [answer tokens], counted over all rows, and these tokens.

        Args:
            labels: of the batch [samples, length], on the CPU.
        """
        answers = labels[:, 1:]
        rows, columns = (answers != IGNORED).nonzero(as_tuple=True)
        return rows * labels.shape[1] + columns, answers[rows, columns]

    def logits_at(self, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Logits [positions, vocabulary] at some positions, counted over all rows of the batch, on the device."""
        if self.family.pixels in inputs:
            self.counts["vision_rows"] += self.family.vision_rows(inputs)

        def select(head: torch.nn.Module, hidden: tuple[torch.Tensor]) -> torch.Tensor:
            states = hidden[0].flatten(0, 1)
            return states.index_select(0, positions.to(states.device))

        # A hook before the head, and not a replacement of it, keeps what the model does to its logits, such as soft-capping.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            with self.autocast():
                outputs = self.model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        except (TypeError, ValueError) as error:
            raise self._incapable("compute a loss", error) from error
        finally:
            hook.remove()
        return outputs.logits

    def answer_loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Mean next-token cross-entropy over the answer tokens of a batch (scalar)."""
        logits, answers = self.answer_logits(inputs)
        return F.cross_entropy(logits.float(), answers)

    @torch.no_grad()
    def features(self, samples: Sequence[Encoded], *, exact: bool = True) -> torch.Tensor:
        """Routing features [samples, width] on the CPU, L2-normalised (D-MoLE, arXiv 2506.11672, section 4.1).

        [ max over vision tokens of the vision encoder's last hidden state ; max over the instruction's tokens of the
        language model's last hidden state ]. An image that is split into tiles enters as a whole, without its tiles. System
        prompt, image tokens and answer do not enter. A sample's feature is bit-identical in every batch (see pooling.py).
        Batches of samples with equal `instruction_lengths` are the fastest.

        Args:
            samples: encoded.
            exact: compute every forward pass with the same number of rows, on which the last bits depend; without it, a few
                samples take a fraction of the time, and their features agree to rounding.
        """
        self.counts["feature_passes"] += len(samples)
        shapes = [(len(samples), part["width"]) for part in self.feature_layout()]
        images = [(i, view) for i, s in enumerate(samples) for view in self._whole_images(s)]
        instructions = [s.instruction for s in samples]
        alone = any(self._one_at_a_time(view) for _, view in images)
        how: dict[str, Any] = {"device": self.device, "fill": exact}
        parts = [
            max_pooled(images, self._vision_states, shapes[0], batch_size=1 if alone else BATCH_SIZE, **how),
            self._instruction_features(instructions, shapes[1], exact=exact),
        ]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)

    def _instruction_features(
        self, instructions: Sequence[torch.Tensor], shape: tuple[int, int], *, exact: bool
    ) -> torch.Tensor:
        if not exact and self._is_causal:
            return max_pooled_instructions(instructions, self._states_of_tokens, shape[1], device=self.device)
        items = [(i, {"input_ids": tokens}) for i, tokens in enumerate(instructions)]
        return max_pooled(items, self._language_states, shape, device=self.device, fill=exact)

    @cached_property
    def _is_causal(self) -> bool:
        """Whether the language model's states do not depend on the tokens that follow, as padding does."""
        tokens = self.tokenizer("What is it?", add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return is_causal(self._states_of_tokens, tokens.to(self.device))

    def _states_of_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.family.language_states(self.language, tokens)

    def _whole_images(self, sample: Encoded) -> list[View]:
        if self.family.pixels not in sample.vision:
            return []
        views = self.family.whole_images(sample.vision, sample.tokens, images=sample.images)
        if self._own_vision_states:
            return views
        known = {self.family.pixels, GRIDS, *feature_arguments(encoding_model(self.model), self.vision)}
        return [{name: tensor for name, tensor in view.items() if name in known} for view in views]

    @property
    def _own_vision_states(self) -> bool:
        return type(self.family).vision_states is not Family.vision_states

    def _one_at_a_time(self, views: Mapping[str, torch.Tensor]) -> bool:
        return not self._own_vision_states and not takes_images_alone(self.vision, set(views))

    def _vision_states(self, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        views = {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in views.items()}
        if self._one_at_a_time(views):
            return image_states(encoding_model(self.model), self.vision, views)
        return self.family.vision_states(self.vision, views)

    def _language_states(self, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._states_of_tokens(views["input_ids"])

    @cached_property
    def _vision_width(self) -> int:
        """Width of the vision encoder's states; configurations name it differently, so an image is encoded."""
        image = Image.new("RGB", (64, 64), (90, 120, 150))
        sample = Sample("image", "?", "", (), (lambda: image,))
        try:
            view = self._whole_images(self.encode(sample, with_answer=False))[0]
            with torch.no_grad():
                states = self._vision_states({name: tensor[None].to(self.device) for name, tensor in view.items()})
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise self._incapable("encode an image", error) from error
        return states.shape[-1]

    def _incapable(self, what: str, error: Exception) -> DmoleError:
        return DmoleError(
            f"backbone '{self.name}' ({type(self.model).__name__}) cannot {what}: {first_line(error)}",
            "pass another --backbone, or add a file for its family (docs/backbones.md)",
        )

    def feature_layout(self) -> list[dict[str, Any]]:
        """Parts of a routing feature in order, with their widths."""
        return [
            {"part": "vision encoder, last hidden state, max over tokens", "width": self._vision_width},
            {
                "part": "language model, last hidden state, max over instruction tokens",
                "width": self.language.config.get_text_config().hidden_size,
            },
        ]
