"""Inputs of the benchmarks: linear layers and whole models with random weights, experts for them, random samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.backbone import IGNORED, Backbone, Encoded
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts

RANK, SCALE = 8, 2.0  # of the reference: rank 8, alpha 16
PAD, END, IMAGE = 0, 1, 2
FIRST_WORD = 3


def linears(count: int, hidden: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A stack of frozen square linear layers without bias, named `0`, `1` ..."""
    stack = nn.Sequential(*(nn.Linear(hidden, hidden, bias=False) for _ in range(count)))
    return stack.to(dtype).requires_grad_(False).eval()


def sharing_weights(stack: nn.Sequential) -> nn.Sequential:
    """New modules with the same weight tensors, so that each variant has its own hooks and wrappers."""
    twins = []
    for linear in stack:
        twins.append(nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta"))
        twins[-1].weight = linear.weight
    return nn.Sequential(*twins).eval()


def random_expert(
    model: nn.Module, sites: Iterable[str], *, seed: int, trainable: bool = False, rank: int = RANK
) -> Expert:
    """An expert whose B is not zero, as after training; small enough to keep the scale of the activations."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for site in sites:
        host: Any = model.get_submodule(site)
        a = torch.randn(rank, host.in_features, generator=generator) * host.in_features**-0.5
        b = torch.randn(host.out_features, rank, generator=generator) * 0.1 * rank**-0.5
        a, b = a.to(host.weight.device), b.to(host.weight.device)
        matrices[site] = (a.requires_grad_(trainable), b.requires_grad_(trainable))
    return Expert(matrices, SCALE, trainable=trainable)


def attached(model: nn.Module | Backbone, experts: Mapping[str, Expert]) -> RoutedExperts:
    """Attach experts to a backbone, or to a model without towers."""
    if isinstance(model, Backbone):
        routed = RoutedExperts(model.model, model.modality_of)
    else:
        routed = RoutedExperts(model, lambda site: "language")
    for name, expert in experts.items():
        routed.add(name, expert)
    return routed


def twin(backbone: Backbone) -> Backbone:
    """New modules with the same weight tensors, for variants that change modules; takes no memory for weights."""
    model = backbone.model
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return Backbone(backbone.name, "", copy.deepcopy(model, shared), backbone.processor)


def with_labels(backbone: Backbone, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The inputs of a model that computes its loss itself: all on its device, also the labels."""
    inputs, _ = backbone.collate(batch, left=False)
    return inputs | {"labels": inputs["labels"].to(backbone.device)}


def decoder(*, layers: int, hidden: int, inner: int, heads: int, groups: int, words: int) -> Backbone:
    """A LLaVA-class backbone with random weights: a Llama decoder and a vision tower of minimal size."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False, image_seq_length=1
    )
    return _backbone(LlavaForConditionalGeneration(config))


def vision_language(
    *, vision: tuple[int, int], language: tuple[int, int], words: int, side: int, inner: int = 4
) -> Backbone:
    """An InternVL-class backbone with random weights.

    Args:
        vision: layers and width of the vision encoder.
        language: layers and width of the language model.
        words: size of the vocabulary.
        side: of a tile in pixels; a patch has 14, and four patches become one token.
        inner: width of the feed-forward layers as a multiple of the model's.
    """
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    tower = InternVLVisionConfig(
        hidden_size=vision[1],
        intermediate_size=inner * vision[1],
        num_hidden_layers=vision[0],
        num_attention_heads=max(1, vision[1] // 64),
        image_size=(side, side),
    )
    text = Qwen2Config(
        vocab_size=words,
        hidden_size=language[1],
        intermediate_size=inner * language[1],
        num_hidden_layers=language[0],
        num_attention_heads=max(1, language[1] // 64),
        num_key_value_heads=max(1, language[1] // 128),
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    config = InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=(side // 28) ** 2,
        tie_word_embeddings=False,
    )
    return _backbone(InternVLForConditionalGeneration(config))


def _backbone(model: Any) -> Backbone:
    tokenizer = SimpleNamespace(pad_token_id=PAD, eos_token_id=END, batch_decode=_as_numbers)
    length = getattr(model.config, "image_seq_length", 1)
    processor = SimpleNamespace(tokenizer=tokenizer, image_token_id=IMAGE, image_seq_length=length)
    backbone = Backbone("random weights", "", model, processor)
    # Found by encoding an image, which takes a real processor.
    vars(backbone)["_vision_width"] = model.config.vision_config.hidden_size
    return backbone


def _as_numbers(tokens: torch.Tensor | list[list[int]], *, skip_special_tokens: bool) -> list[str]:
    rows = tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
    return [" ".join(map(str, row)) for row in rows]


def random_samples(
    backbone: Backbone, count: int, *, text: int, answer: int, tiles: int = 0, seed: int = 0
) -> list[Encoded]:
    """Samples of random tokens: `tiles` of an image, `text` tokens of the instruction, `answer` tokens with labels."""
    generator = torch.Generator().manual_seed(seed)
    config = backbone.model.config
    words = config.text_config.vocab_size
    samples = []
    for _ in range(count):
        instruction = torch.randint(FIRST_WORD, words, (text,), generator=generator)
        reply = torch.randint(FIRST_WORD, words, (answer,), generator=generator)
        prompt = torch.cat([torch.full((tiles * config.image_seq_length,), IMAGE), instruction])
        labels = torch.cat([torch.full_like(prompt, IGNORED), reply])
        vision = {}
        if tiles:
            vision["pixel_values"] = torch.randn(tiles, 3, *config.vision_config.image_size, generator=generator)
        samples.append(Encoded(torch.cat([prompt, reply]), labels if answer else None, vision, instruction, images=1))
    return samples


def half_of(sites: Sequence[str], *, seed: int) -> list[str]:
    """A random half of the sites, which is the reference's budget."""
    order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed)).tolist()
    return [sites[i] for i in sorted(order[: len(sites) // 2])]
