"""Tables without metadata of `datasets`: contents decide, texts stay texts, and what has no value is refused by its row."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.data.new_card import new_card
from dmole_cli.errors import DmoleError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(shade: int = 0) -> bytes:
    out = BytesIO()
    Image.new("RGB", (12, 10), (200, shade, 30)).save(out, "PNG")
    return out.getvalue()


def table(folder: Path, columns: dict[str, list]) -> Path:
    pq.write_table(pa.table(columns), folder / "data.parquet")
    return folder / "data.parquet"


def read(folder: Path, name: str = "data.parquet", /, **data: object):
    (folder / "card.toml").write_text(
        'format = "hugging_face"\nmetric = "exact_match"\nprompt = "{question}"\n[data]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"dataset": name, **data}.items()),
        encoding="utf-8",
    )
    return samples(load_card(folder / "card.toml"), "train")


QA = {"question": ["Colour?"], "answer": ["red"]}


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": png(), "path": None},
        png(),
        {"bytes": None, "path": "a.png"},
        "a.png",
        ["a.png"],
        [{"bytes": png(), "path": "a.png"}],
        base64.b64encode(png()).decode(),
        f"data:image/png;base64,{base64.b64encode(png()).decode()}",
    ],
    ids=["struct", "bytes", "struct-path", "path", "paths", "structs", "base64", "uri"],
)
def test_contents_decide_what_is_an_image(tmp_path, value):
    (tmp_path / "a.png").write_bytes(png())
    table(tmp_path, {"image": [value], **QA})
    [row] = read(tmp_path)
    assert row.images[0]().size == (12, 10) and row.answer == "red"
    assert len(row.sources) == 1 and row.sources[0].startswith("sha256:")


def test_paths_start_at_the_folder_of_the_card(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(png())
    table(tmp_path, {"image": ["a.png"], **QA})
    with pytest.raises(DmoleError, match=r"row 0: missing image a\.png"):
        read(tmp_path)
    assert read(tmp_path, folder="pics")[0].images[0]().size == (12, 10)


@pytest.mark.parametrize("value", ["no path", "https://x.org/a.png", "a\0b.png", "a" * 300 + ".png", 7])
def test_what_is_no_image_is_refused(tmp_path, value):
    table(tmp_path, {"image": [value], **QA})
    with pytest.raises(DmoleError, match=r"row 0|contains .*, not images"):
        read(tmp_path)


def test_a_null_is_no_image(tmp_path):
    table(tmp_path, {"image": [[png(), None], [None], None], "question": ["a?"] * 3, "answer": ["b"] * 3})
    assert [len(row.images) for row in read(tmp_path)] == [1, 0, 0]
    table(tmp_path, {"image": [[None, png()]], **QA})
    with pytest.raises(DmoleError, match="row 0: an image in front of another is null"):
        read(tmp_path)
    empty = datasets.Dataset.from_dict({"image": [None], **QA}).cast_column("image", datasets.Image())
    empty.to_parquet(tmp_path / "data.parquet")
    assert read(tmp_path)[0].images == ()


@pytest.mark.parametrize(
    ("columns", "more"),
    [
        ({"question": ["a?", None], "answer": ["b", "b"]}, {}),
        ({"question": ["a?", "a?"], "answer": ["b", None]}, {}),
        ({"question": ["a?", "a?"], "answer": [1.0, float("nan")]}, {}),
        ({"question": ["a?", "a?"], "answer": [["b"], ["b", None]]}, {}),
        ({"question": ["a?", "a?"], "answer": ["b", "b"], "r": [["b"], None]}, {"references": "r"}),
        ({"question": ["a?", "a?"], "answer": [0, 2], "c": [["x", "y"]] * 2}, {"choices": "c"}),
        ({"question": ["a?", "a?"], "answer": [0, None], "c": [["x", "y"]] * 2}, {"choices": "c"}),
        ({"question": ["a?", "a?"], "answer": [0, 0], "c": [["x", "y"], ["x", None]]}, {"choices": "c"}),
        ({"question": ["a?", "a?"], "answer": [0, 0], "c": [["x", "y"], None]}, {"choices": "c"}),
    ],
)
def test_a_value_that_is_missing_or_out_of_range_is_refused_by_its_row(tmp_path, columns, more):
    table(tmp_path, columns)
    with pytest.raises(DmoleError, match="row 1"):
        read(tmp_path, images="", **more)
    report = check_card(load_card(tmp_path / "card.toml"))
    assert report.rows == {"train": 1} and not report.ok


@pytest.mark.parametrize("code", [-1, None])
def test_a_class_outside_of_its_range_is_refused(tmp_path, code):
    classes = datasets.Features({"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["x", "y"])})
    rows = datasets.Dataset.from_dict({"question": ["a?", "a?"], "answer": [1, code]}, features=classes)
    rows.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DmoleError, match="row 1"):
        read(tmp_path, "saved", images="")


def test_a_class_that_is_a_letter_is_the_option_with_it(tmp_path):
    kinds = {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["A", "B"])}
    kinds["choices"] = datasets.List(datasets.Value("string"))
    values = {"question": ["a?"], "answer": [1], "choices": [["x", "y"]]}
    datasets.Dataset.from_dict(values, features=datasets.Features(kinds)).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path, "saved", images="", choices="choices")[0].answer == "B"


def test_a_box_without_numbers_is_refused(tmp_path):
    columns = {"box": [[1, 2, 3, 4], [1, 2, None, 4]], "width": [9, 9], "height": [9, 9]}
    table(tmp_path, {"question": ["a?"] * 2, "answer": ["b"] * 2, **columns})
    read(tmp_path, images="", details="box,width,height")
    card = tmp_path / "card.toml"
    card.write_text(card.read_text().replace("exact_match", "grounding"))
    with pytest.raises(DmoleError, match="row 1: 'box' must be 4 numbers"):
        samples(load_card(card), "train")


@pytest.mark.parametrize("where", ["data.csv", "data.tsv", "folder/train.csv", "folder/metadata.csv"])
def test_texts_of_a_csv_file_stay_texts(tmp_path, where):
    (tmp_path / where).parent.mkdir(exist_ok=True)
    answers = ["007", "3", "NA", "1.50", "2021-01-02", "true", " x ", "1e5"]
    (tmp_path / where).parent.joinpath("a.png").write_bytes(png())
    mark = "\t" if where.endswith("tsv") else ","
    lines = [mark.join(("file_name", "question", "answer")), *(mark.join(("a.png", "A?", text)) for text in answers)]
    (tmp_path / where).write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    images = "image" if "metadata" in where else "file_name"
    rows = read(tmp_path, where.partition("/")[0], images=images)
    assert [row.answer for row in rows] == [text.strip() for text in answers]
    assert rows[0].images[0]().size == (12, 10)


def test_a_row_of_an_image_table_that_ends_early_is_refused_by_its_row(tmp_path):
    (tmp_path / "metadata.csv").write_text("question,answer,file_name\nA?,3\n", encoding="utf-8")
    with pytest.raises(DmoleError, match="row 0: missing image"):
        read(tmp_path, ".")


def test_an_empty_field_of_a_csv_file_is_an_empty_answer(tmp_path):
    (tmp_path / "data.csv").write_text('question,answer\nA?,3\n"B, or C?",\n', encoding="utf-8")
    with pytest.raises(DmoleError, match="row 1: 'answer' is empty"):
        read(tmp_path, "data.csv", images="")
    (tmp_path / "data.csv").write_text("question,answer,answer\nA?,3,4\n", encoding="utf-8")
    with pytest.raises(DmoleError, match="must name its columns, each once"):
        read(tmp_path, "data.csv", images="")


# --- dmole tasks new ---


def guessed(folder: Path, source: Path, **options: object):
    made = new_card(folder / "new.toml", [source], learning_rate=1e-3, force=True, **options)
    card = load_card(folder / "new.toml")
    report = check_card(card)
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.rows == made.rows == {split: len(samples(card, split)) for split in made.rows}
    return card, made.rows


def test_folders_of_classes_are_questions_of_a_word(tmp_path):
    for number in range(30):
        (tmp_path / "pics" / ("cat", "dog")[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pics" / ("cat", "dog")[number % 2] / f"{number}.png").write_bytes(png(number))
    card, rows = guessed(tmp_path, tmp_path / "pics")
    assert (card.metric, sum(rows.values())) == ("exact_match", 30) and "single word" in card.prompt
    assert {row.answer for row in samples(card, "train")} == {"cat", "dog"}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_of_texts_becomes_a_card(tmp_path, suffix):
    columns = {"question": [f"Name of {n}?" for n in range(40)], "answer": [f"00{n}" for n in range(40)]}
    source = table(tmp_path, columns)
    if suffix == ".csv":
        source = source.with_suffix(suffix)
        lines = ["question,answer", *(",".join(pair) for pair in zip(*columns.values(), strict=True))]
        source.write_text("\n".join(lines), encoding="utf-8")
    card, rows = guessed(tmp_path, source)
    assert (card.metric, sum(rows.values()), card.data["images"]) == ("exact_match", 40, "")
    assert "007" in {row.answer for split in rows for row in samples(card, split)}


def test_plain_tables_with_images_become_cards(tmp_path):
    names = [f"{n}.png" for n in range(40)]
    (tmp_path / "pics").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "pics" / name).write_bytes(png(number))
    answers = {"question": ["Which?"] * 40, "choices": [["x", "y"]] * 40, "answer": [1 + n % 2 for n in range(40)]}
    source = table(tmp_path, {"photo": [{"bytes": png(n), "path": None} for n in range(40)], **answers})
    card, _ = guessed(tmp_path, source)
    assert (card.data["images"], card.metric, card.data["first_index"]) == ("photo", "multiple_choice", 1)
    card, _ = guessed(tmp_path, table(tmp_path, {"image": names, "label": ["cat"] * 40}))
    assert (card.data["images"], card.data["folder"], card.metric) == ("image", "pics", "exact_match")
    with pytest.raises(DmoleError, match=r"missing image 0\.png"):
        new_card(tmp_path / "new.toml", [source], images=tmp_path, learning_rate=1e-3, force=True)
    with pytest.raises(DmoleError, match="further files are not read"):
        new_card(tmp_path / "new.toml", [source, source], learning_rate=1e-3, force=True)
