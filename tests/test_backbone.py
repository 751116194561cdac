"""The backbone adapter on a tiny LLaVA-class model: sites, loss, features, and every sample of a batch on its own."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from transformers import BlipProcessor

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.inputs import DEFAULT_IMAGE_TOKENS
from dmole_cli.backbones.loading import fingerprint_of, load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.images import open_image
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate as generate_answers

VISION, LANGUAGE = "model.vision_tower.encoder.layers", "model.language_model.layers"
ATTENTION = {VISION: ("k_proj", "v_proj", "q_proj", "out_proj"), LANGUAGE: ("q_proj", "k_proj", "v_proj", "o_proj")}


def draw(*colour: int, side: int = tiny.SIDE) -> Image.Image:
    image = Image.new("RGB", (side, side), colour)
    image.paste((255 - colour[0], colour[1], 90), (0, 0, side // 3, side // 2))
    return image


def sample(question: str, *colours: tuple[int, int, int], answer: str = "yes") -> Sample:
    return Sample(question, question, answer, (answer,), tuple((lambda c=c: draw(*c)) for c in colours))


def stored(folder: Path, sizes: list[tuple[int, int]]) -> Sample:
    """A sample whose images (width, height) are files."""
    files = [folder / f"{width}x{height}.png" for width, height in sizes]
    for file, size in zip(files, sizes, strict=True):
        Image.new("RGB", size, (9, 99, 199)).save(file)
    opened = tuple(partial(open_image, file, row="here") for file in files)
    return Sample(str(sizes), "Colour?", "blue", ("blue",), opened, files=tuple(files))


SAMPLES = [
    sample("Colour?", (200, 10, 10)),
    sample("Which half of this picture is white, and which one is not?", (20, 20, 220), answer="the left half"),
    sample("Is it?", (20, 220, 30), (240, 240, 0), answer="no"),
    sample("Say a word.", answer="word"),
    sample("How many are there in all of these?", (0, 0, 0), (255, 255, 255), (9, 99, 199), answer="3"),
    sample("Letter?", (128, 128, 128), answer="k"),
    sample("What is two and two?", answer="four"),
    sample("Colour of the half that is on the right?", (10, 200, 190)),
]


def encoded(backbone, samples, *, with_answer=False):
    return [backbone.encode(s, with_answer=with_answer) for s in samples]


# --- sites ---


def test_attention_sites_of_both_towers_in_forward_order(backbone):
    sites = find_sites(backbone.model, "attention")
    expected = [
        f"{stack}.{block}.self_attn.{kind}" for stack in ATTENTION for block in (0, 1) for kind in ATTENTION[stack]
    ]
    assert [site.name for site in sites] == expected
    assert [site.modality for site in sites] == ["vision"] * 8 + ["language"] * 8
    assert [backbone.modality_of(site.name) for site in sites] == [site.modality for site in sites]
    assert [site.block for site in sites] == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    for site in sites:
        module = backbone.model.get_submodule(site.name)
        assert site.kind == site.name.rpartition(".")[2]
        assert (site.out_features, site.in_features) == tuple(module.weight.shape)
        assert site.parameters == sum(p.numel() for p in module.parameters())
        assert site.expert_parameters(3) == 3 * (site.in_features + site.out_features)


def test_linear_adds_the_mlps_and_nothing_outside_of_the_blocks(backbone):
    names = [site.name for site in find_sites(backbone.model, "linear")]
    assert len(names) == 2 * (4 + 2) + 2 * (4 + 3)
    assert f"{VISION}.1.mlp.fc1" in names and f"{LANGUAGE}.0.mlp.gate_proj" in names
    assert not [name for name in names if "projector" in name or "lm_head" in name]


def test_a_regular_expression_chooses_by_module_path(backbone):
    names = [site.name for site in find_sites(backbone.model, r"layers\.1\..*(q_proj|fc2)$")]
    assert names == [f"{VISION}.1.self_attn.q_proj", f"{VISION}.1.mlp.fc2", f"{LANGUAGE}.1.self_attn.q_proj"]


@pytest.mark.parametrize(("pattern", "message"), [("nowhere", "no site"), ("(", "not a regular expression")])
def test_an_expression_without_matches_is_an_error(backbone, pattern, message):
    with pytest.raises(DmoleError, match=message):
        find_sites(backbone.model, pattern)


# --- loss ---


def test_the_answer_loss_is_the_models_own(backbone):
    rows = encoded(backbone, SAMPLES, with_answer=True)
    inputs, _ = backbone.collate(rows, left=False)
    with torch.no_grad():
        ours, theirs = backbone.answer_loss(inputs), backbone.model(**inputs).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_only_answer_and_end_token_carry_loss(backbone):
    row = backbone.encode(SAMPLES[1], with_answer=True)
    trained = row.labels[row.labels != -100]
    assert backbone.tokenizer.decode(trained) == "the left half<end>"
    assert len(row.labels) == len(row.tokens)
    prompt = backbone.encode(SAMPLES[1], with_answer=False)
    assert torch.equal(row.tokens[: len(prompt.tokens)], prompt.tokens) and prompt.labels is None


def test_the_prompt_is_the_chat_templates(backbone):
    for question in ("Colour?", "Is {this} it?\n  yes", "@@ <b> \\1 'a' \"b\""):
        row = backbone.encode(replace(SAMPLES[0], question=question), with_answer=False)
        images = "<image>" * tiny.IMAGE_TOKENS
        assert backbone.tokenizer.decode(row.tokens) == f"<user>{images}{question}<assistant>"
        assert backbone.tokenizer.decode(row.instruction) == question


# --- features ---


def test_lengths_count_the_tokens_of_tiles_without_opening_an_image(backbone, tmp_path):
    tiled = Backbone("tiled", "", backbone.model, tiny.tiling_processor(backbone.tokenizer))
    samples = [stored(tmp_path, sizes) for sizes in ([(24, 24)], [(96, 24)], [(24, 72)], [(100, 60), (96, 24)], [])]
    tokens = [len(tiled.encode(s, with_answer=True).tokens) for s in samples]
    lengths = tiled.lengths(samples, with_answer=True)
    assert [t - len("blue ") for t in lengths] == tiled.lengths(samples, with_answer=False)
    assert len(set(tokens)) == len(tokens)
    assert {t - counted for t, counted in zip(tokens, lengths, strict=True)} == {
        2
    }  # the template, without the space before the answer
    broken = replace(samples[0], files=(tmp_path / "gone.png",))
    assert tiled.lengths([broken], with_answer=True)[0] > lengths[0]  # counts as an image of the default size


def test_lengths_of_samples_with_equal_images_follow_their_texts(backbone):
    with_image = [s for s in SAMPLES if len(s.images) == 1]
    lengths = backbone.lengths(with_image, with_answer=True)
    assert lengths == [len(f"{s.question} {s.answer}".encode()) + tiny.IMAGE_TOKENS for s in with_image]


def test_lengths_with_a_processor_that_does_not_count_image_tokens(backbone):
    uncounted = BlipProcessor(backbone.processor.image_processor, backbone.tokenizer)
    assert not hasattr(uncounted, "_get_num_multimodal_tokens")
    lengths = Backbone("uncounted", "", backbone.model, uncounted).lengths(SAMPLES, with_answer=True)
    images = [len(s.images) for s in SAMPLES]
    assert [length // DEFAULT_IMAGE_TOKENS for length in lengths] == images


def test_features_do_not_depend_on_the_batch(backbone):
    rows = encoded(backbone, SAMPLES)
    together = backbone.features(rows)
    assert together.shape == (len(SAMPLES), sum(part["width"] for part in backbone.feature_layout()))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(SAMPLES)))
    alone = torch.cat([backbone.features([row]) for row in rows])
    assert torch.equal(together, alone), "to the bit"
    assert torch.equal(together, backbone.features(rows[::-1]).flip(0))
    crowd = backbone.features([*rows[3:], *rows * 5])
    assert torch.equal(crowd, torch.cat([together[3:], *[together] * 5])), "more items than a fixed batch"
    distances = torch.cdist(together, together) + torch.eye(len(SAMPLES))
    assert float(distances.min()) > 1e-3, "samples that differ have features that differ"


def test_features_contain_neither_answer_nor_template(backbone):
    plain = encoded(backbone, SAMPLES)
    other = [replace(s, answer="something else") for s in SAMPLES]
    assert torch.equal(backbone.features(encoded(backbone, other, with_answer=True)), backbone.features(plain))
    for row in plain:
        row.tokens = torch.randint(10, 100, row.tokens.shape)
    assert torch.equal(backbone.features(plain), backbone.features(encoded(backbone, SAMPLES)))


def test_features_are_the_maxima_of_the_paper(backbone):
    one = SAMPLES[2]
    row = backbone.encode(one, with_answer=False)
    with torch.no_grad():
        images = backbone.vision(pixel_values=row.vision["pixel_values"]).last_hidden_state
        words = backbone.tokenizer(one.question, add_special_tokens=False, return_tensors="pt")["input_ids"]
        text = backbone.language(input_ids=words).last_hidden_state
    expected = torch.cat([images.flatten(0, 1).amax(0), text[0].amax(0)])
    torch.testing.assert_close(backbone.features([row])[0], expected / expected.norm(), rtol=1e-5, atol=1e-6)
    assert len(images) == 2


def test_vision_features_without_an_image_are_zeros(backbone):
    width = backbone.feature_layout()[0]["width"]
    (feature,) = backbone.features(encoded(backbone, [SAMPLES[3]]))
    assert torch.equal(feature[:width], torch.zeros(width)) and float(feature[width:].norm()) > 0.9


# --- every sample with its own experts ---


@pytest.fixture
def routed(backbone):
    """Four experts strong enough to change answers: on all sites, on the vision tower, on the language model, on two."""
    sites = [site for site in find_sites(backbone.model, "attention")]
    towers = {name: [s for s in sites if s.modality == name] for name in ("vision", "language")}
    placed = {"all": sites, "vision": towers["vision"], "language": towers["language"], "few": [sites[3], sites[12]]}
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    generator = torch.Generator().manual_seed(8)
    for rank, (name, chosen) in enumerate(placed.items(), start=2):
        expert = tiny.draw_expert(chosen, rank, scale=1.0 + 0.25 * rank, generator=generator, spread=0.4)
        routed.add(name, expert)
    yield routed
    routed.close()


SETS = [
    ("all",),
    ("vision",),
    ("vision", "language"),
    (),
    ("few", "all", "vision"),
    ("language",),
    ("all", "few"),
    ("vision",),
]


def logits(backbone, routed, samples, sets):
    inputs, rows = backbone.collate(encoded(backbone, samples), left=True)
    with torch.no_grad(), routed.route(sets, rows=rows):
        return backbone.model(**inputs).logits[:, -1]


def test_images_of_a_sample_pass_through_its_experts(backbone, routed):
    two, one = SAMPLES[2], SAMPLES[0]
    sets = [("vision",), ("all",)]
    together = logits(backbone, routed, [two, one], sets)
    for i, which in enumerate((two, one)):
        torch.testing.assert_close(together[i], logits(backbone, routed, [which], [sets[i]])[0], rtol=1e-4, atol=1e-4)
    swapped = logits(backbone, routed, [two, one], sets[::-1])
    assert float((swapped - together).abs().amax(dim=1).min()) > 0.01, "each sample is computed with its own experts"


def test_a_batch_with_its_experts_equals_each_sample_alone(backbone, routed):
    together = logits(backbone, routed, SAMPLES, SETS)
    for i, which in enumerate(SAMPLES):
        torch.testing.assert_close(together[i], logits(backbone, routed, [which], [SETS[i]])[0], rtol=1e-4, atol=1e-4)


def test_a_text_only_batch(backbone, routed):
    texts = [SAMPLES[3], SAMPLES[6]]
    inputs, rows = backbone.collate(encoded(backbone, texts), left=True)
    assert "pixel_values" not in inputs and rows["vision"].numel() == 0
    found = logits(backbone, routed, texts, [("all",), ()])
    torch.testing.assert_close(found[1], logits(backbone, routed, [SAMPLES[6]], [()])[0], rtol=1e-4, atol=1e-4)


def generate(backbone, routed, samples, sets, *, batch):
    out = []
    for start in range(0, len(samples), batch):
        inputs, rows = backbone.collate(encoded(backbone, samples[start : start + batch]), left=True)
        with routed.route(sets[start : start + batch], rows=rows):
            out += generate_answers(backbone, inputs, max_new_tokens=8, min_new_tokens=8)
    return out


def test_greedy_answers_do_not_depend_on_the_batch_size(backbone, routed):
    alone = generate(backbone, routed, SAMPLES, SETS, batch=1)
    assert generate(backbone, routed, SAMPLES, SETS, batch=3) == alone
    assert generate(backbone, routed, SAMPLES, SETS, batch=8) == alone
    bare = generate(backbone, routed, SAMPLES, [()] * len(SAMPLES), batch=8)
    changed = [mine != plain for mine, plain in zip(alone, bare, strict=True)]
    # A vision expert has no input in samples without images; all other experts change the answers.
    assert changed == [bool(names) for names in SETS]


def test_experts_apply_when_decoding_with_a_cache(backbone, routed):
    """Token by token without a cache, with the same experts, gives the answer that generation with a cache gave."""
    index = 0
    (answer,) = generate(backbone, routed, [SAMPLES[index]], [SETS[index]], batch=1)
    inputs, rows = backbone.collate(encoded(backbone, [SAMPLES[index]]), left=True)
    tokens = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    start = tokens.shape[1]
    for _ in range(8):
        with torch.no_grad(), routed.route([SETS[index]], rows=rows):
            scores = backbone.model(input_ids=tokens, **inputs, use_cache=False).logits[0, -1]
        scores[backbone.tokenizer.eos_token_id] = float("-inf")
        tokens = torch.cat([tokens, scores.argmax()[None, None]], dim=1)
    assert backbone.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip() == answer


def test_dropping_finished_rows_does_not_change_answers(backbone, routed, monkeypatch):
    """Compared with the decoding loop of transformers, which computes every row until the longest answer ends."""
    inputs, rows = backbone.collate(encoded(backbone, SAMPLES), left=True)
    prompt, pad = inputs["input_ids"].shape[1], backbone.tokenizer.pad_token_id

    def plain(end: int) -> list[list[int]]:
        with routed.route(SETS, rows=rows):
            out = backbone.model.generate(
                **inputs, max_new_tokens=10, do_sample=False, pad_token_id=pad, eos_token_id=end
            )
        return [row[prompt:].tolist() for row in out]

    never = len(backbone.tokenizer) - 1
    generated = plain(never)
    # The token whose first use differs most from row to row stands for the end of an answer.
    end = max(
        {t for row in generated for t in row},
        key=lambda t: len({row.index(t) if t in row else -1 for row in generated}),
    )
    expected = [row[: row.index(end) + 1] if end in row else row for row in plain(end)]
    assert len({len(row) for row in expected}) > 2, "the answers are of several lengths"
    monkeypatch.setattr(type(backbone.tokenizer), "eos_token_id", end, raising=False)
    backbone.counts.clear()
    with routed.route(SETS, rows=rows):
        answers = generate_answers(backbone, inputs, max_new_tokens=10, min_new_tokens=0, leave=routed.keep)
    decode = backbone.tokenizer.batch_decode
    assert answers == [text.strip() for text in decode(expected, skip_special_tokens=True)]
    assert backbone.counts["generations"] == len(SAMPLES)
    needed = sum(len(row) for row in expected)
    assert backbone.counts["decode_rows"] == backbone.counts["decode_rows_needed"] == needed
    assert needed < len(SAMPLES) * 10


@pytest.mark.parametrize(("room", "again"), [(9, 0), (2, 1), (1, 2), (0, 3)])
def test_images_without_vision_experts_are_encoded_once(backbone, routed, tmp_path, room, again):
    """Losses with and without the cache are equal, for any batch and limit; no file remains.

    The first sample has two images and is cached completely or not at all, the second one has one, the third none.
    """
    size = tiny.IMAGE_TOKENS * backbone.language.config.hidden_size * 4
    seen = VisionFeatureCache(backbone, folder=tmp_path / "cache", limit=room * size)
    sets = [("language",), (), ("language",)]
    rows = encoded(backbone, [SAMPLES[2], SAMPLES[0], SAMPLES[3]], with_answer=True)

    def loss(order, *, cached: bool) -> torch.Tensor:
        chosen = [rows[i] for i in order]
        inputs, vision = backbone.collate(chosen, left=False)
        with torch.no_grad(), routed.route([sets[i] for i in order], rows=vision):
            return backbone.answer_loss(seen.replace(inputs, chosen) if cached else inputs)

    for order in ([0, 1, 2], [1, 0], [2]):
        torch.testing.assert_close(loss(order, cached=True), loss(order, cached=False), rtol=1e-5, atol=1e-6)
    backbone.counts.clear()
    loss([0, 1, 2], cached=True)
    assert backbone.counts["vision_rows"] == again
    seen.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- loading ---


def test_the_fingerprint_is_of_the_files(stream, tmp_path):
    assert fingerprint_of(str(stream / "backbone")) == fingerprint_of(str(stream / "backbone") + "/")
    again = tiny.build_backbone(tmp_path / "again")
    assert fingerprint_of(str(again)) == fingerprint_of(str(stream / "backbone"))
    other = tiny.build_backbone(tmp_path / "other", seed=1)
    assert fingerprint_of(str(other)) != fingerprint_of(str(again))


def test_a_loaded_backbone_is_frozen_and_counts_shared_weights_once(stream):
    loaded = load_backbone(str(stream / "backbone"))
    assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training
    assert loaded.parameters == sum(p.numel() for p in {id(p): p for p in loaded.model.parameters()}.values())
    assert loaded.dtype == torch.float32
