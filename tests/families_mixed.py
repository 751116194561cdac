"""Shared by the tests of the families: a tiny model of each, and samples that differ in every respect."""

from __future__ import annotations

import random
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import tiny
import torch
from PIL import Image
from torch.nn import functional as F

from dmole_cli.backbones.backbone import IGNORED, Backbone
from dmole_cli.backbones.families.base import families
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.images import open_image
from dmole_cli.data.sample import Sample
from dmole_cli.experts.routed import RoutedExperts

FAMILIES = families()


def draw(width: int, height: int, seed: int) -> Image.Image:
    """A random image of coloured stripes."""
    choose = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(choose.randrange(256) for _ in range(3)))
    for _ in range(4):
        left, top = choose.randrange(width), choose.randrange(height)
        colour = tuple(choose.randrange(256) for _ in range(3))
        image.paste(colour, (left, top, min(width, left + 9), min(height, top + 14)))
    return image


def sample(folder: Path, question: str, *sizes: tuple[int, int], answer: str) -> Sample:
    """A sample with stored images (width, height)."""
    files = tuple(folder / f"{abs(hash((question, i)))}.png" for i in range(len(sizes)))
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        draw(*size, seed=len(question) * 10 + number).save(file)
    opened = tuple(partial(open_image, file, row="here") for file in files)
    return Sample(question, question, answer, (answer,), opened, files=files)


@cache
def samples() -> list[Sample]:
    """Several sizes, shapes, numbers of images and lengths of text; one without an image."""
    folder = Path(mkdtemp())
    return [
        sample(folder, "Colour?", (24, 24), answer="red"),
        sample(folder, "Which half of this wide picture is white, and which is not?", (72, 30), answer="the left half"),
        sample(folder, "Both?", (30, 60), (50, 50), answer="no"),
        sample(folder, "Say a word.", answer="word"),
        sample(folder, "What is tall here?", (26, 90), answer="k"),
        sample(folder, "How many pixels?", (49, 47), answer="many"),
    ]


@cache
def tiny_folder(family: str) -> Path:
    """A family's tiny model on disk."""
    from importlib import import_module

    return import_module(f"dmole_cli.backbones.families.{family}").tiny(Path(mkdtemp()) / family)


@cache
def tiny_backbone(family: str) -> Backbone:
    """A family's tiny model, loaded."""
    return load_backbone(str(tiny_folder(family)))


def experts(backbone: Backbone) -> RoutedExperts:
    """Experts with large weights: `vision` on the sites of the vision encoder, `language`, and `all`."""
    sites = find_sites(backbone.model, "linear")
    generator = torch.Generator().manual_seed(3)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    for name, rank, tower in (("vision", 3, "vision"), ("language", 2, "language"), ("all", 4, "")):
        chosen = [site for site in sites if tower in ("", site.modality)]
        expert = tiny.draw_expert(chosen, rank, scale=1.0 + 0.25 * rank, generator=generator, spread=0.3)
        routed.add(name, expert)
    return routed


def losses(backbone, routed, rows, sets, *, seen=None):
    """The loss of each sample of one batch."""
    inputs, owners = backbone.collate(rows, left=False)
    if seen is not None:
        inputs = seen.replace(inputs, rows)
    with torch.no_grad(), routed.route(sets, rows=owners):
        logits, answers = backbone.answer_logits(inputs)
    own = [int((row.labels != IGNORED).sum()) for row in rows]
    every = F.cross_entropy(logits.float(), answers, reduction="none")
    return torch.stack([part.mean() for part in every.split(own)])
