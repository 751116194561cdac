"""Families with one input of the vision encoder per image, or with a whole image and padded crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families._tiny import INNER, PATCH, SIDE, WIDTH, text_sizes, tokenizer, vision_sizes
from family_models.parts import CHAT_MARKS, SQUARE, WORDS, chat, ids, siglip, write

PIXTRAL_CHAT = (
    "<s>{% for message in messages %}[INST]{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]{% endfor %}"
)
PIXTRAL_MARKS = ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
GRIDS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}


def _llama(tokens: Any) -> dict[str, Any]:
    return {"model_type": "llama", **text_sizes(tokens)}


def _clip(patch: int = PATCH, **more: Any) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **vision_sizes(patch=patch), **more}


def _pixtral(folder: Path, config: dict[str, Any], processor: dict[str, Any], *, patch: int) -> Path:
    tokens = tokenizer(*PIXTRAL_MARKS, end="</s>", start="<s>")
    vision = {"model_type": "pixtral", **vision_sizes(), "image_size": 48}
    text = {"model_type": "mistral", **text_sizes(tokens), "head_dim": 8, "sliding_window": None}
    config = {"text_config": text, "vision_config": vision, **config, **ids(tokens, image_token_index="[IMG]")}
    image = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 48}, "patch_size": patch}
    processor = {"processor_class": "PixtralProcessor", "image_processor": image, "patch_size": PATCH, **processor}
    return write(folder, config, tokens, processor, template=PIXTRAL_CHAT)


def mistral3(folder: Path) -> Path:
    """Mistral Small 3: the images of a batch are packed into one row of a Pixtral encoder."""
    config = {"model_type": "mistral3", "spatial_merge_size": 2, "vision_feature_layer": -1}
    return _pixtral(folder, config, {"spatial_merge_size": 2}, patch=2 * PATCH)


def llava_pixtral(folder: Path) -> Path:
    """LLaVA with a Pixtral encoder; the processor's class is not the model type's."""
    config = {"model_type": "llava", "vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    return _pixtral(folder, config, {}, patch=PATCH)


def lighton_ocr(folder: Path) -> Path:
    """LightOnOCR: a Pixtral encoder, without marks at the ends of the rows."""
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokens = tokenizer(*CHAT_MARKS, end="<|im_end|>", **named)
    config = {
        "model_type": "lighton_ocr",
        "text_config": {"model_type": "qwen3", **text_sizes(tokens), "head_dim": 8, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **vision_sizes(), "image_size": 48},
        **ids(tokens, image_token_id="<|image_pad|>"),
    }
    image = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 48}, "patch_size": 2 * PATCH}
    processor = {
        "processor_class": "LightOnOcrProcessor",
        "image_processor": image,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
    }
    return write(folder, config, tokens, processor, template=chat("<|image_pad|>"))


def gemma4(folder: Path) -> Path:
    """Gemma 4: patches with positions instead of grids, pooled and packed; bidirectional attention in images."""
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    tokens = tokenizer("<|turn>", "<turn|>", "<|video|>", end="<turn|>", start="<bos>", **named)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = {
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokens),
        "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "initializer_range": 0.05,
        "rope_parameters": {"sliding_attention": rope, "full_attention": rope}, "use_bidirectional_attention": "vision",
    }  # fmt: skip
    vision = vision_sizes() | {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    config = {
        "model_type": "gemma4",
        "text_config": {"model_type": "gemma4_text", **text_sizes(tokens), **text},
        "vision_config": {"model_type": "gemma4_vision", **vision},
        "audio_config": None,
        **ids(
            tokens, image_token_id="<|image|>", boi_token_id="<|image>", eoi_token_id="<image|>",
            video_token_id="<|video|>", audio_token_id="<|audio|>", boa_token_id="<|audio>", eoa_token_index="<audio|>",
        ),
    }  # fmt: skip
    pixels = {"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    processor = {
        "processor_class": "Gemma4Processor",
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", **pixels},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", **pixels},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        "image_seq_length": 70,
    }
    template = (
        "{{ bos_token }}{% for message in messages %}<|turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] | trim }}"
        "{% endif %}{% endfor %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
    )
    return write(folder, config, tokens, processor, template=template)


def vipllava(folder: Path) -> Path:
    """ViP-LLaVA: states of several vision blocks feed the language model."""
    tokens = tokenizer("<image>", end="</s>", start="<s>")
    config = {
        "model_type": "vipllava",
        "text_config": _llama(tokens),
        "vision_config": _clip(12),
        "vision_feature_layer": [-1, -2],
        "image_seq_length": 4,
        **ids(tokens, image_token_index="<image>"),
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_processor": {"image_processor_type": "CLIPImageProcessor", **CROPPED},
        "patch_size": 12,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return write(folder, config, tokens, processor, template=chat("<image>\n", WORDS))


def _next(
    folder: Path, model_type: str, name: str, tokens: Any, *, template: str, video: str = "", **config: Any
) -> Path:
    settings = {
        "model_type": model_type,
        "text_config": _llama(tokens),
        "vision_config": _clip(),
        "image_grid_pinpoints": GRIDS,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 16,
        **ids(tokens, image_token_index="<image>"),
        **config,
    }
    processor = {
        "processor_class": name,
        "image_processor": {
            "image_processor_type": "LlavaNextImageProcessor",
            **CROPPED,
            "image_grid_pinpoints": GRIDS,
        },
        "patch_size": PATCH,
        "vision_feature_select_strategy": settings["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,
    }
    if video:
        processor["video_processor"] = {"video_processor_type": video, **CROPPED}
    if "downsample_rate" in config:
        processor["downsample_rate"] = config["downsample_rate"]
    return write(folder, settings, tokens, processor, template=template)


def llava_next(folder: Path) -> Path:
    """LLaVA-NeXT: the whole image, then its crops."""
    tokens = tokenizer("<image>", end="</s>", start="<s>")
    return _next(folder, "llava_next", "LlavaNextProcessor", tokens, template=chat("<image>\n", WORDS))


def llava_next_video(folder: Path) -> Path:
    """LLaVA-NeXT-Video: LLaVA-NeXT's images; the processor's video part comes first."""
    tokens = tokenizer("<image>", "<video>", end="</s>", start="<s>")
    return _next(
        folder,
        "llava_next_video",
        "LlavaNextVideoProcessor",
        tokens,
        template=chat("<image>\n", WORDS),
        video="LlavaNextVideoVideoProcessor",
        **ids(tokens, video_token_index="<video>"),
    )


def granite4_vision(folder: Path) -> Path:
    """Granite 4 Vision: states of several vision blocks are added to several language blocks, through small transformers."""
    tokens = tokenizer("<|start_of_role|>", "<|end_of_role|>", "<image>", end="<|end_of_text|>")
    template = (
        "{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end_of_text|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
    )
    return _next(
        folder,
        "granite4_vision",
        "Granite4VisionProcessor",
        tokens,
        template=template,
        text_config={"model_type": "granite4_vision_text", **text_sizes(tokens), "attention_multiplier": 0.35},
        vision_config=_clip() | {"hidden_size": 64},
        qformer_config={
            "model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": INNER, "encoder_hidden_size": 64, "cross_attention_frequency": 1,
        },
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]],
        use_spatial_sampling=True,
        spatial_vision_layer=-1,
        spatial_target_layers=[1],
    )  # fmt: skip


def video_llava(folder: Path) -> Path:
    """Video-LLaVA: two vision encoders, one for images; the pixels are `pixel_values_images`."""
    tokens = tokenizer("<image>", "<video>", end="</s>", start="<s>")
    config = {
        "model_type": "video_llava",
        "text_config": _llama(tokens),
        "vision_config": _clip(12),
        "image_seq_length": 4,
        **ids(tokens, image_token_index="<image>", video_token_index="<video>"),
    }
    image = {"image_processor_type": "VideoLlavaImageProcessor", **CROPPED}
    processor = {
        "processor_class": "VideoLlavaProcessor",
        "image_processor": image,
        "video_processor": {"video_processor_type": "VideoLlavaVideoProcessor", **CROPPED},
        "patch_size": 12,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return write(folder, config, tokens, processor, template=chat("<image>\n", WORDS))


DEEPSEEK_CHAT = (
    "<s>{% for message in messages %}{{ message['role'].capitalize() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def deepseek_vl(folder: Path) -> Path:
    """DeepSeek-VL: images are padded to squares."""
    tokens = tokenizer(end="</s>", start="<s>", image_token="<image_placeholder>")
    config = {
        "model_type": "deepseek_vl",
        "text_config": _llama(tokens),
        "vision_config": siglip(patch=12),
        **ids(tokens, image_token_id="<image_placeholder>"),
    }
    image = {"image_processor_type": "DeepseekVLImageProcessor", "size": SQUARE}
    processor = {"processor_class": "DeepseekVLProcessor", "image_processor": image, "num_image_tokens": 4}
    return write(folder, config, tokens, processor, template=DEEPSEEK_CHAT)


def deepseek_vl_hybrid(folder: Path) -> Path:
    """DeepSeek-VL 7B: a second vision encoder for high-resolution pixels."""
    tokens = tokenizer(end="</s>", start="<s>", image_token="<image_placeholder>")
    high = vision_sizes() | {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": INNER}
    config = {
        "model_type": "deepseek_vl_hybrid",
        "text_config": _llama(tokens),
        "vision_config": siglip(patch=12),
        "high_res_vision_config": {"model_type": "sam_vision_model", **high, "image_size": 48},
        **ids(tokens, image_token_id="<image_placeholder>"),
    }
    image = {
        "image_processor_type": "DeepseekVLHybridImageProcessor",
        "size": SQUARE,
        "high_res_size": {"height": 48, "width": 48},
    }
    processor = {"processor_class": "DeepseekVLHybridProcessor", "image_processor": image, "num_image_tokens": 4}
    return write(folder, config, tokens, processor, template=DEEPSEEK_CHAT)


def janus(folder: Path) -> Path:
    """Janus: a second, generative image tokenizer that answers do not use."""
    named = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    tokens = tokenizer(end="</s>", start="<s>", **named)
    vision = vision_sizes(patch=12) | {"projection_dim": WIDTH, "mlp_ratio": 2.0, "num_image_tokens": 4}
    vision.pop("intermediate_size")
    codes = {
        "embed_dim": 4, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
    }  # fmt: skip
    config = {
        "model_type": "janus",
        "text_config": _llama(tokens),
        "vision_config": vision,
        "vq_config": codes,
        **ids(tokens, image_token_id="<image_placeholder>"),
    }
    image = {"image_processor_type": "JanusImageProcessor", "size": SQUARE}
    processor = {"processor_class": "JanusProcessor", "image_processor": image, "num_image_tokens": 4}
    return write(folder, config, tokens, processor, template=DEEPSEEK_CHAT)
