"""UCIT, MLLM-DCL and MLLM-ACL made small: a data root in the layout of MCITlib, with images drawn for the test."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import NAMES, TEST, TRAIN, colour, conversation, document, draw

BRIEF = "What is happening in the image?\nGenerate a brief caption for the image."
LETTERS = "Answer with the option's letter from the given choices directly."

Field = Callable[[int], Any]


def letter(index: int) -> str:
    return "ABC"[index % 3]


def write(
    folder: Path,
    images: Path,
    pattern: str,
    question: str,
    answer: Field,
    *,
    train: str = "train.json",
    tested: tuple[Path, Path, str] | None = None,
    asked: str | None = None,
    more: Field = lambda i: {},
) -> None:
    """Training and test records of one task.

    Args:
        folder: of the training file.
        images: the folder that the names of images start at.
        pattern: an image's name, with the sample's name in braces.
        question: in the training records.
        answer: index of a sample -> its answer.
        train: name of the training file.
        tested: folder of the test images, the test file, and how its records are called; else `test.json` beside.
        asked: the question in the test records, if it is another one.
        more: index of a sample -> further fields of its test record.
    """
    test_images, test, identifier = tested or (images, folder / "test.json", "{}")
    rows, tests = [], []
    for i in range(TRAIN):
        name = pattern.format(f"train{i}")
        draw(images / name, i)
        said = answer(i)
        rows.append(conversation(name, question, said[0] if isinstance(said, list) else str(said), i))
    for i in range(TEST):
        name = pattern.format(f"test{i}")
        draw(test_images / name, i)
        record = {"question_id": identifier.format(i), "image": name, "text": asked or question, "answer": answer(i)}
        tests.append({key: value for key, value in (record | more(i)).items() if value is not None})
    document(folder / train, rows)
    document(test, tests)


def ucit(
    root: Path, name: str, pattern: str, question: str, answer: Field, *, train: str, captions: bool = False
) -> None:
    folder, images = root / "UCIT" / name, root / "UCIT/datasets"
    write(folder, images, pattern, question, answer, train=train, tested=(images, folder / "test_3000.json", "{}"))
    if captions:
        # As in the published files: ids count from 1 and name no record; the file's name joins them.
        shown = [{"id": i + 1, "file_name": Path(pattern.format(f"test{i}")).name} for i in range(TEST)]
        told = [
            {"id": 2 * i + j, "image_id": i + 1, "caption": f"{('A', 'One')[j]} plain {colour(i)} picture."}
            for i in range(TEST)
            for j in range(2)
        ]
        document(folder / "val_coco_type_3000.json", {"images": shown, "annotations": told})


def caption(index: int) -> str:
    return f"A plain {colour(index)} picture."


def domain(root: Path, name: str, question: str, answer: Field, **others: Any) -> None:
    folder = root / "Domain_data" / name
    write(folder, folder, others.pop("pattern", "images/{}.png"), question, answer, **others)


def ability(root: Path, name: str, pattern: str, question: str, answer: Field, **others: Any) -> None:
    folder, test = (root / "Ability_data" / kind for kind in (name, f"{name}_test"))
    identifier = others.pop("identifier", "{}")
    write(folder, folder, pattern, question, answer, tested=(test, test / "test.json", identifier), **others)


def table(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def mathematics(root: Path) -> None:
    """The answers are in the table alone; every second question has options."""
    asked = "Hint: answer at the end.\nQuestion: What colour?\nChoices:\n(A) red\n(B) green\n(C) blue"
    ability(root, "Math", "images/{}.jpg", asked, colour, identifier="testmini_{}", more=lambda i: {"answer": None})
    free, options = {"question_type": "free_form"}, {"question_type": "multi_choice", "choices": str(NAMES)}
    rows = [
        {"index": i + 1, "image": "x" * 200_000, "answer": colour(i), "answer_type": "text", "answer_option": ""}
        | (options | {"answer_option": letter(i)} if i % 2 else free | {"choices": "None"})
        for i in range(TEST)
    ]
    table(root / "Ability_data/Math_test/MathVista_MINI.tsv", rows)


def screens(root: Path) -> None:
    """The table has more rows than the test file, which asks some of them."""
    asked = f"What is to be done?\nA. red\nB. green\nC. blue\n{LETTERS}"
    ability(root, "APP", "images/{}.png", asked, letter, identifier="ALL_{}", more=lambda i: {"answer": None})
    table(
        root / "Ability_data/APP_test/MMT-Bench_ALL_MI_anno.tsv",
        [{"index": i, "answer": letter(i)} for i in range(TEST + 3)],
    )


def ocr(root: Path) -> None:
    ability(
        root,
        "OCR",
        "images/OCRBench_Images/{}.jpg",
        "What is written?",
        lambda i: [colour(i), colour(i).upper()],
        more=lambda i: {"answer_type": "Regular Text Recognition"},
    )


CHOICE = f"Which colour?\nA. red\nB. green\nC. blue\n{LETTERS}"
TASKS: dict[str, Callable[[Path], None]] = {
    "ucit-imagenet_r": lambda root: ucit(
        root, "ImageNet-R", "ImageNet-R/train/{}.jpg", "What is it?", colour, train="train.json"
    ),
    "ucit-arxivqa": lambda root: ucit(root, "ArxivQA", "ArxivQA/images/{}.jpg", CHOICE, letter, train="train_4w.json"),
    "ucit-vizwiz_caption": lambda root: ucit(
        root, "VizWiz", "VizWiz/{}.jpg", BRIEF, caption, train="train.json", captions=True
    ),
    "ucit-iconqa": lambda root: ucit(
        root, "IconQA", "IconQA/iconqa_data/iconqa/{}.png", CHOICE, letter, train="train.json"
    ),
    "ucit-clevr_math": lambda root: ucit(
        root, "CLEVR-Math", "CLEVR/images/{}.png", "How many?", lambda i: str(i % 3), train="train_4w.json"
    ),
    "ucit-flickr30k": lambda root: ucit(
        root, "Flickr30k", "Flickr30k/{}.jpg", BRIEF, caption, train="train_brief_4w.json", captions=True
    ),
    "mllm_dcl-remote_sensing": lambda root: domain(root, "RS", "What is it?", colour),
    "mllm_dcl-medical": lambda root: domain(
        root, "Med", "What is it? Answer the question with a single word (or phrase).", colour, asked="What is it?"
    ),
    "mllm_dcl-driving": lambda root: domain(root, "AD", "What is ahead?", colour),
    "mllm_dcl-science": lambda root: domain(
        root, "Sci", "Which states are red?", lambda i: f"Ohio,{colour(i)}", pattern="images/MAP_{}.png"
    ),
    "mllm_dcl-finance": lambda root: domain(root, "Fin", "Will it rise?", lambda i: "Yes" if i % 2 else letter(i)),
    "mllm_acl-ocr": ocr,
    "mllm_acl-math": mathematics,
    "mllm_acl-visual_perception": lambda root: ability(
        root, "VP", "img/2D/count/{}.png", "How many? (A) 0 (B) 1 (C) 2", lambda i: f"({letter(i)}) {i % 3}"
    ),
    "mllm_acl-gui_agent": screens,
}


def write_all(root: Path) -> Path:
    """Write every task below one data root."""
    for make in TASKS.values():
        make(root)
    return root
