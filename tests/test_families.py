"""Every family: the contract of its file, and results that do not depend on the batch or on how they are computed.

Parametrised over the shelf of families: a new file is tested without an edit here.
"""

import inspect
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from families_mixed import FAMILIES, experts, losses, samples, tiny_backbone, tiny_folder
from PIL import Image
from torch.nn import functional as F
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from dmole_cli import catalog
from dmole_cli.backbones.backbone import IGNORED
from dmole_cli.backbones.families.base import Family, family_class
from dmole_cli.backbones.sites import find_sites
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.profiling.passes import Pass
from dmole_cli.profiling.sensitivity import measure_sensitivity

SETS = [("vision",), ("all",), (), ("language", "all"), ("vision", "language"), ("all", "vision")]
EVERY = len(SETS)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(family):
    return tiny_backbone(family)


@pytest.fixture(scope="module")
def routed(backbone):
    routed = experts(backbone)
    yield routed
    routed.close()


@pytest.fixture(scope="module")
def asked(backbone):
    return [backbone.encode(sample, with_answer=False) for sample in samples()]


@pytest.fixture(scope="module")
def answered(backbone):
    return [backbone.encode(sample, with_answer=True) for sample in samples()]


# --- the contract ---


def test_a_family_file_conforms_to_the_contract(family):
    module = catalog.load("families", family)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    classes = [value for value in own.values() if isinstance(value, type)]
    public = {name for name, value in own.items() if not name.startswith("_") and value not in classes}
    assert family in CONFIG_MAPPING_NAMES, "the file is named after a model_type"
    assert public == {"tiny"} and list(inspect.signature(module.tiny).parameters) == ["folder", "seed"]
    assert family_class(family) is (classes[0] if classes else Family) and len(classes) <= 1
    for name, method in vars(family_class(family)).items():
        if inspect.isfunction(method) and hasattr(Family, name):
            assert parameters_of(method) == parameters_of(getattr(Family, name)), name


def parameters_of(method):
    return [(p.name, p.kind) for p in inspect.signature(method).parameters.values()]


def test_a_misspelt_method_is_refused():
    with pytest.raises(TypeError, match=r"Mine defines whole_image; a family can override: .*whole_images"):
        type("Mine", (Family,), {"whole_image": lambda self: []})


def test_a_family_without_a_file_uses_the_generic_methods():
    assert family_class("qwen2_vl") is Family


# --- losses ---


def test_answer_tokens_alone_carry_loss(backbone, answered, asked):
    for sample, row, question in zip(samples(), answered, asked, strict=True):
        learnt = row.labels != IGNORED
        assert backbone.tokenizer.decode(row.labels[learnt]) == sample.answer + backbone.tokenizer.eos_token
        assert torch.equal(row.tokens[~learnt], question.tokens) and torch.equal(row.tokens[learnt], row.labels[learnt])
        assert all(len(kind) == len(row.tokens) for kind in row.token_types.values())


def test_the_loss_is_the_models_own_one_sample_at_a_time(backbone, routed, answered):
    """Against `model(labels=...)` without padding, other samples and our selection of logits."""
    together = losses(backbone, routed, answered, [()] * EVERY)
    for row, loss in zip(answered, together, strict=True):
        inputs = {"input_ids": row.tokens[None], "labels": row.labels[None], **row.vision}
        inputs |= {key: kind[None] for key, kind in row.token_types.items()}
        with torch.no_grad():
            own = backbone.model(**inputs).loss
        torch.testing.assert_close(loss, own, rtol=1e-4, atol=1e-5)


def test_a_batch_with_its_experts_equals_each_sample_alone(backbone, routed, answered):
    """Experts on vision and on language sites, a set of its own for every sample."""
    together = losses(backbone, routed, answered, SETS)
    backwards = losses(backbone, routed, answered[::-1], SETS[::-1]).flip(0)
    alone = torch.cat([losses(backbone, routed, [row], [own]) for row, own in zip(answered, SETS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(backwards, alone, rtol=2e-4, atol=2e-5)
    plain = losses(backbone, routed, answered, [()] * EVERY)
    touched = (together - plain).abs() > 1e-3
    assert touched.tolist() == [bool(own) for own in SETS]


def test_a_vision_expert_changes_only_the_images_of_its_own_sample(backbone, routed, answered):
    plain = losses(backbone, routed, answered, [()] * EVERY)
    for number, row in enumerate(answered):
        sets = [("vision",) if other == number else () for other in range(EVERY)]
        moved = (losses(backbone, routed, answered, sets) - plain).abs() > 1e-4
        assert moved.tolist() == [other == number and bool(row.vision) for other in range(EVERY)]


def test_every_row_of_the_vision_encoder_has_an_owner(backbone, asked):
    """The rows that the first block of the vision encoder sees are as many as there are owners."""
    from dmole_cli.backbones.sites import block_stack

    seen = []
    block = backbone.vision.get_submodule(block_stack(backbone.vision))[0]
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        for rows in (asked, asked[1:3], [row for row in asked if row.vision][::-1]):
            inputs, owners = backbone.collate(rows, left=True)
            with torch.no_grad():
                backbone.model(**inputs)
            assert seen.pop() == len(owners["vision"])
    finally:
        hook.remove()


# --- answers ---


def alone(backbone, row, *, tokens):
    """The answer of the model's own `generate` to one sample, without padding."""
    inputs = {"input_ids": row.tokens[None], "attention_mask": torch.ones_like(row.tokens)[None], **row.vision}
    inputs |= {key: kind[None] for key, kind in row.token_types.items()}
    tokenizer = backbone.tokenizer
    out = backbone.model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=backbone.end_tokens,
    )
    return tokenizer.decode(out[0, len(row.tokens) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("sets", [[()] * EVERY, SETS], ids=["plain", "experts"])
def test_answers_are_those_of_the_models_own_decoding_one_at_a_time(backbone, routed, asked, sets, monkeypatch):
    monkeypatch.setattr(type(backbone), "end_tokens", property(lambda self: ENDS))
    expected = []
    for row, own in zip(asked, sets, strict=True):
        with routed.route([own], rows=backbone.collate([row], left=True)[1]):
            expected.append(alone(backbone, row, tokens=9))
    inputs, rows = backbone.collate(asked, left=True)
    backbone.counts.clear()
    with routed.route(sets, rows=rows):
        answers = generate(backbone, inputs, max_new_tokens=9, min_new_tokens=0, leave=routed.keep)
    assert answers == expected
    assert backbone.counts["decode_rows"] == backbone.counts["decode_rows_needed"]
    assert len(set(answers)) > 2


# Every fourth token of the alphabet ends an answer, so that rows finish at different steps.
ENDS = list(range(60, 300, 4))


def test_finished_rows_are_dropped(backbone, asked, monkeypatch):
    monkeypatch.setattr(type(backbone), "end_tokens", property(lambda self: ENDS))
    backbone.counts.clear()
    inputs, _ = backbone.collate(asked, left=True)
    generate(backbone, inputs, max_new_tokens=30, min_new_tokens=0)
    assert backbone.counts["decode_rows"] < 30 * EVERY


def test_likelihoods_are_those_of_whole_sequences_one_at_a_time(backbone, routed, asked):
    answers = [[sample.answer, "no", "something longer than that"] for sample in samples()]
    inputs, rows = backbone.collate(asked, left=True)
    with routed.route(SETS, rows=rows):
        found = answer_likelihoods(backbone, inputs, answers=answers, rows=4, narrow=routed.narrowed)
    for sample, row, own, scored in zip(samples(), answers, SETS, found, strict=True):
        for answer, value in zip(row, scored.sums, strict=True):
            whole = backbone.encode(replace(sample, answer=answer), with_answer=True)
            count = int((whole.labels != IGNORED).sum())
            loss = losses(backbone, routed, [whole], [own])[0]
            assert value == pytest.approx(-float(loss) * count, rel=1e-3, abs=1e-3)


# --- features ---


def test_features_depend_on_the_sample_alone_to_the_bit(backbone, asked):
    together = backbone.features(asked)
    for number, row in enumerate(asked):
        assert torch.equal(backbone.features([row])[0], together[number])
    assert torch.equal(backbone.features(asked[::-1] * 3)[:EVERY].flip(0), together)
    assert together.isfinite().all()
    assert torch.cdist(together, together).fill_diagonal_(1).min() > 1e-3


def test_features_are_of_the_instruction_and_the_whole_image(backbone, asked):
    """They contain neither the answer nor the chat template, and no tiles."""
    calls = []
    hook = backbone.vision.register_forward_hook(lambda module, args, output: calls.append(output.last_hidden_state))
    try:
        for number, sample in enumerate(samples()):
            calls.clear()
            whole = backbone.encode(sample, with_answer=True)
            width = backbone.feature_layout()[0]["width"]
            feature = backbone.features([whole])[0]
            words = backbone.tokenizer(sample.question, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states = backbone.language(input_ids=words, use_cache=False).last_hidden_state[0]
            top = F.normalize(states.amax(dim=0), dim=0)
            torch.testing.assert_close(F.normalize(feature[width:], dim=0), top, rtol=1e-4, atol=1e-5)
            assert torch.equal(feature, backbone.features([asked[number]])[0])
            assert bool(calls) == bool(sample.images)
            assert bool(feature[:width].any()) == bool(sample.images)
    finally:
        hook.remove()


def test_whole_images_resemble_the_images(backbone, asked):
    """Of all tiles, the one used as the whole image correlates best with the resized image."""
    for sample, row in zip(samples(), asked, strict=True):
        views = backbone._whole_images(row)
        assert len(views) == len(sample.images)
        if not views or "image_grid_thw" in row.vision:
            continue
        tiles = row.vision["pixel_values"].flatten(0, -4)
        for view, opener in zip(views, sample.images, strict=True):
            similarity = torch.stack([correlation(tile, opener()) for tile in tiles])
            assert torch.equal(tiles[similarity.argmax()], view["pixel_values"])
    packed = [row for row in asked if "image_grid_thw" in row.vision]
    for row in packed:
        together = torch.cat([view["pixel_values"] for view in backbone._whole_images(row)])
        assert torch.equal(together, row.vision["pixel_values"])


def correlation(tile, image):
    """Correlation of a tile [channels, height, width] with an image."""
    pixels = np.asarray(image.convert("RGB").resize((tile.shape[2], tile.shape[1])), dtype=np.float32)
    pair = torch.stack([tile.flatten(), torch.from_numpy(pixels).permute(2, 0, 1).flatten()])
    return torch.corrcoef(pair)[0, 1]


# --- cached vision features, lengths ---


def test_cached_vision_features_do_not_change_results(backbone, routed, answered, asked, tmp_path):
    seen = VisionFeatureCache(backbone, folder=tmp_path, limit=2**20)
    sets = [("language",), (), ("language",), (), (), ("language",)]
    expected = losses(backbone, routed, answered, sets)
    backbone.counts.clear()
    for _ in range(2):
        torch.testing.assert_close(losses(backbone, routed, answered, sets, seen=seen), expected, rtol=1e-4, atol=1e-5)
    encoded = backbone.counts["vision_rows"]
    assert encoded == sum(backbone.family.vision_rows(row.vision) for row in answered if row.vision)
    few = [answered[i] for i in (4, 2, 3)]
    torch.testing.assert_close(
        losses(backbone, routed, few, [(), ("language",), ()], seen=seen), expected[[4, 2, 3]], rtol=1e-4, atol=1e-5
    )
    inputs, _ = backbone.collate(asked, left=True)
    plain = generate(backbone, dict(inputs), max_new_tokens=6, min_new_tokens=0)
    assert generate(backbone, seen.replace(inputs, asked), max_new_tokens=6, min_new_tokens=0) == plain
    seen.close()


def test_lengths_are_the_tokens_but_for_the_template(backbone, asked):
    """Samples with equal numbers of images have the same template, which lengths do not count."""
    lengths = backbone.lengths(samples(), with_answer=False)
    left_out = {}
    for sample, row, length in zip(samples(), asked, lengths, strict=True):
        left_out.setdefault(len(sample.images), set()).add(len(row.tokens) - length)
    assert all(len(found) == 1 for found in left_out.values())
    assert max(left_out[1]) - min(left_out[0]) <= 6, "the tokens of the image itself are counted"


def test_batches_profiled_in_one_pass_have_the_gradients_of_batches_alone(backbone, answered):
    """Rows of images belong to their batch also where they are packed; a batch may have no image."""
    sites, parts = find_sites(backbone.model, "linear"), [answered[:2], answered[3:4], answered[2:3]]
    alone = measure_sensitivity(backbone, sites, parts)
    together = measure_sensitivity(backbone, sites, [Pass(1, parts)])
    for one, two in zip(alone, together, strict=True):
        assert (two.score, two.norm_mean) == pytest.approx((one.score, one.norm_mean), rel=1e-4, abs=1e-7), one.site


# --- from the command line ---


def test_five_stages_from_a_folder_on_disk(family, run, tmp_path):
    """The second task is evaluated with both experts; a repeated stage is up to date."""
    tiny_folder(family)  # written once
    stream(tmp_path, tiny_folder(family))
    for stage in ("profile", "allocate", "train-router", "train-task"):
        tiny.succeed(stage, cwd=tmp_path, run=run)
    done = tiny.succeed("evaluate", "--likelihood", "--json", cwd=tmp_path, run=run)
    profile = pq.read_table(tmp_path / "dmole-run/profiles/colours.parquet").to_pylist()
    scores = {modality: [row["score"] for row in profile if row["modality"] == modality] for modality in TOWERS}
    assert all(max(found) > 0 for found in scores.values()), "gradients reach both towers"
    allocation = json.loads((tmp_path / "dmole-run/allocations/halves.json").read_text(encoding="utf-8"))
    assert {site in names(family, "vision") for site in allocation["sites"]} == {True, False}
    rows = pq.read_table(tmp_path / "dmole-run/evaluations/d-mole/2/halves.parquet").to_pylist()
    assert len(rows) == 3 and json.loads(done.stdout)
    again = tiny.succeed("train-task", cwd=tmp_path, run=run)
    assert again.stderr.count("up to date") == 2


TOWERS = ("vision", "language")


def names(family, modality):
    return {site.name for site in find_sites(tiny_backbone(family).model, "attention") if site.modality == modality}


def stream(folder, backbone, settings=""):
    """Two small tasks with images of several shapes, and a configuration."""
    for name in tiny.TASKS:
        tiny.write_task(folder / "tasks", name, train=12, test=3)
        for number, file in enumerate(sorted((folder / "tasks" / name / "pictures").glob("*.png"))):
            if number % 3:
                Image.open(file).resize([(72, 30), (30, 60)][number % 2]).save(file)
    (folder / "dmole.toml").write_text(
        f'backbone = "{backbone}"\ndevice = "cpu"\ntasks = ["tasks/colours.toml", "tasks/halves.toml"]\nunseen = []\n'
        f'{settings}[profile]\nportion = 0.5\nbatch_size = 3\n[allocate]\nbudget = "sites:50%"\nrank = 2\n'
        "[router]\nepochs = 20\n[train]\nepochs = 1\nbatch_size = 4\n[evaluate]\nbatch_size = 4\n",
        encoding="utf-8",
    )
