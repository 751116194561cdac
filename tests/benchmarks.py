"""The seventeen benchmarks made small: a data root in each one's exact layout, with images drawn for the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

TRAIN, TEST = 12, 4
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 60), "blue": (40, 60, 220)}
NAMES = list(COLOURS)
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."


def colour(index: int) -> str:
    return NAMES[index % len(NAMES)]


def draw(path: Path, index: int) -> None:
    """Draw an image of one colour; no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (24 + index % 5, 20 + index // 5 % 7), COLOURS[colour(index)])
    image.putpixel((0, 0), tuple(sha256(str(path).encode()).digest()[:3]))  # images of two splits must differ
    image.save(path, quality=95)


def lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def document(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def conversation(image: str | None, question: str, answer: str, number: int = 1) -> dict[str, Any]:
    """A record of LLaVA's, as both benchmarks train on it; `<image>` is left out of every second one."""
    marker = "<image>\n" if image and number % 2 else ""
    turns = [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return {"id": str(number), **({"image": image} if image else {}), "conversations": turns}


def ten(answer: str) -> list[dict[str, str]]:
    """Six people of ten say it."""
    return [{"answer": answer}] * 6 + [{"answer": "unanswerable"}] * 4


# ------------------------------------------------------------------------------------------------ D-MoLE's nine


def captions(root: Path, folder: str, test: str, images: str) -> None:
    rows = []
    for i in range(TRAIN):
        draw(root / folder / f"images/train-{i}.jpg", i)
        rows.append(conversation(f"images/train-{i}.jpg", CAPTION, f"A plain {colour(i)} picture.", i))
    lines(root / folder / "train.jsonl", rows)
    for i in range(TEST):
        draw(root / folder / images / f"v{i}.jpg", i)
    document(
        root / folder / test,
        {
            "info": {"description": "made up"},
            "images": [{"id": i, "file_name": f"v{i}.jpg"} for i in range(TEST)],
            "annotations": [
                {"image_id": i, "id": 5 * i + j, "caption": f"{('A', 'One')[j]} plain {colour(i)} picture."}
                for j in range(2)
                for i in range(TEST)
            ],
        },
    )


def skvg(root: Path) -> None:
    knowledge, box = "Bob is the one in {red}", [2, 2, 12, 10]
    asked = (
        f"Based on the knowledge {knowledge}.\nPlease provide the bounding box coordinate of the region this sentence"
    )
    rows = []
    for i in range(TRAIN):
        draw(root / f"sk-vg/images/train-{i}.jpg", i)
        rows.append(
            conversation(f"images/train-{i}.jpg", f"{asked} describes: <ref>the man</ref>", "[[83, 100, 500, 500]]", i)
        )
    lines(root / "sk-vg/train.jsonl", rows)
    tests = []
    for i in range(TEST):
        draw(root / f"sk-vg/images/{i}.jpg", 0)
        tests.append(
            {"image": f"{i}.jpg", "sent": "the man", "knowledge": knowledge, "bbox": box, "width": 24, "height": 20}
        )
    lines(root / "sk-vg/test.jsonl", tests)


def choices(root: Path, folder: str, train: str, test: str) -> None:
    rows, tests = [], []
    for i in range(TRAIN):
        draw(root / folder / f"images/train-{i}.png", i)
        asked = f"Which colour?\nA. {NAMES[0]}\nB. {NAMES[1]}\nC. {NAMES[2]}\n{LETTER}"
        rows.append(conversation(f"images/train-{i}.png", asked, "ABC"[i % 3], i))
    lines(root / folder / train, rows)
    for i in range(TEST):
        draw(root / folder / f"images/{i}.png", i)
        # Options of their own: those of the first sample are not those of the next.
        own = NAMES[i % 2 :]
        tests.append({"image": f"{i}.png", "question": "Which colour?", "choices": own, "answer": len(own) - 1})
    lines(root / folder / test, tests)


def answers(root: Path, folder: str, test: str) -> None:
    rows, tests = [], []
    for i in range(TRAIN):
        draw(root / folder / f"images/train-{i}.jpg", i)
        rows.append(conversation(f"images/train-{i}.jpg", f"What colour? {SHORT}", colour(i), i))
    lines(root / folder / "train.jsonl", rows)
    for i in range(TEST):
        draw(root / folder / f"images/{i}.jpg", i)
        tests.append({"image": f"{i}.jpg", "question": "What colour?", "question_id": i, "answer": colour(i).upper()})
    lines(root / folder / test, tests)


def vizwiz(root: Path) -> None:
    asked = f"What colour? When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}"
    rows, tests = [], []
    for i in range(TRAIN):
        draw(root / f"vizwiz/images/train-{i}.jpg", i)
        rows.append(conversation(f"images/train-{i}.jpg", asked, colour(i), i))
    lines(root / "vizwiz/train.jsonl", rows)
    for i in range(TEST):
        draw(root / f"vizwiz/images/{i}.jpg", i)
        tests.append({"image": f"{i}.jpg", "question": "What colour?", "question_id": i})
    lines(root / "vizwiz/vizwiz_val.jsonl", tests)
    given = [{"question_id": i, "answers": ten(colour(i))} for i in reversed(range(TEST))]
    document(root / "vizwiz/vizwiz_val_annotations.json", {"annotations": given})


# ------------------------------------------------------------------------------------------------ CoIN's eight


def coin(
    root: Path,
    folder: str,
    images: str,
    question: str,
    answer: Callable[[int], str],
    *,
    test: str = "test.json",
    more: Callable[[int], dict[str, Any]] = lambda i: {},
    blind: int = 0,
) -> None:
    """Instructions of one task; `images` is the pattern of image names, `blind` test rows have no image."""
    rows, tests = [], []
    for i in range(TRAIN):
        name = images.format(f"train{i}")
        draw(root / name, i)
        rows.append(conversation(f"./{name}", question, answer(i), i))
    document(root / f"Instruction_Type1/{folder}/train.json", rows)
    for i in range(TEST):
        name = images.format(f"test{i}")
        draw(root / name, i)
        image = {} if i < blind else {"image": f"./{name}"}
        tests.append({"question_id": i, **image, "text": question, "answer": answer(i), **more(i)})
    document(root / f"Instruction_Type1/{folder}/{test}", tests)


def scienceqa(root: Path) -> None:
    asked = f"Which colour?\nA. {NAMES[0]}\nB. {NAMES[1]}\nC. {NAMES[2]}\n{LETTER}"
    coin(root, "ScienceQA", "ScienceQA/images/{}/image.png", asked, lambda i: "ABC"[i % 3], blind=1)
    problems, splits = {}, {"train": [], "val": [], "test": []}
    for i in range(TRAIN + TEST + 2):
        split = "test" if i < TEST else "train" if i < TEST + TRAIN else "val"
        image = "image.png" if i % 4 else None
        if image:
            draw(root / f"ScienceQA/images/{split}/{i}/image.png", i)
        problem = {"question": "Which colour?", "choices": NAMES, "answer": i % 3, "hint": "Look." if i % 2 else ""}
        problems[str(i)] = problem | {"image": image, "split": split, "grade": "grade2", "lecture": "", "solution": ""}
        splits[split].append(str(i))
    document(root / "ScienceQA/problems.json", problems)
    document(root / "ScienceQA/pid_splits.json", splits | {"minitest": ["1"]})


def textvqa(root: Path) -> None:
    coin(root, "TextVQA", "TextVQA/train_images/{}.jpg", f"What colour?\n{SHORT}", colour, test="val.json")
    data = [{"question_id": i, "answers": [a["answer"] for a in ten(colour(i))]} for i in range(TEST)]
    document(root / "TextVQA/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})


def coin_vizwiz(root: Path) -> None:
    coin(root, "VizWiz", "VizWiz/val/{}.jpg", f"What colour?\n{SHORT}", colour)
    # VizWiz itself has no question ids: an image has one question.
    document(root / "VizWiz/val.json", [{"image": f"test{i}.jpg", "answers": ten(colour(i))} for i in range(TEST)])


def vqav2(root: Path) -> None:
    coin(root, "VQAv2", "COCO2014/val2014/{}.jpg", f"What colour?\n{SHORT}", colour)
    given = [{"question_id": i, "image_id": i, "answers": ten(colour(i))} for i in range(TEST)]
    document(root / "COCO2014/v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": given})


def coin_grounding(root: Path) -> None:
    box = {"answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [24, 20]}
    coin(
        root,
        "Grounding",
        "COCO2014/train2014/{}.jpg",
        "Where is the man?",
        lambda i: "[0.10, 0.20, 0.50, 0.60]",
        more=lambda i: box,
    )


BENCHMARKS: dict[str, Callable[[Path], None]] = {
    "vizwiz_caption": lambda root: captions(root, "vizwiz-caption", "val.json", "images/val"),
    "skvg": skvg,
    "textcaps": lambda root: captions(root, "textcaps", "val.json", "images"),
    "iconqa": lambda root: choices(root, "iconqa", "multi_text_choice_train.jsonl", "multi_text_choice_test.jsonl"),
    "ocrvqa": lambda root: answers(root, "ocrvqa", "ocrvqa_test.jsonl"),
    "flickr30k": lambda root: captions(root, "flickr30k", "flickr30k_test_karpathy.json", "Images"),
    "vizwiz": vizwiz,
    "kvqa": lambda root: answers(root, "kvqa", "test.jsonl"),
    "pmcvqa": lambda root: choices(root, "pmcvqa", "train.jsonl", "test_clean.jsonl"),
    "scienceqa": scienceqa,
    "textvqa": textvqa,
    "imagenet": lambda root: coin(root, "ImageNet", "ImageNet/{}.JPEG", f"What is it?\n{SHORT}", colour),
    "gqa": lambda root: coin(root, "GQA", "GQA/images/{}.jpg", f"What colour?\n{SHORT}", colour),
    "coin-vizwiz": coin_vizwiz,
    "coin-grounding": coin_grounding,
    "vqav2": vqav2,
    "coin-ocrvqa": lambda root: coin(root, "OCRVQA", "OCR-VQA/images/{}.jpg", f"What colour?\n{SHORT}", colour),
}


def write_all(root: Path) -> Path:
    """Write every benchmark below one data root."""
    for write in BENCHMARKS.values():
        write(root)
    return root
