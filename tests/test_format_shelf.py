"""The shelf of formats: every file has the required interface and recognises its own data; a new one needs no edit elsewhere."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest
import tiny
from PIL import Image

from dmole_cli import catalog
from dmole_cli.data import formats
from dmole_cli.data.card import load_card
from dmole_cli.data.formats.base import Source, load_format
from dmole_cli.data.guessing import guess_format
from dmole_cli.data.loading import check_card, samples
from dmole_cli.data.new_card import new_card

ANNOTATION_FILES = {path.stem for path in Path(formats.__file__).parent.glob("[a-z]*.py")} - {"base"}


@pytest.mark.parametrize("name", catalog.names("formats"))
def test_a_file_of_the_shelf_has_the_required_interface(name):
    found = load_format(name)
    assert found.__doc__ and found.load.__doc__
    assert list(inspect.signature(found.load).parameters) == ["card", "split", "data_root"]
    plain = [value for value in found.OPTIONS.values() if not isinstance(value, tuple)]
    assert all(type(default) in (str, int, float, bool) for default in plain)
    lists = [value for value in found.OPTIONS.values() if isinstance(value, tuple)]
    assert all(isinstance(text, str) for texts in lists for text in texts)
    if name in ANNOTATION_FILES:
        assert found.FILLS_PROMPT is True
        assert found.recognise(Source(Path("a.json"), records=({"nothing": "known"},))) is None
    else:
        assert not hasattr(found, "recognise")


@pytest.mark.parametrize("name", catalog.names("formats"))
def test_a_file_of_the_shelf_imports_no_sibling(name):
    tree = ast.parse(Path(load_format(name).__file__).read_text(encoding="utf-8"))
    names = {f"{n.module}.{alias.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
    shelves = [("dmole_cli", "data", "formats"), ("dmole_cli", "data", "synthetic")]
    own = {name.split(".")[3] for name in names if tuple(name.split(".")[:3]) in shelves}
    assert all(stem.startswith("_") or stem == "base" for stem in own)


EXAMPLES = {
    "llava": [tiny.record("red.png", "What is it?", "a square")],
    "coco_captions": {"images": [{"id": 1, "file_name": "red.png"}], "annotations": [{"image_id": 1, "caption": "a"}]},
    "coin": [{"question_id": 1, "image": "red.png", "text": "What?", "answer": "red"}],
    "grounding": [{"image": "red.png", "sent": "it", "bbox": [1, 1, 2, 2], "width": 5, "height": 4}],
    "multiple_choice": [{"image": "red.png", "question": "What?", "choices": ["a", "b"], "answer": 1}],
    "question_answer": [{"image": "red.png", "question": "What?", "answer": "red"}],
    "scienceqa": {
        str(n): {"question": "What?", "choices": ["a", "b"], "answer": 1, "split": split}
        for n, split in enumerate(("train", "val", "test"))
    },
    "vqa": [{"image": "red.png", "question": "What?", "answers": ["red"]}],
}


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_is_the_most_certain_of_its_own_files(tmp_path, name, lines):
    example, path = EXAMPLES[name], tmp_path / "data.json"
    if lines and isinstance(example, list):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in example * 2), encoding="utf-8")
    else:
        path.write_text(json.dumps(example, indent=None if lines else 1), encoding="utf-8")
    assert guess_format(path)[0] == name


PIPES = '''
"""Lines of an image, a question and an answer, separated by pipes."""

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess

OPTIONS = FILE_OPTIONS
FILLS_PROMPT = True


def recognise(source):
    """A file with the ending `.pipes`."""
    return Guess(9, "it ends in .pipes", metric="gqa") if source.path.suffix == ".pipes" else None


def load(card, split, *, data_root):
    """Read the lines."""
    return load_rows(card, split, data_root=data_root, read=_read)


def _read(path, other_files):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        image, question, answer = line.split("|")
        yield Row(f"line {number}", question=question, answer=answer, references=(answer,), images=(image,))
'''


def test_a_new_format_is_one_file_and_no_edit(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "pipes.py").write_text(PIPES, encoding="utf-8")
    files = catalog._files
    monkeypatch.setattr(catalog, "_files", lambda shelf: files(shelf) | {"pipes": "data/formats"})
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "shelf")])
    for number in range(40):
        Image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png|Which colour?|red" for number in range(40)]
    (tmp_path / "data.pipes").write_text("\n".join(lines), encoding="utf-8")
    made = new_card(tmp_path / "mine.toml", [tmp_path / "data.pipes"], learning_rate=1e-3)
    card = load_card(tmp_path / "mine.toml")
    assert (card.format, card.metric, sum(made.rows.values())) == ("pipes", "gqa", 40)
    (first, *_) = samples(card, "train")
    assert first.answer == "red" and first.question.startswith("Which colour? ") and first.images[0]().size == (5, 4)
    assert check_card(card).ok
