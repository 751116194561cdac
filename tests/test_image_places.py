"""Images stand where the question says, with every chat template; texts with a backbone's own image tokens are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
from families_mixed import draw, tiny_folder
from PIL import Image

from dmole_cli.backbones.image_layouts import runs_of
from dmole_cli.backbones.loading import load_inputs
from dmole_cli.backbones.preview import SamplePreview
from dmole_cli.backbones.prompts import image_tokens, keeps_order, text_of_an_image
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.inference.decoding import generate

PLACES = ["embedded", "internvl", "llava", "paligemma", "qwen2_5_vl"]
# As the templates of LLaVA on the hub: all images first.
HOISTING = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(params=PLACES)
def inputs(request):
    return inputs_of(request.param)


def inputs_of(name):
    return load_inputs(name if name == "embedded" else str(tiny_folder(name)))[0]


def sample(question: str, *, images: int = 2, answer: str = "red") -> Sample:
    opened = [lambda number=number: draw(24 + 6 * number, 30, number) for number in range(images)]
    return Sample("row-7", question, answer, (answer,), tuple(opened))


def around(inputs, encoded) -> list[str]:
    """The texts before, between and after the images."""
    token = inputs.tokenizer.convert_tokens_to_ids(getattr(inputs.processor, "image_token", "<image>"))
    starts = runs_of(encoded.tokens, token)
    cuts = [0, *(position for start, length in starts for position in (start, start + length)), len(encoded.tokens)]
    pieces = [inputs.tokenizer.decode(encoded.tokens[a:b]) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    return [piece.replace(" ", "") for piece in pieces]


def test_images_stand_where_the_question_says(inputs):
    encoded = inputs.encode(sample("First <image> then <image>: which?"), with_answer=False)
    before, between, after = around(inputs, encoded)
    assert "First" in before and "then" in between and ":which?" in after
    assert inputs.tokenizer.decode(encoded.instruction).split() == ["First", "then", ":", "which?"] or (
        inputs.tokenizer.decode(encoded.instruction).replace(" ", "") == "Firstthen:which?"
    )
    assert inputs.instruction_lengths([sample("First <image> then <image>: which?")]) == [len(encoded.instruction)]


def test_leading_markers_change_nothing(inputs):
    plain = inputs.encode(sample("Which?"), with_answer=True)
    for question in ("<image><image>Which?", "<image>\n<image>\nWhich?"):
        encoded = inputs.encode(sample(question), with_answer=True)
        assert encoded.tokens.tolist() == plain.tokens.tolist()
        assert encoded.instruction.tolist() == plain.instruction.tolist()


def test_a_template_that_puts_images_first_does_not_move_them():
    inputs = inputs_of("llava")
    inputs.processor.chat_template = HOISTING
    assert not keeps_order(inputs.family) and text_of_an_image(inputs.family) == "<image>"
    before, between, after = around(inputs, inputs.encode(sample("A <image> B <image> C"), with_answer=False))
    assert before.endswith("A") and between == "B" and after.startswith("C")
    leading = inputs.encode(sample("C"), with_answer=False)
    assert around(inputs, leading)[0].endswith("user:")


def test_a_template_that_places_no_image_is_an_error():
    inputs = inputs_of("llava")
    inputs.processor.chat_template = HOISTING.replace("<image>\n", "")
    with pytest.raises(DmoleError, match="does not place images within a text"):
        inputs.encode(sample("A <image> B <image> C"), with_answer=False)


def test_a_backbone_answers_about_images_within_a_text(backbone):
    rows = [
        backbone.encode(sample(text), with_answer=False) for text in ("A <image> or <image>?", "<image>A or <image>?")
    ]
    assert rows[0].tokens.tolist() != rows[1].tokens.tolist()
    batch, _ = backbone.collate(rows, left=True)
    assert len(generate(backbone, batch, max_new_tokens=2, min_new_tokens=1)) == 2


def test_markers_and_images_of_a_sample_are_counted(inputs):
    for question, images in (("<image> or <image>?", 1), ("<image>?", 0), ("<image>?", 2)):
        with pytest.raises(DmoleError, match=r"sample row-7: .* image marker"):
            inputs.encode(sample(question, images=images), with_answer=True)


def test_the_own_image_tokens_of_a_backbone_are_refused_by_name(inputs):
    names = image_tokens(inputs.processor)
    assert names and not [name for name in names if "im_start" in name or "im_end" in name]
    for name in names:
        with pytest.raises(DmoleError, match="row-7") as caught:
            inputs.encode(sample("Which?", answer=f"a{name}b"), with_answer=True)
        assert name in caught.value.message and caught.value.hint
        with pytest.raises(DmoleError, match="row-7"):
            inputs.encode(sample(f"Is {name} it?", images=0), with_answer=True)
        with pytest.raises(DmoleError, match="possible answer"):
            inputs.answer_tokens(f"a{name}b")


def test_a_check_with_a_backbone_counts_image_tokens(tmp_path):
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    records = [tiny.record("a.png", f"Which {n}?", "<|vision_end|>" if n else "red") for n in range(3)]
    records[0]["conversations"][0]["value"] = "<image>Does <|video_pad|> show?"
    tiny.write_records(tmp_path / "rows.jsonl", records)
    card = tmp_path / "mine.toml"
    card.write_text(
        'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n[data]\ntrain = "rows.jsonl"\n',
        encoding="utf-8",
    )
    report = check_card(load_card(card), model=SamplePreview(inputs_of("qwen2_5_vl"), limit=0), looks=1)
    (problem,) = [problem for problem in report.problems if problem.serious]
    assert (problem.kind, problem.count, problem.of) == ("tokens", 3, 3) and "<|video_pad|>" in problem.first[0]
    assert check_card(load_card(card)).ok  # plain text to other backbones
    json.dumps(report.looks)


def test_a_truncated_question_keeps_its_images(backbone):
    long = sample("Begin <image> " + "and so on " * 20 + "<image> end?")
    whole = backbone.encode(long, with_answer=True)
    short = encode_truncated(backbone, long, max_length=len(whole.tokens) - 30)
    assert short.truncated and len(short.tokens) <= len(whole.tokens) - 30
    before, between, after = around(backbone.inputs, short)
    assert "so" not in before and "so" in between and after.startswith("end?")
    same = replace(long, question="<image>" + long.question.removeprefix("Begin <image>"))
    assert len(backbone.encode(same, with_answer=True).tokens) < len(whole.tokens)
