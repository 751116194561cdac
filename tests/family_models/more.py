"""Families with resamplers, cross-attention, several towers in one encoder, or convolutional vision encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families._tiny import INNER, PATCH, SIDE, WIDTH, text_sizes, tokenizer, vision_sizes
from family_models.packed import LINEAR
from family_models.parts import CHAT_MARKS, HALF, SQUARE, chat, ids, siglip, write

GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_CHAT = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")


def aria(folder: Path, *, split: bool = False) -> Path:
    """Aria: padded images with a mask, resampled to a fixed number of tokens; grouped experts in the language blocks.

    With `split`, an image also has crops.
    """
    tokens = tokenizer(*CHAT_MARKS, "<|img|>", end="<|im_end|>", image_token="<|img|>")
    tokens.unk_token = "<pad>"
    # The processor's own default of 980 pixels wins over the image processor's.
    vision = {"model_type": "idefics3_vision", **vision_sizes(patch=140), "image_size": 980}
    text = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1, "intermediate_size": 16}
    config = {
        "model_type": "aria",
        "text_config": {"model_type": "aria_text", **text_sizes(tokens), **text},
        "vision_config": vision,
        "projector_patch_to_query_dict": {49: 8},
        **ids(tokens, image_token_index="<|img|>"),
    }
    image = {
        "image_processor_type": "AriaImageProcessor",
        "max_image_size": 980,
        "min_image_size": 16,
        "split_image": split,
    }
    processor = {"processor_class": "AriaProcessor", "image_processor": image, "size_conversion": {980: 8}}
    return write(folder, config, tokens, processor, template=chat("<fim_prefix><|img|><fim_suffix>"))


def mllama(folder: Path) -> Path:
    """Llama 3.2 Vision: cross-attention to padded tiles; the vision encoder has local and global blocks."""
    import torch

    tokens = tokenizer(*LLAMA_MARKS, end="<|eot_id|>", start="<|begin_of_text|>", image_token="<|image|>")
    vision = vision_sizes() | {
        "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 2 * WIDTH,
        "max_num_tiles": 4,
    }  # fmt: skip
    vision.pop("num_attention_heads")
    text = text_sizes(tokens) | {"num_hidden_layers": 3, "cross_attention_layers": [1]}
    config = {
        "model_type": "mllama",
        "text_config": {"model_type": "mllama_text_model", **text},
        "vision_config": {"model_type": "mllama_vision_model", **vision},
        **ids(tokens, image_token_index="<|image|>"),
    }
    image = {"image_processor_type": "MllamaImageProcessor", "size": SQUARE, "max_image_tiles": 4, **HALF}
    processor = {"processor_class": "MllamaProcessor", "image_processor": image}

    def open_gates(model: Any) -> None:
        """Gates that are initialised to zero would hide the images."""
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                torch.nn.init.constant_(parameter, 0.7)

    template = chat("<|image|>", LLAMA_CHAT)
    return write(folder, config, tokens, processor, template=template, prepare=open_gates)


def molmo2(folder: Path) -> Path:
    """Molmo 2: overlapping crops, pooled through `image_token_pooling`, indices into all patches of the sample."""
    marks = (
        "<im_patch>",
        "<im_col>",
        "<im_start>",
        "<low_res_im_start>",
        "<im_end>",
        "<frame_start>",
        "<frame_end>",
        "<im_low>",
    )
    tokens = tokenizer(*CHAT_MARKS, *marks, "<|video|>", end="<|im_end|>", image_token="<|image|>")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    vision = vision_sizes() | heads | {"image_size": [SIDE, SIDE], "num_hidden_layers": 3}
    adapter = {
        "vision_feature_layer": [-1, 0],
        "hidden_size": WIDTH,
        **heads,
        "intermediate_size": INNER,
        "text_hidden_size": WIDTH,
    }
    text = text_sizes(tokens) | {"head_dim": 8, "additional_vocab_size": 8, "vocab_size": len(tokens)}
    config = {
        "model_type": "molmo2",
        "text_config": {"model_type": "molmo2_text", **text},
        "vision_config": {"model_type": "molmo2_vision", **vision},
        "adapter_config": {"model_type": "molmo2_adapter", **adapter},
        **ids(
            tokens, image_start_token_id="<im_start>", low_res_image_start_token_id="<low_res_im_start>",
            image_end_token_id="<im_end>", image_patch_id="<im_patch>", frame_start_token_id="<frame_start>",
            frame_end_token_id="<frame_end>",
        ),
    }  # fmt: skip
    sizes = {"size": SQUARE, "patch_size": PATCH, "pooling_size": [2, 2]}
    image = {"image_processor_type": "Molmo2ImageProcessor", **sizes, "max_crops": 4, "overlap_margins": [1, 1]}
    processor = {
        "processor_class": "Molmo2Processor",
        "image_processor": image,
        "video_processor": {"video_processor_type": "Molmo2VideoProcessor", **sizes},
    }
    return write(folder, config, tokens, processor, template=chat("<|image|>"))


def minicpmv4_6(folder: Path) -> Path:
    """MiniCPM-V 4.6: all patches of a batch in one row; the whole image, then slices."""
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    tokens = tokenizer(*CHAT_MARKS, end="<|im_end|>", **named)
    rope = LINEAR["rope_parameters"] | {"mrope_section": [1, 1, 2]}
    text = {"model_type": "qwen3_5_text", **text_sizes(tokens), "head_dim": 8, **LINEAR, "rope_parameters": rope}
    config = {
        "model_type": "minicpmv4_6",
        "text_config": text,
        "vision_config": vision_sizes() | {"num_hidden_layers": 3, "image_size": 96},
        "insert_layer_id": 1,
        **ids(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    }
    sizes = {"max_slice_nums": 4, "scale_resolution": 48, "patch_size": PATCH}
    processor = {
        "processor_class": "MiniCPMV4_6Processor",
        "image_processor": {"image_processor_type": "MiniCPMV4_6ImageProcessor", **sizes},
        "video_processor": {"video_processor_type": "MiniCPMV4_6VideoProcessor", **sizes},
    }
    return write(folder, config, tokens, processor, template=chat("<|image_pad|>\n"))


def _gemma_tokens(*more: str, **named: str) -> Any:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return tokenizer("<start_of_turn>", "<end_of_turn>", *more, end="<end_of_turn>", start="<bos>", **names, **named)


def _pan() -> dict[str, Any]:
    return {"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE}


def t5gemma2(folder: Path) -> Path:
    """T5Gemma 2: an encoder-decoder; images enter the text encoder."""
    tokens = _gemma_tokens()
    marks = ids(
        tokens,
        boi_token_index="<start_of_image>",
        eoi_token_index="<end_of_image>",
        image_token_index="<image_soft_token>",
    )
    layers = {
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    }
    text = text_sizes(tokens) | layers
    encoder = {
        "text_config": {"model_type": "t5gemma2_text", **text},
        "vision_config": siglip(),
        "mm_tokens_per_image": 4,
        **marks,
    }
    config = {
        "model_type": "t5gemma2",
        "encoder": encoder,
        "decoder": {"model_type": "t5gemma2_decoder", **text},
        "image_token_index": marks["image_token_index"],
    }
    processor = {"processor_class": "Gemma3Processor", "image_processor": _pan(), "image_seq_length": 4}

    return write(folder, config, tokens, processor, template=chat("<start_of_image>", GEMMA_CHAT))


def gemma3n(folder: Path) -> Path:
    """Gemma 3n: a convolutional vision encoder of timm."""
    named = {"audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}
    tokens = _gemma_tokens(**named)
    text = text_sizes(tokens) | {
        "head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokens), "laurel_rank": 4,
        "num_kv_shared_layers": 0, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    config = {
        "model_type": "gemma3n",
        "text_config": {"model_type": "gemma3n_text", **text},
        "vision_config": {
            "model_type": "gemma3n_vision", "hidden_size": 2048, "vocab_size": 8, "vocab_offset": len(tokens),
            "num_classes": 2,
        },
        "audio_config": {"model_type": "gemma3n_audio", "hidden_size": WIDTH, "vocab_size": 8, "vocab_offset": len(tokens) + 8},
        "vision_soft_tokens_per_image": 256,
        **ids(
            tokens, image_token_id="<image_soft_token>", boi_token_id="<start_of_image>", eoi_token_id="<end_of_image>",
            audio_token_id="<audio_soft_token>", boa_token_id="<start_of_audio>", eoa_token_id="<end_of_audio>",
        ),
    }  # fmt: skip
    processor = {
        "processor_class": "Gemma3nProcessor",
        "image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 768, "width": 768}},
        "feature_extractor": {"feature_extractor_type": "Gemma3nAudioFeatureExtractor"},
    }
    return write(folder, config, tokens, processor, template=chat("<image_soft_token>", GEMMA_CHAT))


def fast_vlm(folder: Path) -> Path:
    """FastVLM: a convolutional vision encoder of timm."""
    tokens = tokenizer(*CHAT_MARKS, end="<|im_end|>", image_token="<image>")
    config = {
        "model_type": "fast_vlm",
        "text_config": {"model_type": "qwen2", **text_sizes(tokens)},
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "num_classes": 2,
            "hidden_size": 3072,
        },
        **ids(tokens, image_token_id="<image>"),
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_processor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64},
        },
        "patch_size": 64,
        "vision_feature_select_strategy": "full",
    }
    return write(folder, config, tokens, processor, template=chat("<image>\n"))


def perception_lm(folder: Path) -> Path:
    """Perception LM: a vision encoder of timm; the whole image, then tiles, in a fifth dimension."""
    tokens = tokenizer(
        *LLAMA_MARKS, end="<|eot_id|>", start="<|begin_of_text|>", image_token="<|image|>", video_token="<|video|>"
    )
    sizes = {
        "img_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
        "embed_dim": WIDTH,
        "depth": 2,
        "num_heads": 2,
        "global_pool": "",
    }
    shape = {"use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4], "mlp_ratio": 2.0}
    config = {
        "model_type": "perception_lm",
        "text_config": {"model_type": "llama", **text_sizes(tokens)},
        "vision_config": {
            "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "num_classes": 2,
            "model_args": sizes | shape,
        },
        "vision_use_cls_token": True,
        "projector_pooling_ratio": 2,
        **ids(tokens, image_token_id="<|image|>", video_token_id="<|video|>"),
    }  # fmt: skip
    tiles = {"tile_size": SIDE, "max_num_tiles": 4, "vision_input_type": "thumb+tile"}
    processor = {
        "processor_class": "PerceptionLMProcessor",
        "image_processor": {"image_processor_type": "PerceptionLMImageProcessor", **tiles},
        "video_processor": {"video_processor_type": "PerceptionLMVideoProcessor", "size": SQUARE},
        "patch_size": PATCH,
        "pooling_ratio": 2,
    }
    return write(folder, config, tokens, processor, template=chat("<|image|>", LLAMA_CHAT))
