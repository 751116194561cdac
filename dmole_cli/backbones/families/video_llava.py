"""Video-LLaVA: an image is one row of the image tower; the video tower is not used."""

from __future__ import annotations

from dmole_cli.backbones.families.base import Family


class VideoLlava(Family):
    """Images and videos have tensors of their own."""

    pixels = "pixel_values_images"
