"""GOT-OCR 2: no chat template; the processor's own prompt, with the question in place of its request for OCR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image

from dmole_cli.backbones.families.base import Family


class GotOcr2(Family):
    """An image is one row of the vision encoder."""

    def prompt(self, question: str, *, images: int) -> str:
        """System message and user turn, as the processor writes them for a request without a text."""
        marks = self.processor
        places = f"{marks.img_start_token}{marks.image_token}{marks.img_end_token}\n" * images
        start, end = marks.message_start_token, marks.message_end_token
        return f"{start}{marks.system_query}{end}{start}user\n{places}{question}{end}{start}assistant\n"

    def prepare(self, text: str, images: Sequence[Image]) -> Mapping[str, torch.Tensor]:
        """The processor takes a flat list of images, and no text without one, for which the tokenizer suffices."""
        if not images:
            return self.processor.tokenizer([text], return_tensors="pt")
        # By default an image is not cut into patches, so that each has one row.
        return self.processor(text=[text], images=list(images), return_tensors="pt")
