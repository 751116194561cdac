"""The contract of a model family: `families/<model_type>.py`, named after the `model_type` of transformers.

A family's file defines

- `tiny(folder, *, seed=0)`: write a tiny random model with the family's real processor, which the tests run on;
- one subclass of `Family` that overrides what the generic methods get wrong for this family; no subclass if they are right.

A processor returns the images of one sample in one of three layouts, which the generic methods tell apart by the tensors:

- `pixel_values` [rows, channels, height, width]: one row per image or tile;
- `pixel_values` [images, crops, channels, height, width]: the whole image first, then its crops, padded with crops of zeros;
- `pixel_values` [patches, values] with `image_grid_thw` [images, 3]: the patches of all images, packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dmole_cli import catalog
from dmole_cli.backbones.image_layouts import GRIDS, PIXELS, View
from dmole_cli.data import markers
from dmole_cli.errors import DmoleError


class Family:
    """Generic handling of a processor's inputs and of the two towers; subclasses override single methods.

    Attributes:
        processor: the backbone's processor.
        answer_token_type: value of the answer's tokens in token-wise inputs such as `token_type_ids`.
    """

    answer_token_type: int = 0

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

    def prompt(self, question: str, *, images: int) -> str:
        """Text of a user turn with this number of images, up to where the answer begins: the chat template's.

        Args:
            question: `<image>` is the place of the next image; without markers, the images precede the text.
            images: their number.
        """
        parts = markers.parts(question, images=images)
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def prepare(self, text: str, images: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
        """Model inputs of one sample, `input_ids` [1, length] among them; a start token is added unless the text has it."""
        start = self.processor.tokenizer.bos_token
        arguments = {"images": [list(images)]} if images else {}
        special = start is not None and not text.startswith(start)
        return self.processor(text=[text], return_tensors="pt", add_special_tokens=special, **arguments)

    def image_tokens(self, sizes: Sequence[tuple[int, int]], *, images: int) -> Sequence[int]:
        """Number of tokens of images of these sizes (height, width), in samples with `images` images; no file is opened."""
        return self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of rows of the vision encoder's batch for the image tensors of a sample; padding crops are no rows."""
        pixels = vision[PIXELS]
        return int(pixels.flatten(2).any(dim=2).sum()) if pixels.dim() == 5 else len(pixels)

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """Inputs of the vision encoder for each image as a whole, without its tiles.

        Args:
            vision: image tensors of one sample, as the processor returns them.
            tokens: its prompt [length].
            images: its number of images.

        Raises:
            DmoleError: the layout does not tell which rows are whole images.
        """
        pixels = vision[PIXELS]
        if GRIDS in vision:
            grids = vision[GRIDS]
            patches = pixels.split(grids.prod(dim=1).tolist())
            return [{PIXELS: own, GRIDS: grid} for own, grid in zip(patches, grids, strict=True)]
        if len(pixels) != images:
            raise DmoleError(
                f"{images} image(s) become {len(pixels)} tiles, and it is unknown which tile shows an image as a whole",
                "add a file for the family to dmole_cli/backbones/families/ with whole_images (docs/backbones.md)",
            )
        return [{PIXELS: own[0] if pixels.dim() == 5 else own} for own in pixels]

    def vision_states(self, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Last hidden state of the vision encoder [images, tokens, width] for stacked whole images."""
        pixels = views[PIXELS]
        if GRIDS not in views:
            return tower(pixel_values=pixels).last_hidden_state
        states = tower(pixels.flatten(0, 1), grid_thw=views[GRIDS]).last_hidden_state
        return states.unflatten(0, (len(pixels), -1))

    def language_states(self, tower: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Last hidden state of the language model [instructions, tokens, width] for bare instructions [instructions, tokens]."""
        return tower(input_ids=tokens, use_cache=False).last_hidden_state


def families() -> list[str]:
    """Model types that have a file here, sorted."""
    return catalog.names("families")


def family_class(model_type: str) -> type[Family]:
    """The subclass of `Family` for a model type; `Family` itself where no file overrides anything."""
    if model_type not in families():
        return Family
    module = catalog.load("families", model_type)
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Family)]
    return next((value for value in own if value.__module__ == module.__name__), Family)
