"""Samples longer than train.max_length: what is truncated, what never is, and how it is reported."""

import json
from dataclasses import replace

import pytest
import tiny
import torch

from dmole_cli.backbones.backbone import IGNORED
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings, TrainSettings
from dmole_cli.training.batches import MicroBatches, counts_of, micro_batches

LONG = "First a story that nobody needs. " * 3 + "Colour, in one letter?"


@pytest.fixture
def sample(stream) -> Sample:
    row = samples(load_card(stream / "tasks" / "colours.toml"), "train")[0]
    return replace(row, question=LONG, answer="red and green")


def answer_of(backbone, encoded) -> str:
    return backbone.tokenizer.decode(encoded.labels[encoded.labels != IGNORED], skip_special_tokens=True)


def test_only_the_question_is_truncated_from_the_left(backbone, sample):
    whole = backbone.encode(sample, with_answer=True)
    limit = len(whole.tokens) - 60
    cut = encode_truncated(backbone, sample, max_length=limit)
    assert len(cut.tokens) == limit
    question = backbone.tokenizer.decode(cut.instruction)
    assert LONG.endswith(question) and question.endswith("Colour, in one letter?") and len(question) == len(LONG) - 60
    assert answer_of(backbone, cut) == answer_of(backbone, whole) == "red and green"
    assert all(torch.equal(cut.vision[key], whole.vision[key]) for key in whole.vision)


def test_a_sample_within_the_limit_is_unchanged(backbone, sample):
    whole = backbone.encode(sample, with_answer=True)
    for limit in (0, len(whole.tokens)):
        assert torch.equal(encode_truncated(backbone, sample, max_length=limit).tokens, whole.tokens)


def test_letters_of_several_tokens_are_cut_between_letters(backbone, sample):
    umlauts = replace(sample, question="ä" * 40)
    whole = backbone.encode(umlauts, with_answer=True)
    cut = encode_truncated(backbone, umlauts, max_length=len(whole.tokens) - 7)
    assert backbone.tokenizer.decode(cut.instruction) == "ä" * 36


def test_a_limit_below_template_images_and_answer_is_an_error(backbone, sample):
    with pytest.raises(DmoleError, match=f"{sample.sample_id}.*tokens of template, images and answer alone") as caught:
        encode_truncated(backbone, sample, max_length=12)
    assert "never cut" in caught.value.hint


def test_truncated_samples_are_counted_once(backbone, sample):
    rows = [replace(sample, question="Colour?"), sample]
    limit = len(backbone.encode(sample, with_answer=True).tokens) - 30
    order = [[1, 0], [0, 1], [1]]

    def batches(first: int):
        own = MicroBatches(order, counts_of([2, 2, 1], 1), 1, first=first)
        chosen = Settings(train=TrainSettings(max_length=limit))
        return list(
            micro_batches(backbone, rows, order, own, active=lambda step, row: (), settings=chosen, again=False)
        )

    found = batches(0)
    assert [batch.truncated for batch in found] == [1, 0, 0, 0, 0]
    assert [len(batch.encoded[0].tokens) for batch in found if batch.truncated] == [limit]
    assert [batch.truncated for batch in batches(1)] == [0, 0, 0]


def test_training_reports_the_number_of_truncated_samples(tmp_path, run):
    folder = tiny.write_stream(tmp_path)
    data = folder / "tasks" / "colours" / "train.jsonl"
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for record in records[:3]:
        record["conversations"][0]["value"] = f"<image>\n{LONG}"
    tiny.write_records(data, records)
    for command in ("profile", "allocate", "train-router"):
        tiny.succeed(command, "--task", "colours", cwd=folder, run=run)
    arguments = ("train-task", "--task", "colours", "--epochs", "1", "--json")
    [free] = json.loads(tiny.succeed(*arguments, cwd=folder, run=run).stdout)
    assert "shortened" not in free
    done = run(*arguments, "--max-length", "60", cwd=folder)
    assert done.returncode == 1 and "max_length None -> 60" in done.stderr  # another expert than before
    [cut] = json.loads(tiny.succeed(*arguments, "--max-length", "60", "--force", cwd=folder, run=run).stdout)
    assert cut["shortened"] == 3
    done = run(*arguments, "--max-length", "8", "--force", cwd=folder)
    assert done.returncode == 1 and "answer alone" in done.stderr and "Traceback" not in done.stderr
