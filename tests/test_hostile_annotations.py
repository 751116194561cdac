"""Annotation files that are damaged or hostile: one error with the line, counted and skipped by `tasks check`."""

import json
import os

import pytest

from dmole_cli.data.card import load_card
from dmole_cli.data.formats import _json
from dmole_cli.data.formats._json import entries, members, records
from dmole_cli.data.invalid_records import skipping_invalid
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError

GOOD = {
    "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}],
    "image": "a.png",
}
DEEP, DIGITS = "[" * 100_000, "9" * 6000


def readers():
    return pytest.mark.parametrize("read", [records, members, entries])


@readers()
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (DEEP, "nested more than 100 levels"),
        ("[" * 150 + "]" * 150, "nested more than 100 levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested more than 100 levels"),
        (DIGITS, "more than 300 digits"),
        ("1" + "0" * 400, "more than 300 digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"a\\uDFFF": 1}', "half of a surrogate pair"),
    ],
    ids=lambda value: value[:9],
)
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_values(tmp_path, monkeypatch, read, value, said, piece):
    monkeypatch.setattr(_json, "PIECE", piece)
    for name, text in (
        ("lines", f'{{"x": {value}}}\n'),
        ("array", f'[{{"x": {value}}}]'),
        ("object", f'{{"a": {{"x": {value}}}}}'),
    ):
        if (name == "lines" and read is not records) or (name == "array" and read is entries):
            continue
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DmoleError, match=said):
            list(read(path))


@readers()
def test_what_is_no_regular_file(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero", "x" * 300, "a\0b"):
        with pytest.raises(DmoleError, match="cannot read the annotation file"):
            list(read(tmp_path / name))


def test_a_line_and_a_value_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(_json, "LONGEST_VALUE", 1000)
    monkeypatch.setattr(_json, "PIECE", 100)
    path = tmp_path / "long"
    for text in ('{"a": "' + "x" * 2000, '["' + "x" * 3000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DmoleError, match="million characters"):
            list(records(path))


def test_whole_pairs_and_other_escapes_are_read(tmp_path):
    path = tmp_path / "good"
    values = [{"a": "😀", "b": "\\ud800 as text", "c": 10**200}, {"d": [[[1]]]}]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert [value for _, value in records(path)] == values


def test_the_check_counts_what_a_run_refuses(tmp_path):
    card = tmp_path / "c.toml"
    card.write_text(
        'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n[data]\ntrain = "a.jsonl"\ntest = "a.jsonl"\n',
        encoding="utf-8",
    )
    bad = [GOOD | {"image": "a\0b.png"}, GOOD | {"image": "x" * 300 + ".png"}]
    lines = [json.dumps(row) for row in (GOOD, *bad)] + ['{"x": "\\udc00"}', DEEP, f'{{"x": {DIGITS}}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DmoleError, match="line 2: 'image' contains a null character"):
        samples(load_card(card), "train")
    counted = []
    with skipping_invalid(lambda kind, count, first: counted.append((kind, count))):
        rows = samples(load_card(card), "train")
    assert counted == [("record", 1)] * 4 and len(rows) == 2
    for row in rows:
        with pytest.raises(DmoleError, match="image"):
            row.images[0]()
    assert not check_card(load_card(card)).ok
