"""Tiny models of model types of transformers: one function per type writes a folder with random weights."""

from collections.abc import Callable
from pathlib import Path

from family_models import packed

MODELS: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": packed.qwen2_vl,
    "qwen3_vl": packed.qwen3_vl,
    "qwen3_vl_moe": packed.qwen3_vl_moe,
    "qwen3_5": packed.qwen3_5,
    "qwen3_5_moe": packed.qwen3_5_moe,
    "glm4v": packed.glm4v,
    "glm46v": packed.glm46v,
    "glm4v_moe": packed.glm4v_moe,
    "glm_ocr": packed.glm_ocr,
    "exaone4_5": packed.exaone4_5,
    "paddleocr_vl": packed.paddleocr_vl,
    "video_llama_3": packed.video_llama_3,
}
