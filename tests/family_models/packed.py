"""Families whose images keep their shape: the patches of all images in one sequence, with `image_grid_thw`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families._tiny import INNER, PATCH, WIDTH, text_sizes, tokenizer, vision_sizes
from family_models.parts import CHAT_MARKS, chat, ids, write

GRID: dict[str, Any] = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
AREA = {"shortest_edge": 24 * 24, "longest_edge": 48 * 48}
TOWER = {
    "depth": 2,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": WIDTH,
    "initializer_range": 0.1,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GLM_MARKS = (
    "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
GLM_CHAT = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _processor(name: str, image: str, video: str, **more: Any) -> dict[str, Any]:
    return {
        "processor_class": name,
        "image_processor": {"image_processor_type": image, **GRID, "size": AREA, **more},
        "video_processor": {"video_processor_type": video, **GRID, "size": AREA},
    }


def _qwen(
    folder: Path, model_type: str, processor: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]
) -> Path:
    tokens = tokenizer(*CHAT_MARKS, *QWEN_MARKS, end="<|im_end|>")
    marks = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            QWEN_MARKS,
            strict=True,
        )
    )
    config = {
        "model_type": model_type,
        "text_config": text_sizes(tokens) | {"rope_parameters": ROPE} | text,
        "vision_config": vision,
        **ids(tokens, **marks),
    }
    return write(folder, config, tokens, processor, template=chat("<|vision_start|><|image_pad|><|vision_end|>"))


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: the width of the vision encoder is `embed_dim`; `hidden_size` is that of the merger's output."""
    vision = {**TOWER, "embed_dim": 16, "mlp_ratio": 2}
    processor = _processor("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor")
    return _qwen(folder, "qwen2_vl", processor, {}, vision)


def _qwen3(folder: Path, model_type: str, text: dict[str, Any], **vision: Any) -> Path:
    processor = _processor("Qwen3VLProcessor", "Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor")
    tower = {**TOWER, "num_position_embeddings": 16, **vision}
    return _qwen(folder, model_type, processor, {"head_dim": 8} | text, tower)


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: also states of inner vision blocks are added to the language blocks."""
    return _qwen3(folder, "qwen3_vl", {}, deepstack_visual_indexes=[0])


def qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with a mixture of experts in every language block."""
    return _qwen3(folder, "qwen3_vl_moe", EXPERTS, deepstack_visual_indexes=[0])


LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True},
}


def qwen3_5(folder: Path) -> Path:
    """Qwen3.5: most language blocks have linear attention, with a recurrent state."""
    return _qwen3(folder, "qwen3_5", LINEAR)


def qwen3_5_moe(folder: Path) -> Path:
    """Qwen3.5 with a mixture of experts in every language block."""
    return _qwen3(folder, "qwen3_5_moe", LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16})


def _glm(folder: Path, model_type: str, processor: dict[str, Any], text: dict[str, Any]) -> Path:
    tokens = tokenizer(*GLM_MARKS, end="<|user|>")
    config = {
        "model_type": model_type,
        "text_config": text_sizes(tokens) | {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}} | text,
        "vision_config": TOWER | {"image_size": 24},
        **ids(
            tokens,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            image_start_token_id="<|begin_of_image|>",
            image_end_token_id="<|end_of_image|>",
            video_start_token_id="<|begin_of_video|>",
            video_end_token_id="<|end_of_video|>",
        ),
    }
    return write(folder, config, tokens, processor, template=GLM_CHAT)


GLM4V = _processor("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor")
GLM46V = _processor("Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor")


def glm4v(folder: Path) -> Path:
    """GLM-4V: the vision encoder merges 2 × 2 patches."""
    return _glm(folder, "glm4v", GLM4V, {})


def glm46v(folder: Path) -> Path:
    """GLM-4.6V: GLM-4V's towers, with a processor of its own."""
    return _glm(folder, "glm46v", GLM46V, {"model_type": "glm4v_text"})


def glm4v_moe(folder: Path) -> Path:
    """GLM-4.5V: experts in all language blocks but the first."""
    text = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
    return _glm(folder, "glm4v_moe", GLM4V, text)


def glm_ocr(folder: Path) -> Path:
    """GLM-OCR: transformers has no processor under this model type; the folder names its class."""
    return _glm(folder, "glm_ocr", GLM46V, {})


def exaone4_5(folder: Path) -> Path:
    """EXAONE 4.5: window attention in the vision encoder."""
    tokens = tokenizer(*CHAT_MARKS, *QWEN_MARKS, end="<|im_end|>")
    config = {
        "model_type": "exaone4_5",
        "text_config": {
            "model_type": "exaone4",
            **text_sizes(tokens),
            "sliding_window": None,
            "sliding_window_pattern": None,
            "layer_types": ["full_attention"] * 2,
        },
        "vision_config": {**TOWER, "window_size": 24, "fullatt_block_indexes": [1], "num_key_value_heads": 2},
        **ids(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    }
    processor = _processor("Exaone4_5_Processor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor")
    return write(folder, config, tokens, processor, template=chat("<|vision_start|><|image_pad|><|vision_end|>"))


def paddleocr_vl(folder: Path) -> Path:
    """PaddleOCR-VL: the processor adds a dimension to the patches; they are merged between the towers."""
    tokens = tokenizer(*CHAT_MARKS, *QWEN_MARKS, end="<|im_end|>", image_token="<|IMAGE_PLACEHOLDER|>")
    config = {
        "model_type": "paddleocr_vl",
        "text_config": text_sizes(tokens) | {"rope_parameters": ROPE, "head_dim": 8},
        "vision_config": vision_sizes(),
        **ids(
            tokens,
            image_token_id="<|IMAGE_PLACEHOLDER|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    }
    settings = GRID | {"temporal_patch_size": 1, "size": AREA}
    image = {"image_processor_type": "PaddleOCRVLImageProcessor", **settings}
    processor = {"processor_class": "PaddleOCRVLProcessor", "image_processor": image}
    template = chat("<|vision_start|><|IMAGE_PLACEHOLDER|><|vision_end|>")
    return write(folder, config, tokens, processor, template=template)


def video_llama_3(folder: Path) -> Path:
    """VideoLLaMA 3: the tower also needs `image_merge_sizes`."""
    tokens = tokenizer(
        *CHAT_MARKS, "<image>", "<video>", end="<|im_end|>", image_token="<image>", video_token="<video>"
    )
    config = {
        "model_type": "video_llama_3",
        "text_config": {"model_type": "qwen2", **text_sizes(tokens)},
        "vision_config": vision_sizes(),
        **ids(tokens, image_token_id="<image>", video_token_id="<video>"),
    }
    settings = GRID | {"temporal_patch_size": 1, "size": AREA}
    processor = {
        "processor_class": "VideoLlama3Processor",
        "image_processor": {"image_processor_type": "VideoLlama3ImageProcessor", **settings},
        "video_processor": {"video_processor_type": "VideoLlama3VideoProcessor", **settings},
    }
    return write(folder, config, tokens, processor, template=chat("<image>"))
