"""Granite 4 Vision: an image becomes the whole image and crops that follow its shape."""

from __future__ import annotations

from dmole_cli.backbones.families._crops import WholeImageFirst


class Granite4Vision(WholeImageFirst):
    """The crops of an image have its shape; the whole image is resized to the first one."""
