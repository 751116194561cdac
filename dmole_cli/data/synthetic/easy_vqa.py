"""easy-vqa: short questions about one drawn shape, with the package's own pictures and its own test split."""

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

# Share of each kind of question. The package asks yes/no three times out of four; there a blind guess is worth half.
SHARES = {"yes/no": 0.4, "shape": 0.3, "colour": 0.3}
SHAPES = frozenset({"circle", "rectangle", "triangle"})
VALIDATION_TENTHS = 1

OPTIONS: Mapping[str, Any] = {"side": 72}


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Choose questions of one split, equally often for each pair of question and answer.

    Train and validation share the package's train split by picture; test is the package's own. Balancing the answers of
    every question keeps the score of an answer without looking low.

    Source: https://github.com/vzhou842/easy-VQA (MIT).

    Raises:
        DmoleError: easy-vqa is not installed, or its files are not the expected ones.
    """
    folder = package_folder("easy_vqa") / "data" / ("test" if split == "test" else "train")
    size = getattr(card.sizes, split)
    groups: dict[str, list[tuple[int, str, str, int]]] = {kind: [] for kind in SHARES}
    for question, answer, picture in _questions(folder / "questions.json"):
        if split == "test" or _split_of(picture) == split:
            order = stable_hash(card.name, split, question, answer, picture)
            groups[_kind(answer)].append((order, question, answer, picture))
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
            images=(partial(_open, folder / "images" / f"{picture}.png", side=card.data["side"]),),
            sources=(f"easy-vqa:{folder.name}:{picture}",),
        )
        for index, (_, question, answer, picture) in enumerate(chosen)
    ]


def _questions(path: Path) -> list[tuple[str, str, int]]:
    try:
        return [(question, answer, picture) for question, answer, picture in json.loads(path.read_text())]
    except (OSError, ValueError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "pip install --force-reinstall easy-vqa") from error


def _split_of(picture: int) -> str:
    return "validation" if stable_hash("easy-vqa", picture) % 10 < VALIDATION_TENTHS else "train"


def _kind(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"


def _balanced(members: list[tuple[int, str, str, int]]) -> list[tuple[int, str, str, int]]:
    """Sort so that any first part holds every pair of question and answer about equally often."""
    seen: Counter[tuple[str, str]] = Counter()
    ranked = []
    for member in sorted(members):
        seen[member[1], member[2]] += 1
        ranked.append((seen[member[1], member[2]], member))
    return [member for _, member in sorted(ranked)]


def _open(path: Path, *, side: int) -> Image.Image:
    return open_image(path, row="easy-vqa").resize((side, side), Image.Resampling.BICUBIC)
