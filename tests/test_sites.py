"""`dmole sites`: the sites of any model and what is left out with the reason, from the configuration alone."""

import json
import shutil

import pytest
import tiny
import torch
from builders import every_family, family  # noqa: F401 - a fixture
from transformers import AutoConfig, AutoModelForImageTextToText

from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.reach import find_candidates, unreached_sites
from dmole_cli.backbones.sites import block_stack, find_sites, left_out, tower_names
from dmole_cli.errors import DmoleError

# Published configurations, with various module names, depths, and fused projections.
SHAPES = {
    "internvl": ("attention.projection_layer", "self_attn.o_proj"),
    "llava_onevision": ("self_attn.out_proj", "self_attn.o_proj"),
    "qwen2_5_vl": ("attn.qkv", "self_attn.o_proj"),
    "smolvlm": ("self_attn.out_proj", "self_attn.o_proj"),
    "idefics3": ("self_attn.out_proj", "self_attn.o_proj"),
    "paligemma": ("self_attn.out_proj", "self_attn.o_proj"),
    "gemma3": ("self_attn.out_proj", "self_attn.o_proj"),
    "lfm2_vl": ("self_attn.out_proj", "self_attn.out_proj"),  # most of its language blocks have no attention
    "mllama": ("self_attn.o_proj", "cross_attn.o_proj"),
}


def internvl2_2b():
    """InternVL2-2B's shape: InternViT-300M, and a language model of InternLM2-1.8B's widths."""
    from transformers import InternVLConfig, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    widths = {"vocab_size": 92553, "hidden_size": 2048, "intermediate_size": 8192, "tie_word_embeddings": False}
    text = Qwen2Config(**widths, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8)
    return InternVLConfig(vision_config=InternVLVisionConfig(), text_config=text, tie_word_embeddings=False)


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@every_family
def test_a_family_is_searched_without_its_weights(family, tmp_path, run):  # noqa: F811
    (tmp_path / "only").mkdir()
    shutil.copy(family / "config.json", tmp_path / "only")
    said = json.loads(tiny.succeed("sites", "--backbone", "only", "--json", cwd=tmp_path, run=run).stdout)
    whole = AutoModelForImageTextToText.from_pretrained(family)
    assert said["parameters"] == sum(p.numel() for p in whole.parameters())
    assert sum(part["parameters"] for part in (*said["sites"], *said["left_out"])) == said["parameters"]
    names = [site["name"] for site in said["sites"]]
    assert names == [site.name for site in find_candidates(whole, "attention")] and len(set(names)) == len(names)
    every = find_sites(whole, "attention")
    unreached = {(site.modality, site.block) for site in every if site.name in unreached_sites(whole, every)}
    towers = tower_names(whole)
    for site in said["sites"]:
        module = whole.get_submodule(site["name"])
        assert (site["out_features"], site["in_features"]) == tuple(module.weight.shape)
        assert site["name"].startswith(f"{towers[site['modality']]}.") and f".{site['block']}." in site["name"]
    for modality, tower in towers.items():
        blocks = len(whole.get_submodule(tower).get_submodule(block_stack(whole.get_submodule(tower))))
        reached = {block for block in range(blocks) if (modality, block) not in unreached}
        assert {site["block"] for site in said["sites"] if site["modality"] == modality} == reached
    whys = {part["why"] for part in said["left_out"]}
    assert {"not matched by --sites attention", "an embedding"} <= whys
    assert {"the output head", "the projector between the towers"} <= whys


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_attention_and_mlp_sites_in_both_towers(shape):
    model = on_meta(AutoConfig.for_model(shape))
    attention, linear = find_sites(model, "attention"), find_sites(model, "linear")
    for modality, name in zip(("vision", "language"), SHAPES[shape], strict=True):
        own = [site.name for site in attention if site.modality == modality]
        more = [site.name for site in linear if site.modality == modality]
        assert any(site.endswith(name) for site in own), own[:4]
        assert set(own) < set(more), "the feed-forward layers are linear as well"
    total = sum(p.numel() for p in model.parameters())
    for pattern, sites in (("attention", attention), ("linear", linear)):
        assert sum(part.parameters for part in (*sites, *left_out(model, pattern))) == total


def test_the_sites_of_two_billion_parameters():
    model = on_meta(internvl2_2b())
    sites = find_sites(model, "attention")
    assert [s.modality for s in sites] == ["vision"] * 96 + ["language"] * 96
    assert {(s.kind, s.in_features, s.out_features) for s in sites} == {
        *((kind, 1024, 1024) for kind in ("q_proj", "k_proj", "v_proj", "projection_layer")),
        *((kind, 2048, 2048) for kind in ("q_proj", "o_proj")),
        *((kind, 2048, 1024) for kind in ("k_proj", "v_proj")),
    }
    assert len(find_sites(model, "linear")) == 24 * 6 + 24 * 7


def test_the_table_lists_paths_and_reasons(stream, run):
    text = tiny.succeed("sites", "--backbone", "backbone", cwd=stream, run=run).stdout
    assert "model.language_model.layers.*.self_attn.o_proj" in text and "0-1" in text
    assert "not matched by --sites attention" in text and "the projector between the towers" in text
    more = tiny.succeed("sites", "--backbone", "backbone", "--sites", "linear", cwd=stream, run=run).stdout
    assert "not matched by" not in more and "layers.*.mlp.fc1" in more


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no config.json"), ("{", "cannot be built"), ('{"model_type": "bert"}', "cannot be built")],
)
def test_an_invalid_backbone_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(DmoleError, match=message):
        meta_model(str(tmp_path))
