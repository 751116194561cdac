"""DeepSeek-VL with two vision encoders: SigLIP at low resolution, and one of windows at high resolution."""

from __future__ import annotations

from dmole_cli.backbones.families.base import Family


class DeepseekVLHybrid(Family):
    """Each image is one row of both encoders; the model names the one of low resolution."""

    more_vision = ("model.high_res_vision_model",)
