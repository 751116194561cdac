"""Bytes on disk of a stream's artifacts: sizes of tensors, and tables of the first rows, written and scaled."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.features import write_features
from dmole_cli.artifacts.generations import write_generations
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    EVALUATION,
    EXPERT,
    FEATURES,
    GENERATIONS,
    PROFILE,
    ROUTER,
    Kind,
)
from dmole_cli.artifacts.profile import SiteProfile, write_profile
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.backbones.sites import Site
from dmole_cli.data.sample import Sample
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.work import TaskWork
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.settings.model import AUTO

ROWS = 512  # rows of a table that is written to see its size
BYTES_PER_PARAMETER = 4  # experts and routers are float32, in training and on disk
BYTES_PER_HEADER = 2000  # of a file that is no table: provenance, versions, digests
DIGEST, SETTINGS = 64, 250  # characters of a digest, and of the settings in a header


def disk_rows(inputs: PlanInputs, work: Sequence[TaskWork]) -> list[dict[str, Any]]:
    """Files and bytes of every kind of artifact, as JSON values.

    Args:
        inputs: of the plan.
        work: of the tasks.
    """
    trained, width = [item for item in work if item.trains], _feature_width(inputs)
    header, shapes = BYTES_PER_HEADER, [inputs.shapes(item.task) for item in trained]
    experts = [sum(rank * (fan_in + fan_out) for rank, fan_in, fan_out in own.values()) for own in shapes]
    router = Autoencoder(width, hidden=inputs.settings.router.hidden)
    routers = sum(parameter.numel() for parameter in router.parameters())
    with tempfile.TemporaryDirectory() as folder:
        size = _Sizes(Path(folder))
        features = {
            split: sum(size.features(len(getattr(item, split)), width) for item in work) for split in ("train", "test")
        }
        tables = [
            (PROFILE, len(trained), len(trained) * size.profile(inputs.sites)),
            (FEATURES, len(trained) + len(work), sum(features.values())),
            (EVALUATION, sum(i.entries for i in work), sum(i.entries * size.evaluation(i, len(trained)) for i in work)),
            (GENERATIONS, len(work), sum(size.generations(i) for i in work)),
        ]
    lists = 2 if inputs.settings.allocate.rank == AUTO else 1  # the sites, and the rank of each
    sites = lists * sum(len(json.dumps(site)) + 4 for own in shapes for site in own)
    found = [
        *tables,
        (ALLOCATION, len(trained), sites + header * len(trained)),
        (ROUTER, len(trained), len(trained) * (routers * BYTES_PER_PARAMETER + header)),
        (EXPERT, len(trained), sum(count * BYTES_PER_PARAMETER + header for count in experts)),
    ]
    rows = [{"kind": kind.name, "files": files, "bytes": round(total)} for kind, files, total in found if files]
    return [*rows, {"kind": "in all", "files": sum(r["files"] for r in rows), "bytes": sum(r["bytes"] for r in rows)}]


def _feature_width(inputs: PlanInputs) -> int:
    """Width of a routing feature: that of both towers' states, which the first site of a block has as its input."""
    return sum({site.modality: site.in_features for site in reversed(inputs.sites)}.values())


class _Sizes:
    """Bytes of tables, from files with the first rows that are written into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _scaled(self, kind: Kind, rows: int, write: Callable[[Path, int, Header], None], *, inputs: int = 1) -> float:
        """Bytes of a table of so many rows, in proportion to those of its first rows; its header names that many inputs."""
        if not rows:
            return 0.0
        written, header = min(rows, ROWS), _header(kind, inputs)
        sizes = []
        for count in (written, max(1, written // 2)):
            path = self._folder / f"{kind.folder}.{count}.parquet"
            write(path, count, header)
            sizes.append(path.stat().st_size)
        per_row = (sizes[0] - sizes[1]) / max(1, written - written // 2)
        return sizes[0] + per_row * (rows - written)

    def features(self, rows: int, width: int) -> float:
        """Of a table of routing features, whose values do not compress."""

        def write(path: Path, count: int, header: Header) -> None:
            values = torch.rand(count, width, generator=torch.Generator().manual_seed(0))
            write_features(path, [str(row) for row in range(count)], _keys(count), values, header)

        return self._scaled(FEATURES, rows, write)

    def profile(self, sites: Sequence[Site]) -> float:
        """Of a profile."""

        def write(path: Path, count: int, header: Header) -> None:
            draw = random.Random(0)
            scores = [(draw.random(), draw.random(), draw.random()) for _ in range(count)]
            rows = [_site_profile(site, *row) for site, row in zip(sites, scores, strict=False)]
            write_profile(path, rows, header.with_facts(backbone_parameters=1))

        return self._scaled(PROFILE, len(sites), write)

    def evaluation(self, work: TaskWork, routers: int) -> float:
        """Of one entry of the score matrix, whose predictions are the reference answers."""

        def write(path: Path, count: int, header: Header) -> None:
            draw = random.Random(0)
            rows = [_answer(sample, [draw.random() for _ in range(routers // 2)]) for sample in work.test[:count]]
            write_evaluation(path, rows, header)

        # After half of the stream: an expert and a router per task.
        return self._scaled(EVALUATION, len(work.test), write, inputs=1 + 2 * (routers // 2))

    def generations(self, work: TaskWork) -> float:
        """Of the cache of predictions."""
        answers = [sample.answer for sample in work.test[:ROWS]]

        def write(path: Path, count: int, header: Header) -> None:
            keys = _keys(count)
            write_generations(path, {key: answers[row % len(answers)] for row, key in enumerate(keys)}, "")

        return self._scaled(GENERATIONS, work.sets * len(work.test), write)


def _site_profile(site: Site, score: float, mean: float, deviation: float) -> SiteProfile:
    return SiteProfile(
        site=site.name,
        modality=site.modality,
        block=site.block,
        kind=site.kind,
        in_features=site.in_features,
        out_features=site.out_features,
        parameters=site.parameters,
        score=score,
        norm_mean=mean,
        norm_std=deviation,
        batches=1,
        samples=1,
    )


def _header(kind: Kind, inputs: int) -> Header:
    """A header of usual length."""
    digests = {f"experts/task-{number}.safetensors": "0" * DIGEST for number in range(inputs)}
    settings = {"settings": "0" * SETTINGS}
    return Header.of(
        kind, backbone="0" * DIGEST, inputs=digests, settings=settings, versions=versions("torch", "transformers")
    )


def _keys(count: int) -> list[str]:
    return [hashlib.sha256(str(row).encode()).hexdigest() for row in range(count)]


def _answer(sample: Sample, losses: list[float]) -> Answer:
    details = json.dumps(dict(sample.details), ensure_ascii=False)
    references = list(sample.references)
    return Answer(
        sample.sample_id, sample.question, sample.answer, references, 1.0, ["task"], losses, details, sample.image_names
    )
