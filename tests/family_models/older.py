"""Families without a chat template, encoder-decoders, and families without a vision encoder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families._tiny import INNER, PATCH, SIDE, WIDTH, text_sizes, tokenizer, vision_sizes
from family_models.parts import SQUARE, chat, ids, write

QFORMER = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": INNER,
    "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BLIP_IMAGES = {"image_processor_type": "BlipImageProcessor", "size": SQUARE}
CLIP_IMAGES = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SQUARE}


def _opt(tokens: Any) -> dict[str, Any]:
    text = text_sizes(tokens) | {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
    return {
        "model_type": "opt",
        **{key: value for key, value in text.items() if key not in ("intermediate_size", "num_key_value_heads")},
    }


def _queries(folder: Path, model_type: str, name: str, *, instruction: bool) -> Path:
    """A querying transformer between a vision encoder and OPT, with a tokenizer of its own for the instruction."""
    tokens = tokenizer("<image>", end="</s>", start="<s>")
    config = {
        "model_type": model_type,
        "text_config": _opt(tokens),
        "vision_config": vision_sizes(),
        "qformer_config": QFORMER | {"vocab_size": len(tokens)},
        "num_query_tokens": 4,
        **ids(tokens, image_token_index="<image>"),
    }
    if instruction:
        tokens.save_pretrained(folder / "qformer_tokenizer")
    processor = {"processor_class": name, "image_processor": BLIP_IMAGES, "num_query_tokens": 4}
    return write(folder, config, tokens, processor)


def _kosmos_text(tokens: Any, size: int) -> dict[str, Any]:
    return {
        "vocab_size": size, "embed_dim": WIDTH, "layers": 2, "ffn_dim": INNER, "attention_heads": 4,
        "dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 512, "init_std": 0.3,
        "pad_token_id": tokens.pad_token_id, "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id,
    }  # fmt: skip


def blip(folder: Path) -> Path:
    """BLIP: the caption of an image from a text decoder with cross-attention."""
    tokens = tokenizer("[CLS]", end="[SEP]", start="[DEC]")
    text = text_sizes(tokens) | {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "sep_token_id": tokens.eos_token_id,
    }
    config = {
        "model_type": "blip",
        "text_config": {key: value for key, value in text.items() if key != "num_key_value_heads"},
        "vision_config": vision_sizes(),
        "projection_dim": WIDTH,
        "image_text_hidden_size": WIDTH,
    }
    return write(folder, config, tokens, {"processor_class": "BlipProcessor", "image_processor": BLIP_IMAGES})


def blip_2(folder: Path) -> Path:
    """BLIP-2: a querying transformer between a vision encoder and OPT; image tokens before the start token."""
    return _queries(folder, "blip-2", "Blip2Processor", instruction=False)


def instructblip(folder: Path) -> Path:
    """InstructBLIP: the querying transformer reads the instruction, too, through a tokenizer of its own."""
    return _queries(folder, "instructblip", "InstructBlipProcessor", instruction=True)


def kosmos_2(folder: Path) -> Path:
    """Kosmos-2: latent queries resample the image; positions of its tokens are marked in a mask."""
    marks = ("</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>")
    tokens = tokenizer(*marks, "</delimiter_of_multi_objects/>", "<grounding>", end="</s>", start="<s>")
    tokens.unk_token = "<pad>"
    config = {
        "model_type": "kosmos-2",
        "text_config": _kosmos_text(tokens, len(tokens) + 4),
        "vision_config": vision_sizes(),
        "latent_query_num": 64,  # the processor's default
    }  # fmt: skip
    processor = {"processor_class": "Kosmos2Processor", "image_processor": CLIP_IMAGES, "num_patch_index_tokens": 4}
    return write(folder, config, tokens, processor)


def kosmos_2_5(folder: Path) -> Path:
    """Kosmos-2.5: flattened patches with their positions; latent queries resample them."""
    tokens = tokenizer(end="</s>", start="<s>", boi_token="<image>", eoi_token="</image>", image_token="<im>")
    config = {
        "model_type": "kosmos-2.5",
        "text_config": _kosmos_text(tokens, len(tokens)),
        "vision_config": {
            "hidden_size": WIDTH, "patch_embed_hidden_size": PATCH * PATCH * 3, "intermediate_size": INNER, "head_dim": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_num_patches": 4096,
        },
        "latent_query_num": 4,
    }  # fmt: skip
    image = {
        "image_processor_type": "Kosmos2_5ImageProcessor",
        "patch_size": {"height": PATCH, "width": PATCH},
        "max_patches": 16,
    }
    processor = {"processor_class": "Kosmos2_5Processor", "image_processor": image, "num_image_tokens": 4}
    return write(folder, config, tokens, processor)


def idefics(folder: Path) -> Path:
    """IDEFICS: gated cross-attention blocks beside the language model's."""

    tokens = tokenizer(
        "<fake_token_around_image>", "<end_of_utterance>", end="</s>", start="<s>", image_token="<image>"
    )
    text = text_sizes(tokens) | {"cross_layer_interval": 1, "alpha_initializer": "ones"}
    text.pop("num_key_value_heads")
    vision = vision_sizes() | {"embed_dim": WIDTH}
    vision.pop("hidden_size")
    config = {"model_type": "idefics", **text, "vision_config": vision, "perceiver_config": {"use_resampler": False}}
    image = {"image_processor_type": "IdeficsImageProcessor", "image_size": SIDE, "size": SQUARE}
    processor = {"processor_class": "IdeficsProcessor", "image_processor": image, "image_size": SIDE}
    template = (
        "{% for message in messages %}{{ message['role'].capitalize() }}:{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<fake_token_around_image><image><fake_token_around_image>"
        "{% else %} {{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    return write(folder, config, tokens, processor, template=template)


def florence2(folder: Path) -> Path:
    """Florence-2: an encoder-decoder behind a vision encoder with channel attention."""
    tokens = tokenizer(end="</s>", start="<s>", image_token="<image>")
    text = {
        "model_type": "bart", "vocab_size": len(tokens), "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER,
        "max_position_embeddings": 256, "pad_token_id": tokens.pad_token_id, "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id, "decoder_start_token_id": tokens.eos_token_id,
    }  # fmt: skip
    vision = {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
        "embed_dim": [16, WIDTH], "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4, "projection_dim": WIDTH,
    }  # fmt: skip
    config = {
        "model_type": "florence2",
        "text_config": text,
        "vision_config": vision,
        **ids(tokens, image_token_id="<image>"),
    }
    image = CLIP_IMAGES | {"image_seq_length": 10}
    processor = {"processor_class": "Florence2Processor", "image_processor": image}
    return write(folder, config, tokens, processor)


def git(folder: Path) -> Path:
    """GIT: image tokens are put before the text inside of the model."""
    tokens = tokenizer(end="[SEP]", start="[CLS]")
    text = text_sizes(tokens)
    text.pop("num_key_value_heads")
    config = {"model_type": "git", **text, "vision_config": vision_sizes()}
    return write(folder, config, tokens, {"processor_class": "GitProcessor", "image_processor": CLIP_IMAGES})


def pix2struct(folder: Path) -> Path:
    """Pix2Struct: an encoder-decoder over flattened patches; the question is drawn into the image."""
    tokens = tokenizer(end="</s>")
    text = {
        "vocab_size": len(tokens), "hidden_size": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": 2, "num_heads": 4,
        "pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id, "decoder_start_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "patch_embed_hidden_size": 3 * PATCH * PATCH, "d_ff": INNER, "d_kv": 8, "num_hidden_layers": 2,
        "num_attention_heads": 4, "seq_len": 64,
    }  # fmt: skip
    config = {"model_type": "pix2struct", "text_config": text, "vision_config": vision}
    image = {
        "image_processor_type": "Pix2StructImageProcessor",
        "patch_size": {"height": PATCH, "width": PATCH},
        "max_patches": 16,
    }
    return write(folder, config, tokens, {"processor_class": "Pix2StructProcessor", "image_processor": image})


def fuyu(folder: Path) -> Path:
    """Fuyu: no vision encoder; patches are projected into the language model."""
    tokens = tokenizer("|SPEAKER|", "|NEWLINE|", end="|ENDOFTEXT|", start="<s>")
    text = text_sizes(tokens)
    text.pop("num_key_value_heads")
    config = {
        "model_type": "fuyu",
        "text_config": {"model_type": "persimmon", **text},
        "image_size": SIDE,
        "patch_size": PATCH,
        **ids(tokens, image_token_id="|SPEAKER|"),
    }
    image = {
        "image_processor_type": "FuyuImageProcessor",
        "size": {"height": 48, "width": 48},
        "patch_size": {"height": PATCH, "width": PATCH},
    }
    return write(folder, config, tokens, {"processor_class": "FuyuProcessor", "image_processor": image})


def chameleon(folder: Path) -> Path:
    """Chameleon: images become discrete tokens; there is no vision encoder with attention blocks."""
    named = {"boi_token": "<racm3:break>", "eoi_token": "<eoss>", "image_token": "<image>"}
    codes = [f"IMGIMG{letters}Z" for letters in ("A", "B", "C", "D")]
    tokens = tokenizer(*codes, end="</s>", start="<s>", **named)
    tokens.sep_token = "</s>"
    config = {
        "model_type": "chameleon",
        **text_sizes(tokens),
        "vq_config": {
            "embed_dim": 8, "num_embeddings": 4, "latent_channels": 8, "resolution": SIDE, "base_channels": 32,
            "channel_multiplier": [1, 2], "num_res_blocks": 1,
        },
        "vocabulary_map": {token: tokens.convert_tokens_to_ids(token) for token in (*codes, "<image>")},
    }  # fmt: skip
    image = {"image_processor_type": "ChameleonImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
    processor = {"processor_class": "ChameleonProcessor", "image_processor": image, "image_seq_length": 144}
    return write(folder, config, tokens, processor)


def emu3(folder: Path) -> Path:
    """Emu3: images become discrete tokens; there is no vision encoder with attention blocks."""
    named = {
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    codes = [f"<|visual token {number:06d}|>" for number in range(4)]
    tokens = tokenizer(*codes, "<|extra_200|>", end="<|extra_204|>", start="<|extra_203|>", **named)
    words = {token: tokens.convert_tokens_to_ids(token) for token in (*codes, "<image>", "<|extra_200|>")}
    config = {
        "model_type": "emu3",
        "text_config": {"model_type": "emu3_text_model", **text_sizes(tokens)},
        "vq_config": {
            "codebook_size": 4, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "hidden_size": 32,
            "attn_resolutions": [],
        },
        "vocabulary_map": words,
    }  # fmt: skip
    image = {"image_processor_type": "Emu3ImageProcessor", "min_pixels": 256, "max_pixels": 2304, "spatial_factor": 8}
    processor = {"processor_class": "Emu3Processor", "image_processor": image}
    template = chat(
        "<image>",
        "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}",
    )
    return write(folder, config, tokens, processor, template=template)
