"""t-SNE of samples' routing features and of their reconstructions by their task's router (D-MoLE, arXiv 2506.11672, Figure 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.features import read_feature_arrays
from dmole_cli.artifacts.router import read_router_arrays
from dmole_cli.data.seeds import seed_for
from dmole_cli.figures._drawing import GRID, INK, MARKERS, PAPER, SERIES
from dmole_cli.figures._naming import name_in, title_in
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.reconstruction import embedded, reconstructed

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure as Canvas

READING = (
    "Each point is one sample: routing can work where tasks form separate clusters, and a router is good where its "
    "reconstructions lie where the features of its task lie."
)
DEFINITION = (
    "t-SNE (perplexity 30 or less, start from PCA) of the routing features, which are mean-pooled hidden states of both towers, "
    "L2-normalised, and of their reconstructions by the autoencoder of their own task, all in one embedding. Distances between "
    "far clusters, and the axes, have no meaning."
)
MOST_OF_TASK, MOST = 500, 1500  # samples of a task, and of all tasks; as many reconstructions
PARTS = ("train", "test", "reconstruction")
HEADINGS = {"train": "features, training split", "test": "features, test split", "reconstruction": "reconstructions"}


@dataclass(frozen=True)
class Points:
    """What is embedded.

    Attributes:
        values: [points, width].
        tasks: of each point.
        parts: of each point: one of `PARTS`.
        sampled: whether samples were left out.
        used: largest number of samples of a task.
    """

    values: np.ndarray
    tasks: Sequence[str]
    parts: Sequence[str]
    sampled: bool
    used: int


def figures(source: Source) -> Iterator[Figure]:
    """One embedding for each example; orders of the tasks that share features and routers have one in common."""
    distinct = {
        tuple(sorted(one.run.features(task).resolve() for task in one.tasks)): one for one in reversed(source.examples)
    }
    for one in reversed(distinct.values()):
        if (points := points_of(one, seed=source.seed)) is not None:
            yield _figure(one, points, seed=source.seed, order=one.order if len(distinct) > 1 else "")


def points_of(one: Experiment, *, seed: int) -> Points | None:
    """A seeded choice of features, and their reconstructions by the routers that exist; None without features.

    Of a task with features of both splits, each gives half of the samples.

    Raises:
        ArtifactError: features or a router are damaged.
    """
    import numpy as np

    tasks = [*one.tasks, *one.report.unseen]
    files = {task: [s for s in ("train", "test") if one.run.features(task, s).is_file()] for task in tasks}
    known = [task for task in tasks if files[task]]
    if not known:
        return None
    most = min(MOST_OF_TASK, MOST // len(known))
    values, names, parts, sampled = list[Any](), list[str](), list[str](), False
    for task in known:
        router = read_router_arrays(one.run.router(task)) if one.run.router(task).is_file() else None
        for split in files[task]:
            found = read_feature_arrays(one.run.features(task, split))[1]
            count = min(len(found), most // len(files[task]))
            rows = np.random.default_rng(seed_for(seed, task, split)).choice(len(found), count, replace=False)
            chosen, sampled = found[np.sort(rows)], sampled or count < len(found)
            both = [chosen] if router is None else [chosen, reconstructed(router, chosen)]
            values += both
            names += [task] * count * len(both)
            parts += [name for name in (split, PARTS[2])[: len(both)] for _ in range(count)]
    return Points(np.concatenate(values), names, parts, sampled, most)


def _figure(one: Experiment, points: Points, *, seed: int, order: str) -> Figure:
    places = embedded(points.values, seed=seed)
    parts = [part for part in PARTS if part in points.parts]
    numbers = {
        "task": points.tasks,
        "part": points.parts,
        "x": [round(float(x), 2) for x in places[:, 0]],
        "y": [round(float(y), 2) for y in places[:, 1]],
    }
    tasks = list(dict.fromkeys(points.tasks))
    labels = {task: f"{i} {task}" + ("" if task in one.tasks else " (unseen)") for i, task in enumerate(tasks, start=1)}
    legend = 0.32 * -(-len(tasks) // 4)
    return Figure(
        name=name_in(order, "features"),
        title=title_in(order, "Routing features and their reconstructions"),
        reading=READING,
        definition=DEFINITION,
        numbers=numbers,
        alternative=f"Scatter plots of {len(places)} points, {len(tasks)} tasks: {', '.join(HEADINGS[part] for part in parts)}. "
        f"{_neighbours(points, places)}",
        draw=partial(_draw, places=places, points=points, parts=parts, labels=labels),
        size=(round(4.1 * len(parts), 2), round(4.3 + legend, 2)),
        note=f"A seeded choice of at most {points.used} samples of a task." if points.sampled else "",
    )


def _neighbours(points: Points, places: Any) -> str:
    """How well the tasks are separated: the share of features whose nearest one in the embedding is of their own task."""
    import numpy as np
    from scipy.spatial import cKDTree

    own = np.array(points.parts) != PARTS[2]
    names, places = np.array(points.tasks)[own], places[own]
    if len(places) < 4:
        return ""
    nearest = cKDTree(places).query(places, k=2)[1][:, 1]
    return (
        f"The nearest feature is of the same task for {100 * np.mean(names[nearest] == names):.0f} % of the features."
    )


def _draw(canvas: Canvas, *, places: Any, points: Points, parts: Sequence[str], labels: Mapping[str, str]) -> None:
    import numpy as np
    from matplotlib.patheffects import withStroke

    names, kinds = np.array(points.tasks), np.array(points.parts)
    # Thousands of points as an image, which is smaller and faster than shapes; texts stay texts.
    image = len(places) > 500
    canvas.set_dpi(200)
    grid = canvas.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
    handles: list[Any] = []
    for axes, part in zip(grid, parts, strict=True):
        axes.set_title(HEADINGS[part], loc="left")
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(visible=True, color=GRID)
        for index, task in enumerate(labels):
            own = places[(names == task) & (kinds == part)]
            turn = index // len(SERIES)
            style: dict[str, Any] = {
                "color": SERIES[index % len(SERIES)],
                "marker": MARKERS[(index + turn) % len(MARKERS)],
            }
            axes.scatter(*own.T, s=9, linewidths=0, alpha=0.7, rasterized=image, **style)
            if part == parts[0]:
                handles += canvas.axes[0].plot([], [], linestyle="", label=labels[task], **style)
            if len(own) and len(labels) > 1:
                middle = own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()]
                axes.annotate(
                    str(index + 1), middle, ha="center", va="center", color=INK, weight="bold",
                    path_effects=[withStroke(linewidth=3, foreground=PAPER)],
                )  # fmt: skip
    canvas.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.3, columnspacing=1.4)
