"""Towers, images and caches of unusual layouts: found, spread over samples, or refused."""

import pytest
import torch
from family_models import folder_of
from PIL import Image
from torch import nn
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import images_of, spread
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import blocks_of, find_sites, left_out, tower_names
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.inference.decoding import select_rows


def sample(question, *images, answer="yes"):
    return Sample(question, question, answer, (answer,), tuple((lambda image=image: image) for image in images))


COLOURED = Image.new("RGB", (30, 24), (200, 40, 90))


@pytest.fixture
def own(backbone):
    """The tiny backbone with inputs of its own, which a test may change."""
    return Backbone("mine", "", backbone.model, backbone.processor)


# --- towers ---


def test_every_stack_of_blocks_of_a_tower_has_sites():
    model = meta_model(str(folder_of("mllama")))
    sites = find_sites(model, "attention")
    vision = [site for site in sites if site.modality == "vision"]
    for stack in ("transformer", "global_transformer"):
        assert any(site.name.startswith(f"model.vision_model.{stack}.layers.0.") for site in vision)
    assert {site.block for site in vision} == set(range(len(blocks_of(model, "vision"))))
    assert any("cross_attn" in site.name for site in sites if site.modality == "language")


def test_a_second_vision_encoder_has_sites_or_is_listed_as_neither_tower():
    both = meta_model(str(folder_of("deepseek_vl_hybrid")))
    vision = [site.name for site in find_sites(both, "attention") if site.modality == "vision"]
    assert any("high_res_vision_model" in name for name in vision) and any(".vision_model." in name for name in vision)
    parts = left_out(meta_model(str(folder_of("video_llava"))), "attention")
    told = [part.why for part in parts if "video_tower" in part.name and part.kind == "Linear"]
    assert told and set(told) == {"a part of model.video_tower, which is neither tower"}


def test_linear_modules_that_choose_experts_are_no_sites():
    model = meta_model(str(folder_of("llama4")))
    routers = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and type(m).__name__ == "Llama4Router"
    ]
    assert routers and not set(routers) & {site.name for site in find_sites(model, "linear")}
    assert "not a module that computes a product alone" in {part.why for part in left_out(model, "linear")}


def test_a_decoder_is_searched_without_its_output_head():
    assert tower_names(meta_model(str(folder_of("llama4"))))["language"] == "language_model.model"


def test_models_that_encode_their_prompt_apart_are_refused():
    with pytest.raises(DmoleError, match="T5Gemma2ForConditionalGeneration is an encoder-decoder model"):
        find_sites(meta_model(str(folder_of("t5gemma2"))), "attention")


# --- images ---


def test_pixels_under_an_unknown_name_are_refused(own):
    class Renaming(Family):
        def prepare(self, text, images):
            inputs = dict(super().prepare(text, images))
            return {("patches" if name == "pixel_values" else name): value for name, value in inputs.items()}

    own.inputs.family = Renaming(own.processor)
    with pytest.raises(
        DmoleError, match=r"returns images as .*patches and not as pixel_values: the model cannot be a backbone"
    ):
        own.encode(sample("Colour?", COLOURED), with_answer=True)
    assert len(own.encode(sample("Say a word."), with_answer=True).tokens)


def test_the_first_crop_is_no_whole_image_without_a_familys_word(backbone):
    family = Family(backbone.processor)
    for images, crops in ((1, 5), (2, 3)):
        with pytest.raises(DmoleError, match="unknown which of them shows an image as a whole"):
            family.whole_images({"pixel_values": torch.ones(images, crops, 3, 4, 4)}, torch.tensor([1]), images=images)
    pair = torch.rand(1, 2, 3, 4, 4)
    views = family.whole_images({"pixel_values": pair}, torch.tensor([1]), images=2)
    assert [torch.equal(view["pixel_values"], own) for view, own in zip(views, pair[0], strict=True)] == [True, True]


def test_numbers_that_may_count_within_a_batch_are_not_joined_without_a_familys_word(own):
    own.inputs.family = Family(own.processor)
    row = own.encode(sample("Colour?", COLOURED), with_answer=True)
    row.vision["image_token_pooling"] = torch.tensor([[0, 1], [2, -1]])
    with pytest.raises(DmoleError, match=r"image_token_pooling .* unknown how those of several samples are joined"):
        own.collate([row], left=False)


def test_tensors_of_single_images_stay_with_their_image():
    grids = torch.tensor([[1, 2, 2], [1, 4, 2]])
    vision = {"pixel_values": torch.arange(12.0)[:, None], "image_grid_thw": grids, "merge": torch.tensor([1, 2])}
    first, second = images_of({**vision, "all": torch.zeros(7)}, 2)
    assert first["pixel_values"].flatten().tolist() == [0, 1, 2, 3] and second["merge"] == 2
    assert len(second["pixel_values"]) == 8 and "all" not in first


# --- rows ---

OWNERS = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("shape", "per_sample", "expected", "packed"),
    [
        ((8, 5, 4), False, OWNERS.tolist(), False),
        ((8, 4), False, OWNERS.tolist(), False),
        ((1, 8, 4), False, OWNERS.tolist(), True),
        ((1, 4, 4), False, [0, 1, 2, 2], True),
        ((16, 3, 3, 4), False, OWNERS.repeat_interleave(2).tolist(), False),
        ((24, 4), True, OWNERS.repeat_interleave(3).tolist(), False),
        ((16, 7, 4), True, OWNERS.repeat_interleave(2).tolist(), False),
    ],
    ids=["rows", "patches", "packed", "merged", "windows", "flattened", "tiles attended to"],
)
def test_values_of_rows_are_spread_over_what_a_site_receives(shape, per_sample, expected, packed):
    values, found = spread(OWNERS, torch.zeros(shape), per_sample=per_sample)
    assert (values.tolist(), found) == (expected, packed)


@pytest.mark.parametrize(("shape", "per_sample"), [((16, 5, 4), False), ((9, 4), True), ((1, 3, 4), False)])
def test_rows_of_another_number_are_refused(shape, per_sample):
    with pytest.raises(DmoleError, match=f"a site received {shape[0]} rows, but the batch has 8"):
        spread(OWNERS, torch.zeros(shape), per_sample=per_sample)


# --- caches ---


class Layers:
    """What select_rows needs of a cache."""

    def __init__(self, *layers):
        self.layers = layers


def test_rows_of_recurrent_states_are_selected_with_those_of_attention():
    keys, states = torch.rand(3, 2, 4, 5), torch.rand(3, 6, 4)
    plain, linear, both = DynamicLayer(), LinearAttentionLayer(), LinearAttentionAndFullAttentionLayer()
    for layer in (plain, both):
        layer.update(keys, keys)
    for layer in (linear, both):
        layer.update_conv_state(states)
        layer.update_recurrent_state(states)
    select_rows("past_key_values", Layers(plain, linear, both), torch.tensor([2, 0]), 3)
    assert all(torch.equal(layer.keys, keys[[2, 0]]) for layer in (plain, both))
    for layer in (linear, both):
        assert torch.equal(layer.conv_states[0], states[[2, 0]])
        assert torch.equal(layer.recurrent_states[0], states[[2, 0]])


# --- what a processor refuses ---


class Particular(Family):
    """Refuses some images."""

    _refuses = None

    def prepare(self, text, images):
        if self._refuses(images):
            raise ValueError("cannot take this")
        return super().prepare(text, images)


@pytest.mark.parametrize(
    ("refuses", "message", "hint"),
    [
        (
            lambda images: len(images) == 2,
            "backbone 'mine' cannot prepare any sample with 2 images: cannot take",
            "whose processor takes such samples",
        ),
        (
            lambda images: bool(images),
            "backbone 'mine' cannot prepare any sample with an image: cannot take",
            "whose processor takes such samples",
        ),
        (
            lambda images: any(i.size == (7, 5) for i in images),
            "sample second cannot be prepared",
            "fix or remove this row",
        ),
    ],
    ids=["no pairs", "no images", "one image"],
)
def test_a_processor_that_refuses_every_sample_is_named_instead_of_the_row(own, refuses, message, hint):
    own.inputs.family = Particular(own.processor)
    own.inputs.family._refuses = refuses
    rows = [sample("first"), sample("second", Image.new("RGB", (7, 5))), sample("third", COLOURED, COLOURED)]
    batches = encoded_batches(own, rows, [[0], [1], [2]], with_answer=False)
    with pytest.raises(DmoleError, match=message) as raised:
        list(batches)
    assert hint in raised.value.hint
