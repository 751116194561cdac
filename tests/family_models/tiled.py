"""Families that split an image into tiles, with or without a thumbnail of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families._tiny import INNER, PATCH, SIDE, WIDTH, text_sizes, tokenizer, vision_sizes
from family_models.parts import CHAT_MARKS, HALF, SQUARE, chat, ids, siglip, write

COHERE_CHAT = (
    "<BOS_TOKEN>{% for message in messages %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
COHERE_MARKS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")


def _cohere(tokens: Any) -> dict[str, Any]:
    return {
        "model_type": "cohere2",
        **text_sizes(tokens),
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }


def aya_vision(folder: Path) -> Path:
    """Aya Vision: the tiles of an image, then its thumbnail; the tiles are counted in the text."""
    marks = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    tiles = ("TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5)))
    tokens = tokenizer(*COHERE_MARKS, *marks, *tiles, end="<|END_OF_TURN_TOKEN|>", start="<BOS_TOKEN>")
    config = {
        "model_type": "aya_vision",
        "text_config": _cohere(tokens),
        "vision_config": siglip(),
        "downsample_factor": 2,
        **ids(tokens, image_token_index="<|IMG_PATCH|>"),
    }
    image = {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "crop_to_patches": True, "max_patches": 4}
    processor = {
        "processor_class": "AyaVisionProcessor",
        "image_processor": image | HALF,
        "patch_size": PATCH,
        "img_size": SIDE,
        "downsample_factor": 2,
    }
    return write(folder, config, tokens, processor, template=chat("<image>", COHERE_CHAT))


def cohere2_vision(folder: Path) -> Path:
    """Command A Vision: the tiles of an image, then its thumbnail, each followed by a line break."""
    named = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>"}
    tokens = tokenizer(
        *COHERE_MARKS,
        end="<|END_OF_TURN_TOKEN|>",
        start="<BOS_TOKEN>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
        **named,
    )
    config = {
        "model_type": "cohere2_vision",
        "text_config": _cohere(tokens),
        "vision_config": siglip(),
        "downsample_factor": 2,
        "alignment_intermediate_size": 2 * INNER,
        **ids(tokens, image_token_id="<|IMG_PATCH|>"),
    }
    # `patch_size` of this processor is the side of a tile in tokens.
    image = {"image_processor_type": "Cohere2VisionImageProcessor", "size": SQUARE, "max_patches": 4, "patch_size": 2}
    processor = {"processor_class": "Cohere2VisionProcessor", "image_processor": image | HALF}
    return write(folder, config, tokens, processor, template=chat("<|IMG_PATCH|>", COHERE_CHAT))


def lfm2_vl(folder: Path) -> Path:
    """LFM2-VL: tiles and a thumbnail as padded patches with `spatial_shapes`; most language blocks are convolutions."""
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    grid = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokens = tokenizer(*CHAT_MARKS, *grid, end="<|im_end|>", start="<|startoftext|>", **named)
    tower = vision_sizes() | {"num_patches": 16}
    tower.pop("image_size")
    text = text_sizes(tokens) | {
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": INNER,
        "block_multiple_of": 8,
    }
    config = {
        "model_type": "lfm2_vl",
        "text_config": {"model_type": "lfm2", **text},
        "vision_config": {"model_type": "siglip2_vision_model", **tower},
        "downsample_factor": 2,
        "projector_hidden_size": INNER,
        **ids(tokens, image_token_id="<image>"),
    }
    image = {
        "image_processor_type": "Lfm2VlImageProcessor",
        "downsample_factor": 2,
        "encoder_patch_size": PATCH,
        "tile_size": SIDE,
        "min_tiles": 2,
        "max_tiles": 4,
        "min_image_tokens": 2,
        "max_image_tokens": 4,
        "size": SQUARE,
        "max_num_patches": 16,
    }
    processor = {"processor_class": "Lfm2VlProcessor", "image_processor": image}
    return write(folder, config, tokens, processor, template="<|startoftext|>" + chat("<image>"))


def ovis2(folder: Path) -> Path:
    """Ovis2: the whole image, then its tiles; visual tokens are distributions over a visual vocabulary."""
    indicators = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokens = tokenizer(*CHAT_MARKS, "<image>", "<IMG_ATOM>", *indicators, end="<|im_end|>")
    config = {
        "model_type": "ovis2",
        "text_config": {"model_type": "qwen2", **text_sizes(tokens)},
        "vision_config": vision_sizes() | {"vocab_size": 40, "hidden_stride": 2, "num_visual_indicator_tokens": 5},
        "hidden_size": WIDTH,
        "vocab_size": len(tokens),
        "visual_indicator_token_ids": tokens.convert_tokens_to_ids(list(indicators)),
        **ids(tokens, image_token_id="<IMG_ATOM>"),
    }
    image = {"image_processor_type": "Ovis2ImageProcessor", "size": SQUARE, "crop_to_patches": True, "max_patches": 4}
    processor = {"processor_class": "Ovis2Processor", "image_processor": image | HALF, "image_seq_length": 4}
    return write(folder, config, tokens, processor, template=chat("<image>\n"))


def llama4(folder: Path) -> Path:
    """Llama 4: the tiles of an image, then its thumbnail; pixel shuffle in the vision encoder, routed language blocks."""
    marks = (
        "<|header_start|>", "<|header_end|>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>",
        "<|tile_x_separator|>", "<|tile_y_separator|>",
    )  # fmt: skip
    tokens = tokenizer(*marks, end="<|eot|>", start="<|begin_of_text|>")
    text = {"intermediate_size_mlp": INNER, "head_dim": 8, "num_local_experts": 2, "interleave_moe_layer_step": 2}
    tower = {"vision_output_dim": WIDTH, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH}
    config = {
        "model_type": "llama4",
        "text_config": text_sizes(tokens) | text | {"no_rope_layers": [1, 0], "attention_chunk_size": 64},
        "vision_config": vision_sizes() | tower | {"intermediate_size": 4 * WIDTH, "pixel_shuffle_ratio": 0.5},
        **ids(
            tokens, image_token_index="<|patch|>", boi_token_index="<|image_start|>", eoi_token_index="<|image_end|>"
        ),
    }
    processor = {
        "processor_class": "Llama4Processor",
        "image_processor": {"image_processor_type": "Llama4ImageProcessorFast", "size": SQUARE, "max_patches": 4},
        "patch_size": PATCH,
    }
    template = (
        "<|begin_of_text|>{% for message in messages %}<|header_start|>{{ message['role'] }}<|header_end|>\n\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
    )

    return write(folder, config, tokens, processor, template=template)


def qianfan_ocr(folder: Path) -> Path:
    """Qianfan-OCR: the tiles of an image, then its thumbnail, in one run of image tokens."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer(*CHAT_MARKS, "<image>", end="<|im_end|>", **named)
    config = {
        "model_type": "qianfan_ocr",
        "text_config": {"model_type": "qwen3", **text_sizes(tokens), "head_dim": 8},
        "vision_config": vision_sizes() | {"layer_scale_init_value": 1.0},
        "image_seq_length": 4,
        **ids(tokens, image_token_id="<IMG_CONTEXT>"),
    }
    image = {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "crop_to_patches": True, "max_patches": 4}
    processor = {"processor_class": "QianfanOCRProcessor", "image_processor": image | HALF, "image_seq_length": 4}
    return write(folder, config, tokens, processor, template=chat("<image>\n"))


def idefics2(folder: Path, *, split: bool = False) -> Path:
    """Idefics2: images are padded to the largest, with a mask.

    With `split`, an image becomes four crops and then the whole image.
    """
    named = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    tokens = tokenizer("<end_of_utterance>", end="<end_of_utterance>", start="<s>", **named)
    config = {
        "model_type": "idefics2",
        "text_config": {"model_type": "mistral", **text_sizes(tokens), "sliding_window": None},
        "vision_config": vision_sizes() | {"image_size": 60},
        "perceiver_config": {
            "hidden_size": WIDTH, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 2, "initializer_range": 0.1,
        },
        **ids(tokens, image_token_id="<image>"),
    }  # fmt: skip
    image = {
        "image_processor_type": "Idefics2ImageProcessor",
        "size": {"shortest_edge": 24, "longest_edge": 60},
        "do_image_splitting": split,
    }
    processor = {"processor_class": "Idefics2Processor", "image_processor": image, "image_seq_len": 4}
    template = (
        "{% for message in messages %}{{ message['role'].capitalize() }}:"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    return write(folder, config, tokens, processor, template=template)


def idefics2_split(folder: Path) -> Path:
    """Idefics2 with four crops before each whole image."""
    return idefics2(folder, split=True)


def got_ocr2(folder: Path) -> Path:
    """GOT-OCR 2: attention in windows in the vision encoder, and a fixed prompt without a chat template.

    The processor counts 256 tokens for an image: 64 × 64 patches, of which convolutions merge 4 × 4.
    """
    tokens = tokenizer(*CHAT_MARKS, "<img>", "</img>", "<imgpad>", end="<|im_end|>")
    vision = vision_sizes(patch=2) | {"image_size": 128, "output_channels": 8, "mlp_dim": 16, "global_attn_indexes": []}
    vision |= {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = {
        "model_type": "got_ocr2",
        "text_config": {"model_type": "qwen2", **text_sizes(tokens)},
        "vision_config": vision,
        "image_seq_length": 256,
        **ids(tokens, image_token_index="<imgpad>"),
    }
    image = {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 128, "width": 128}, **HALF}
    processor = {"processor_class": "GotOcr2Processor", "image_processor": image}
    return write(folder, config, tokens, processor)
