"""The contract of a model family: `families/<model_type>.py`, named after the `model_type` of transformers.

The file's name is the model type with underscores for other characters. It defines

- `tiny(folder, *, seed=0)`: write a tiny random model with the family's real processor, which tests/test_families.py runs on;
  files without it are tested by tests/test_family_support.py;
- one subclass of `Family` that overrides what the generic methods get wrong for this family; no subclass if they are right.

A processor returns the images of one sample in one of these layouts, which the generic methods tell apart by the tensors:

- `pixel_values` [images, ...]: one row per image;
- `pixel_values` [patches, ...] with `image_grid_thw` [images, 3]: the patches of all images, packed.

Where an image becomes several rows, such as tiles or crops, the family's file says which of them shows the whole image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dmole_cli import catalog
from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.image_layouts import GRIDS, PIXELS, View, concatenate_padded, images_of
from dmole_cli.backbones.vllm_lora import VllmLora
from dmole_cli.data import markers
from dmole_cli.errors import DmoleError

REFUSED_HINT = "pass another --backbone; docs/backbones.md lists the model types that can be one"
# Tensors of whole numbers that mean the same in a batch as in a sample: sizes, positions within an image, masks.
CONCATENATED = {
    GRIDS,
    "batch_num_images",
    "image_merge_sizes",
    "image_position_ids",
    "image_sizes",
    "num_crops",
    "pixel_attention_mask",
    "pixel_mask",
    "spatial_shapes",
}
WHOLE_HINT = "add a file for the family to dmole_cli/backbones/families/ with whole_images (docs/backbones.md)"


class Family:
    """Generic handling of a processor's inputs and of the two towers; subclasses override single methods.

    Attributes:
        processor: the backbone's processor.
        answer_token_type: value of the answer's tokens in token-wise inputs such as `token_type_ids`.
        pixels: name of the tensor that the vision encoder's rows are counted by.
        more_vision: module paths of vision encoders beside the one that the model names.
        refused: why models of this family cannot be backbones; empty if they can.
        vllm: which of its modules vLLM adapts; by default nothing is known.
    """

    answer_token_type: int = 0
    pixels: str = PIXELS
    more_vision: tuple[str, ...] = ()
    refused: str = ""
    vllm: VllmLora = VllmLora()

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __init_subclass__(cls) -> None:
        """Refuse names that the contract does not have.

        Raises:
            TypeError: a public attribute overrides nothing, because it is misspelt.
        """
        super().__init_subclass__()
        unknown = [name for name in vars(cls) if not name.startswith("_") and not hasattr(Family, name)]
        if unknown:
            hooks = ", ".join(name for name in vars(Family) if not name.startswith("_"))
            raise TypeError(f"{cls.__name__} defines {', '.join(unknown)}; a family can override: {hooks}")

    def adapt(self, model: Any) -> None:
        """Add hooks to a model that would otherwise compute a sample differently beside other samples; most need none."""

    def prompt(self, question: str, *, images: int) -> str:
        """Text of a user turn with this number of images, up to where the answer begins.

        The chat template's; the question alone for processors without one, which place the image tokens by themselves.

        Args:
            question: `<image>` is the place of the next image; without markers, the images precede the text.
            images: their number.
        """
        if getattr(self.processor, "chat_template", None) is None and not has_template(self.processor.tokenizer):
            return markers.without(question)
        parts = markers.parts(question, images=images)
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def prepare(self, text: str, images: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Model inputs of one sample, `input_ids` [1, length] among them; a start token is added unless the text has it."""
        return self._processed(text, images, return_tensors="pt")

    def _processed(self, text: str, images: Sequence[Image.Image], *, return_tensors: str | None) -> Any:
        """What the processor returns for one sample."""
        start = self.processor.tokenizer.bos_token
        arguments = {"images": [list(images)]} if images else {}
        special = start is not None and not text.startswith(start)
        return self.processor(text=[text], return_tensors=return_tensors, add_special_tokens=special, **arguments)

    def image_tokens(self, sizes: Sequence[tuple[int, int]], *, images: int) -> Sequence[int]:
        """Number of tokens of images of these sizes (height, width), in samples with `images` images; no file is opened."""
        return self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of rows of the vision encoder's batch for the image tensors of a sample; padding crops are no rows."""
        pixels = vision[self.pixels]
        return int(pixels.flatten(2).any(dim=2).sum()) if pixels.dim() == 5 else len(pixels)

    def join(self, samples: Sequence[Encoded], *, length: int, left: bool) -> dict[str, torch.Tensor]:
        """Image tensors of a batch: those of its samples, concatenated.

        Args:
            samples: of the batch; some may have no images.
            length: number of tokens of the longest sample, to which the others are padded.
            left: whether they are padded on the left.

        Raises:
            DmoleError: the model type has no file here, and it is unknown whether a tensor's numbers count within a batch.
        """
        names = sorted({name for sample in samples for name in sample.vision})
        if type(self) is Family:
            whole = {n for s in samples for n, tensor in s.vision.items() if not tensor.is_floating_point()}
            if unknown := sorted(whole - CONCATENATED):
                raise DmoleError(
                    f"{type(self.processor).__name__} returns {', '.join(unknown)} with its images, and it is unknown how those "
                    "of several samples are joined",
                    "add a file for the family to dmole_cli/backbones/families/ with join (docs/backbones.md)",
                )
        return {name: concatenate_padded([s.vision[name] for s in samples if name in s.vision]) for name in names}

    def row_owners(self, samples: Sequence[Encoded]) -> torch.Tensor:
        """Sample index of each row of the vision encoder's batch [rows], ascending."""
        counts = [self.vision_rows(s.vision) if self.pixels in s.vision else 0 for s in samples]
        return torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts))

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """Inputs of the vision encoder for each image as a whole, without its tiles.

        Args:
            vision: image tensors of one sample, as the processor returns them.
            tokens: its prompt [length].
            images: its number of images.

        Raises:
            DmoleError: the layout does not tell which rows are whole images.
        """
        pixels = vision[self.pixels]
        if pixels.dim() == 5 and pixels.shape[0] * pixels.shape[1] == images:
            vision = {name: own.flatten(0, 1) for name, own in vision.items() if own.shape[:2] == pixels.shape[:2]}
            pixels = vision[self.pixels]
        if GRIDS in vision or (len(pixels) == images and pixels.dim() < 5):
            return images_of(vision, images, pixels=self.pixels)
        what = f"{len(pixels)} tiles" if pixels.dim() < 5 else f"{len(pixels)} × {pixels.shape[1]} crops or tiles"
        raise DmoleError(
            f"{images} image(s) become {what}, and it is unknown which of them shows an image as a whole", WHOLE_HINT
        )

    def vision_states(self, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Last hidden state of the vision encoder [images, tokens, width] for stacked whole images.

        Used where the vision encoder takes pixels, and grids of packed patches, alone; see vision_states.py for the others.
        """
        pixels = views[PIXELS]
        if GRIDS not in views:
            states = tower(pixel_values=pixels).last_hidden_state
            return states.flatten(1, -2)  # some encoders keep height and width apart
        states = tower(pixels.flatten(0, 1), grid_thw=views[GRIDS]).last_hidden_state
        return states.unflatten(0, (len(pixels), -1))

    def language_states(self, tower: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Last hidden state of the language model [instructions, tokens, width] for bare instructions [instructions, tokens]."""
        return tower(input_ids=tokens, use_cache=False).last_hidden_state


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def families() -> list[str]:
    """Names of the files here that write a tiny model, sorted."""
    return [name for name in catalog.names("families") if hasattr(catalog.load("families", name), "tiny")]


def family_class(model_type: str) -> type[Family]:
    """The subclass of `Family` for a model type; `Family` itself where no file overrides anything.

    Raises:
        DmoleError: the family's file says why its models cannot be backbones.
    """
    name = re.sub(r"[^0-9a-z]", "_", model_type)
    if name not in catalog.names("families"):
        return Family
    module = catalog.load("families", name)
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Family)]
    found = next((value for value in own if value.__module__ == module.__name__), Family)
    if found.refused:
        raise DmoleError(f"a model of the type {model_type} cannot be a backbone: {found.refused}", REFUSED_HINT)
    return found


def check_type(path: str) -> None:
    """Check that models of the type of a folder or hub id can be backbones, before any part of the model is loaded.

    Raises:
        DmoleError: the family's file says why they cannot.
    """
    try:
        from transformers import PreTrainedConfig

        settings, _ = PreTrainedConfig.get_config_dict(path)
    # Whatever transformers raises, on import or on the file, it raises again where the model is loaded, which reports it.
    except Exception:
        return
    family_class(str(settings.get("model_type", "")))
