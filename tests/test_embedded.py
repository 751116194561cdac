"""The shipped backbone: standard classes, small, and above chance before any training."""

import math
from pathlib import Path

import pytest

from dmole_cli.backbones.files import EMBEDDED
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples
from dmole_cli.inference.decoding import generate


@pytest.fixture(scope="module")
def embedded():
    from dmole_cli.backbones.loading import load_backbone

    return load_backbone("embedded")


def test_loads_with_the_standard_classes_and_no_code():
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

    assert not list(EMBEDDED.glob("*.py"))
    model = AutoModelForImageTextToText.from_pretrained(EMBEDDED, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(EMBEDDED, trust_remote_code=False)
    assert type(model) is LlavaForConditionalGeneration
    assert processor.tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_size():
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) < 20_000_000
    assert all(f.suffix in {".safetensors", ".json", ".jinja", ".md"} for f in EMBEDDED.iterdir())


def test_parameters_and_sites(embedded):
    from dmole_cli.backbones.sites import find_sites

    assert 2_000_000 <= embedded.parameters <= 8_000_000
    sites = find_sites(embedded.model, "attention")
    assert {s.modality for s in sites} == {"vision", "language"}
    assert [s.modality for s in sites] == sorted((s.modality for s in sites), reverse=True)


def test_zero_shot_is_above_chance_on_counting(embedded):
    card = load_card("counting")
    rows = samples(card, "validation")
    answers = []
    for start in range(0, len(rows), 100):
        encoded = [embedded.encode(row, with_answer=False) for row in rows[start : start + 100]]
        inputs, _ = embedded.collate(encoded, left=True)
        answers += generate(embedded, inputs, max_new_tokens=4, min_new_tokens=0)
    right = sum(a == row.answer for a, row in zip(answers, rows, strict=True)) / len(rows)
    chance = 1 / 6  # counts from one to six, equally often
    assert right > chance + 3 * math.sqrt(chance * (1 - chance) / len(rows))


@pytest.mark.parametrize("task", ["counting", "digits", "grounding"])
def test_features_are_bit_identical_in_any_batch(embedded, task):
    """At this matrix size, libraries sum in another order for fewer or padded rows."""
    import torch

    rows = [embedded.encode(row, with_answer=False) for row in samples(load_card(task), "validation")[:40]]
    together = embedded.features(rows)
    assert torch.equal(together, torch.cat([embedded.features([row]) for row in rows]))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [embedded.features([rows[i] for i in part]) for part in order.split(7)]
    assert torch.equal(together[order], torch.cat(parts))


def test_pretraining_images_are_in_no_task():
    from dmole_cli.data.synthetic._emoji_items import emoji_sets

    reserved = {Path(item.path).name for item in emoji_sets()["pretraining"]}
    assert len(reserved) > 300
    for task in ("emoji", "grounding"):
        for split in ("train", "validation", "test"):
            used = {source.split(":", 1)[1] for row in samples(load_card(task), split) for source in row.sources}
            assert used
            assert not {f"{item.removesuffix('.png')}.png" for item in used} & reserved
