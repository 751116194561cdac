"""easy-VQA: short questions about one drawn shape, with the package's images and its test split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dmole_cli.data.images import open_image
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import stable_hash
from dmole_cli.data.synthetic._packages import package_folder
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

# Share of each kind of question. In the package three quarters are yes/no questions, of which a guess gets half right.
SHARES = {"yes/no": 0.4, "shape": 0.3, "colour": 0.3}
SHAPES = frozenset({"circle", "rectangle", "triangle"})
VALIDATION_TENTHS = 1

OPTIONS: Mapping[str, Any] = {"side": 72}


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Select questions of a split so that each pair of question and answer is equally frequent.

    The package's train split is divided by image into train and validation; test is the package's own test split. The
    answers of every question are balanced, so that answers from the text alone score low.

    Source: https://github.com/vzhou842/easy-VQA (MIT).

    Raises:
        DmoleError: easy-vqa is not installed, or its files are not the expected ones.
    """
    folder = package_folder("easy_vqa") / "data" / ("test" if split == "test" else "train")
    size = getattr(card.sizes, split)
    groups: dict[str, list[tuple[int, str, str, int]]] = {kind: [] for kind in SHARES}
    for question, answer, image in _questions(folder / "questions.json"):
        if split == "test" or _split_of(image) == split:
            order = stable_hash(card.name, split, question, answer, image)
            groups[_kind(answer)].append((order, question, answer, image))
    chosen = []
    for kind, members in groups.items():
        chosen += _balanced(members)[: round(SHARES[kind] * size) if size else None]
    chosen.sort()
    return [
        Sample(
            sample_id=f"{split}-{index:05d}",
            question=question[0].upper() + question[1:],
            answer=answer,
            references=(answer,),
            images=(partial(_open, folder / "images" / f"{image}.png", side=card.data["side"]),),
            sources=(f"easy-vqa:{folder.name}:{image}",),
        )
        for index, (_, question, answer, image) in enumerate(chosen)
    ]


def _questions(path: Path) -> list[tuple[str, str, int]]:
    try:
        return [(question, answer, image) for question, answer, image in json.loads(path.read_text())]
    except (OSError, ValueError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "pip install --force-reinstall easy-vqa") from error


def _split_of(image: int) -> str:
    return "validation" if stable_hash("easy-vqa", image) % 10 < VALIDATION_TENTHS else "train"


def _kind(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"


def _balanced(members: list[tuple[int, str, str, int]]) -> list[tuple[int, str, str, int]]:
    """Sort so that every prefix contains each pair of question and answer about equally often."""
    seen: Counter[tuple[str, str]] = Counter()
    ranked = []
    for member in sorted(members):
        seen[member[1], member[2]] += 1
        ranked.append((seen[member[1], member[2]], member))
    return [member for _, member in sorted(ranked)]


def _open(path: Path, *, side: int) -> Image.Image:
    return open_image(path, row="easy-vqa").resize((side, side), Image.Resampling.BICUBIC)
